"""The networks: segmentor, regressor, hierarchical VAE and deformation head."""

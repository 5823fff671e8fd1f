"""Pictures of counterfactuals and of figures: every function takes arrays and returns a matplotlib figure.

Images are (H, W) with row 0 at the top and intensities in [-1, 1]; label maps are integers of the same shape; a volume
is shown by its middle slice (:func:`picture`). Signed differences share one colour scale, symmetric about zero, in
each figure. Small images are shown with bicubic interpolation.
"""

from segcft_ext.figures.curves import curves
from segcft_ext.figures.effectiveness import change_maps, effectiveness_heatmap, effectiveness_scatter
from segcft_ext.figures.grids import Panel, counterfactual_grid, reconstruction_grid, sample_grid, segmentation_grid
from segcft_ext.figures.pictures import picture, save_figure, to_png

__all__ = [
    "Panel",
    "change_maps",
    "counterfactual_grid",
    "curves",
    "effectiveness_heatmap",
    "effectiveness_scatter",
    "picture",
    "reconstruction_grid",
    "sample_grid",
    "save_figure",
    "segmentation_grid",
    "to_png",
]

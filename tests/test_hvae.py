"""Properties of the hierarchical VAE and its likelihood."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from segcft_ext.networks.hvae import HVAE, ResidualBlock, StochasticBlock, discretised_gaussian_log_likelihood


def small(parent_channels: int = 2, **arguments: object) -> HVAE:
    settings: dict = {"channels": (8, 8, 8), "strides": (2, 4), "blocks": (0, 2, 1), "latent_channels": 4}
    return HVAE(parent_channels, **{**settings, **arguments})


def awake(network: HVAE) -> HVAE:
    """Weights away from their start at zero, so that latents and parents matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("mean", [-1.3, -0.2, 0.0, 0.7])
@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0])
def test_the_bins_of_a_pixel_sum_to_one(mean: float, log_scale: float) -> None:
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)
    log_likelihood = discretised_gaussian_log_likelihood(bins, torch.tensor(mean), torch.tensor(log_scale))
    assert float(log_likelihood.exp().sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("mean", "log_scale"), [(-0.3, -3.0), (0.9, -1.0), (1.2, -2.0)])
def test_the_likelihood_of_an_intensity_is_what_the_gaussian_has_in_its_bin(mean: float, log_scale: float) -> None:
    bins = torch.linspace(-1, 1, 256, dtype=torch.float64)
    edges = torch.cat([torch.tensor([-torch.inf]), (bins[1:] + bins[:-1]) / 2, torch.tensor([torch.inf])])
    expected = torch.distributions.Normal(mean, math.exp(log_scale)).cdf(edges).diff()
    found = discretised_gaussian_log_likelihood(bins, torch.tensor(mean), torch.tensor(log_scale)).exp()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_likelihood_is_finite_with_finite_gradients_far_out() -> None:
    image = torch.tensor([-1.0, 1.0, 0.3, 0.3])
    mean = torch.tensor([1.0, -1.0, -1.0, 0.3], requires_grad=True)
    log_scale = torch.full((4,), -7.0, requires_grad=True)
    discretised_gaussian_log_likelihood(image, mean, log_scale).sum().backward()
    assert mean.grad is not None and log_scale.grad is not None
    assert torch.isfinite(mean.grad).all() and torch.isfinite(log_scale.grad).all()


@pytest.mark.parametrize("conditional", [False, True])
def test_decoding_the_posterior_with_the_same_parents_gives_its_mean(conditional: bool) -> None:
    network = awake(small(conditional_prior=conditional))
    image, parents = torch.rand(3, 1, 16, 24) * 2 - 1, torch.randn(3, 2)
    for temperature in (0.0, 1.0):
        posterior = network.posterior(image, parents, temperature)
        mean, log_scale = network.decode(posterior.latents, parents, (16, 24))
        torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(log_scale, posterior.log_scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conditional", [False, True])
def test_without_the_kl_the_posterior_is_the_same(conditional: bool) -> None:
    network = awake(small(conditional_prior=conditional))
    image, parents = torch.rand(3, 1, 16, 24) * 2 - 1, torch.randn(3, 2)
    full, short = (network.posterior(image, parents, 0.0, with_kl) for with_kl in (True, False))
    assert torch.equal(full.mean, short.mean) and torch.equal(full.log_scale, short.log_scale)
    assert all(map(torch.equal, full.latents, short.latents))
    assert full.kl.isfinite().all() and short.kl.isnan().all()


@pytest.mark.parametrize("conditional", [False, True])
def test_the_priors_of_all_blocks_see_the_parents_only_when_conditional(conditional: bool) -> None:
    network = awake(small(conditional_prior=conditional))
    seen: list[torch.Tensor] = []
    for module in network.modules():
        if isinstance(module, StochasticBlock):
            module.prior_head.register_forward_hook(lambda _, __, output: seen.append(output))
    latents = network.posterior(torch.rand(2, 1, 16, 16) * 2 - 1, torch.zeros(2, 2), temperature=0).latents

    def priors(parents: torch.Tensor) -> list[torch.Tensor]:
        """Outputs of the prior heads for the same latents, in a decoder whose state depends on the given parents."""
        seen.clear()
        remaining = iter(latents)

        def recall(block: StochasticBlock, state: torch.Tensor, context: torch.Tensor, level: int) -> torch.Tensor:
            block.prior(context, parents)
            return next(remaining)

        network._decode(recall, parents, network._sizes((16, 16)))
        return list(seen)

    pairs = list(zip(priors(torch.zeros(2, 2)), priors(torch.ones(2, 2)), strict=True))
    assert len(pairs) == 3
    assert all(torch.equal(one, other) is not conditional for one, other in pairs)


@pytest.mark.parametrize("conditional", [False, True])
def test_the_prior_of_a_block_sees_the_latents_before_it(conditional: bool) -> None:
    network = awake(small(conditional_prior=conditional))

    def priors(first: float) -> list[torch.Tensor]:
        """Means of all blocks, where the first block's latents are as given and all others zero."""
        means: list[torch.Tensor] = []

        def latent(block: StochasticBlock, state: torch.Tensor, context: torch.Tensor, level: int) -> torch.Tensor:
            means.append(block.prior(context, torch.zeros(1, 2))[0])
            return torch.full_like(means[-1], first if len(means) == 1 else 0)

        network._decode(latent, torch.zeros(1, 2), network._sizes((16, 16)))
        return means

    assert list(map(torch.equal, priors(0), priors(1))) == [True, False, False]


def at_constants(network: HVAE, prior: Normal, posterior: Normal) -> HVAE:
    """The same prior and posterior for every latent, whatever the image."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, StochasticBlock):
                for head, wanted in ((module.prior_head, prior), (module.posterior_head, posterior)):
                    log_scale = 4 * torch.atanh(wanted.scale.log() / 4)  # what the soft clamp makes of it is wanted
                    head.bias.copy_(torch.stack([wanted.loc, log_scale]).repeat_interleave(4))
    return network


@pytest.mark.parametrize("conditional", [False, True])
def test_latents_are_drawn_from_the_posterior_and_their_kl_is_that_of_gaussians(conditional: bool) -> None:
    prior, posterior = Normal(torch.tensor(-1.0), torch.tensor(2.0)), Normal(torch.tensor(1.0), torch.tensor(0.5))
    network = at_constants(small(conditional_prior=conditional), prior, posterior)
    image, parents = torch.rand(40, 1, 16, 16), torch.zeros(40, 2)
    torch.manual_seed(0)
    found = network.posterior(image, parents)
    drawn = torch.cat([latent.flatten(1) for latent in found.latents], 1)
    kl = kl_divergence(posterior, prior) * drawn.shape[1]
    torch.testing.assert_close(found.kl, kl.expand(40), rtol=1e-4, atol=0)
    for temperature in (1.0, 0.5, 0.0):
        latents = network.posterior(image, parents, temperature).latents
        drawn = torch.cat([latent.flatten() for latent in latents])
        if conditional:  # the prior's noise
            drawn = prior.loc + prior.scale * drawn
        assert drawn.mean().item() == pytest.approx(1, abs=0.02)
        assert drawn.std().item() == pytest.approx(0.5 * temperature, rel=0.03, abs=1e-5)


def test_samples_have_the_priors_latents() -> None:
    prior = Normal(torch.tensor(-1.0), torch.tensor(2.0))
    network, drawn = at_constants(small(), prior, prior), []
    for module in network.modules():
        if isinstance(module, StochasticBlock):
            module.expand.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[0].flatten()))
    torch.manual_seed(0)
    network.sample(torch.zeros(40, 2), (16, 16))
    assert torch.cat(drawn).mean().item() == pytest.approx(-1, abs=0.05)
    assert torch.cat(drawn).std().item() == pytest.approx(2, rel=0.03)


def test_samples_are_intensities() -> None:
    network = small()
    torch.nn.init.constant_(network.likelihood.conv.bias, 3)
    assert torch.equal(network.sample(torch.zeros(2, 2), (16, 16)), torch.ones(2, 1, 16, 16))


def test_parents_of_no_weight_change_nothing() -> None:
    block, x = ResidualBlock(2, 4, parent_channels=2), torch.randn(3, 4, 8, 8)
    assert block.film is not None
    for parameter in block.film.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(block(x, torch.randn(3, 2)), block(x))
    torch.nn.init.ones_(block.film.bias)
    assert not torch.allclose(block(x, torch.randn(3, 2)), block(x))


def test_the_kl_vanishes_where_posterior_and_prior_agree() -> None:
    network = small()  # both heads start at zero
    posterior = network.posterior(torch.rand(2, 1, 16, 16), torch.zeros(2, 2))
    assert posterior.kl.abs().max() < 1e-5


def test_free_bits_are_a_floor_for_each_block() -> None:
    posterior = small(free_bits=2.0).posterior(torch.rand(2, 1, 16, 16), torch.zeros(2, 2))
    torch.testing.assert_close(posterior.kl, torch.full((2,), 6.0))  # three stochastic blocks


def test_negative_elbo_is_in_nats_per_dimension() -> None:
    network = awake(small(beta=2.0))
    image, parents = torch.rand(2, 1, 16, 16) * 2 - 1, torch.zeros(2, 2)
    posterior = network.posterior(image, parents)
    assert (posterior.kl > 1).all()
    likelihood = discretised_gaussian_log_likelihood(image, posterior.mean, posterior.log_scale).mean((1, 2, 3))
    expected = 2 * posterior.kl / 256 - likelihood
    torch.testing.assert_close(network.negative_elbo(image, posterior), expected)


def test_one_set_of_weights_serves_every_image_size_and_gradients_reach_all_of_them() -> None:
    network = awake(small())
    for size in ((16, 16), (20, 33)):
        image = torch.rand(2, 1, *size) * 2 - 1
        posterior = network.posterior(image, torch.randn(2, 2))
        assert posterior.mean.shape == image.shape
        network.negative_elbo(image, posterior).mean().backward()
        assert network.sample(torch.zeros(2, 2), size).shape == image.shape
        assert network.decode(posterior.latents, torch.zeros(2, 2), size)[0].shape == image.shape
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_volumes() -> None:
    network = small(spatial_dims=3)
    image = torch.rand(1, 1, 8, 12, 8) * 2 - 1
    assert math.isfinite(network.negative_elbo(image, network.posterior(image, torch.zeros(1, 2))).item())


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_longer_than_wide_is_reduced_to_one_pixel(dims: int) -> None:
    size = (32, *[8] * (dims - 1))
    strides = (2, 2, [8, *[2] * (dims - 1)])
    hvae = HVAE(1, dims, channels=(4, 4, 4, 4), strides=strides, blocks=(0, 0, 1, 1), latent_channels=2)
    image, parents = torch.rand(2, 1, *size), torch.zeros(2, 1)
    posterior = hvae.posterior(image, parents)
    assert [latent.shape[2:] for latent in posterior.latents] == [(1,) * dims, (8, *[2] * (dims - 1))]
    torch.testing.assert_close(hvae.decode(posterior.latents, parents, size)[0], posterior.mean)


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_smaller_than_the_last_window_is_reduced_to_one_pixel(dims: int) -> None:
    hvae = HVAE(1, dims, channels=(4, 4, 4), strides=(2, [8, *[2] * (dims - 1)]), blocks=(0, 0, 1), latent_channels=2)
    image = torch.rand(2, 1, 8, *[2] * (dims - 1))
    middle = hvae.encode(image)[1]
    torch.testing.assert_close(hvae.down[1][0](middle), middle.mean(list(range(2, 2 + dims)), keepdim=True))
    assert hvae.posterior(image, torch.zeros(2, 1)).mean.shape == image.shape


def test_settings_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels, 3 blocks and 1 strides"):
        HVAE(1, channels=(8, 8), strides=(2,), blocks=(1, 1, 1))


def test_the_scale_of_the_likelihood_starts_at_exp_minus_two_and_has_a_floor() -> None:
    network, image = small(), torch.rand(2, 1, 16, 16)
    convolution = network.likelihood.conv
    torch.nn.init.zeros_(convolution.weight)
    for bias, log_scale in ((0.0, -2.0), (-4.0, -6.0), (-50.0, -7.0)):
        torch.nn.init.constant_(convolution.bias, bias)
        found = network.posterior(image, torch.zeros(2, 2)).log_scale
        torch.testing.assert_close(found, torch.full_like(image, log_scale))


def test_the_likelihood_is_not_rounded_to_half_precision() -> None:
    network = awake(small())
    with torch.autocast("cpu", torch.bfloat16):
        posterior = network.posterior(torch.rand(2, 1, 16, 16), torch.zeros(2, 2))
    for output in (posterior.mean, posterior.log_scale):
        assert output.dtype == torch.float32
        assert (output != output.bfloat16().float()).float().mean() > 0.9


def test_the_kl_is_not_rounded_to_half_precision() -> None:
    """Nor is its gradient: that of similar distributions is the small difference of large terms."""
    network, outputs = awake(small(blocks=(0, 0, 1))), []
    (block,) = (module for module in network.modules() if isinstance(module, StochasticBlock))
    for head in (block.prior_head, block.posterior_head):
        with torch.no_grad():
            head.weight.mul_(0.02)
            head.bias.fill_(0.01)
        head.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        found = network.posterior(torch.rand(2, 1, 16, 16), torch.zeros(2, 2)).kl.sum()
    exact = [output.detach().double().requires_grad_() for output in outputs]
    (prior, prior_scale), (mean, scale) = (output.chunk(2, dim=1) for output in exact)
    expected = kl_divergence(
        Normal(mean, (4 * (scale / 4).tanh()).exp()), Normal(prior, (4 * (prior_scale / 4).tanh()).exp())
    ).sum()
    assert outputs[0].dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)
    for gradient, wanted in zip(torch.autograd.grad(found, outputs), torch.autograd.grad(expected, exact)):
        torch.testing.assert_close(gradient.double(), wanted, rtol=0.02, atol=1e-6)

import math
from collections.abc import Callable

import pytest
import torch

from segcft_ext.mechanisms import (
    BernoulliMechanism,
    CategoricalMechanism,
    FlowMechanism,
    Mechanism,
    ZeroInflatedMechanism,
)

FACTORIES: dict[str, Callable[[int], Mechanism]] = {
    "flow": FlowMechanism,
    "bernoulli": BernoulliMechanism,
    "zero_inflated": ZeroInflatedMechanism,
    "categorical": lambda parent_channels: CategoricalMechanism(parent_channels, 4),
}


# where values are continuous, single precision decides
TOLERANCE = {"flow": 1e-5, "zero_inflated": 1e-5}


def build(kind: str, parent_channels: int, strength: float = 1.0) -> Mechanism:
    """A mechanism with random weights, as far from its beginning as training may take it."""
    torch.manual_seed(0)
    mechanism = FACTORIES[kind](parent_channels)
    with torch.no_grad():
        for parameter in mechanism.parameters():
            parameter.copy_(strength * torch.randn_like(parameter))
    return mechanism


def encoded_parents(count: int, parent_channels: int) -> torch.Tensor:
    return torch.rand(count, parent_channels) * 2 - 1


@pytest.mark.parametrize("parent_channels", [0, 3])
@pytest.mark.parametrize("kind", FACTORIES)
def test_shapes_dtypes_and_gradients(kind, parent_channels):
    mechanism = build(kind, parent_channels)
    parents = encoded_parents(7, parent_channels).requires_grad_()
    value = mechanism.sample(parents)
    assert value.shape == (7,) and value.dtype == torch.float32
    log_prob = mechanism.log_prob(value.detach(), parents)
    assert log_prob.shape == (7,) and log_prob.dtype == torch.float32
    log_prob.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in mechanism.parameters())
    if parent_channels:
        assert parents.grad.any(dim=1).all(), "the likelihood's gradient reaches the parents"


@pytest.mark.parametrize("parent_channels", [0, 3])
@pytest.mark.parametrize("kind", FACTORIES)
@pytest.mark.parametrize("strength", [0, 1, 5])
def test_prediction_inverts_abduction(kind, parent_channels, strength):
    mechanism = build(kind, parent_channels, strength)
    parents = encoded_parents(2000, parent_channels)
    if kind == "flow":
        # Five times the training range, and denser in and just around it.
        value = torch.cat([torch.linspace(-9, 9, 1000), torch.linspace(-1.2, 1.2, 1000)])
    elif kind == "zero_inflated":
        value = torch.cat([torch.full((500,), -1.0), torch.linspace(-1 + 1e-4, 3, 1500)])
    else:
        value = torch.arange(2000.0) % (2 if kind == "bernoulli" else 4)
    noise = mechanism.abduct(value, parents)
    assert noise.isfinite().all() and mechanism.log_prob(value, parents).isfinite().all()
    torch.testing.assert_close(mechanism.predict(noise, parents), value, atol=TOLERANCE.get(kind, 0), rtol=0)


@pytest.mark.parametrize("strength", [0, 1, 5])
def test_a_flow_inverts_the_other_way_round_and_is_monotonic(strength):
    mechanism = build("flow", 3, strength)
    parents = encoded_parents(1, 3).expand(500, -1)
    noise = torch.linspace(-8, 8, 500, dtype=torch.float64)
    # In double precision throughout, as a prediction in single precision rounds what a steep spline magnifies.
    parents, mechanism = parents.double(), mechanism.double()
    value = mechanism.predict(noise, parents)
    assert (value.diff() > 0).all()
    torch.testing.assert_close(mechanism.abduct(value, parents), noise, atol=1e-6, rtol=0)


@pytest.mark.parametrize("strength", [0, 0.5, 2])
def test_a_flows_density_integrates_to_one(strength):
    mechanism = build("flow", 2, strength).double()
    for parents in encoded_parents(3, 2).double():
        location, log_scale, _ = mechanism._transforms(parents[None], torch.float64)
        half = 8 * log_scale.exp().item()
        grid = torch.linspace(location.item() - half, location.item() + half, 100_001, dtype=torch.float64)
        density = mechanism.log_prob(grid, parents.expand(len(grid), -1)).exp()
        assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-4)


def test_a_fresh_flow_is_a_gaussian():
    value, parents = torch.linspace(-3, 3, 50), encoded_parents(50, 2)
    gaussian, mechanism = torch.distributions.Normal(0.0, 0.4), FlowMechanism(2)
    torch.testing.assert_close(mechanism.log_prob(value, parents), gaussian.log_prob(value))
    torch.testing.assert_close(mechanism.abduct(value, parents), value.double() / 0.4)


@pytest.mark.parametrize(("kind", "count"), [("bernoulli", 2), ("categorical", 4)])
def test_probabilities_sum_to_one_and_samples_follow_them(kind, count):
    mechanism = build(kind, 2)
    parents = encoded_parents(1, 2).expand(20_000, -1)
    values = torch.arange(float(count))
    probabilities = mechanism.log_prob(values, parents[:count]).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    samples = mechanism.sample(parents, torch.Generator().manual_seed(0))
    frequencies = (samples[:, None] == values).float().mean(dim=0)
    torch.testing.assert_close(frequencies, probabilities, atol=0.015, rtol=0)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_noise_abducted_from_the_model_follows_the_prior(kind):
    """p(u) = sum over v of p(u | v) p(v): what posterior sampling means."""
    mechanism = build(kind, 2)
    parents = encoded_parents(1, 2).expand(20_000, -1)
    generator = torch.Generator().manual_seed(0)
    prior = mechanism.sample_noise(20_000, generator)
    abducted = mechanism.abduct(mechanism.sample(parents, generator), parents, generator)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    torch.testing.assert_close(prior.quantile(levels, 0), abducted.quantile(levels, 0), atol=0.1, rtol=0.03)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_abduction_is_exact_for_improbable_values(kind):
    mechanism = FACTORIES[kind](0)
    with torch.no_grad():
        mechanism.conditioner.bias[0] = -200 if kind == "bernoulli" else 200
    value = torch.full((1000,), 1.0)
    assert torch.equal(mechanism.predict(mechanism.abduct(value, torch.zeros(1000, 0)), torch.zeros(1000, 0)), value)


def test_gumbel_max_is_counterfactually_stable():
    """Only the odds of category 2 rise, so a case keeps its category or becomes 2."""
    mechanism = FACTORIES["categorical"](0)
    value = torch.arange(4000.0) % 4
    noise = mechanism.abduct(value, torch.zeros(4000, 0), torch.Generator().manual_seed(0))
    with torch.no_grad():
        mechanism.conditioner.bias[2] += 1
    changed = mechanism.predict(noise, torch.zeros(4000, 0))
    assert ((changed == value) | (changed == 2)).all()
    assert (changed != value).any()


@pytest.mark.parametrize("kind", ["bernoulli", "categorical", "zero_inflated"])
def test_random_abduction_follows_the_generator_or_the_global_seed(kind):
    mechanism, parents, value = build(kind, 2), encoded_parents(5, 2), torch.ones(5)

    def abduct(seed: int | None) -> torch.Tensor:
        return mechanism.abduct(value, parents, None if seed is None else torch.Generator().manual_seed(seed))

    assert torch.equal(abduct(1), abduct(1)) and not torch.equal(abduct(1), abduct(2))
    torch.manual_seed(3)
    first = abduct(None)
    assert not torch.equal(first, abduct(None))
    torch.manual_seed(3)
    assert torch.equal(first, abduct(None))


@pytest.mark.parametrize("strength", [0, 1])
@torch.no_grad()
def test_a_mixed_density_has_a_mass_at_zero_and_the_rest_above(strength):
    mechanism = build("zero_inflated", 2, strength).double()
    for parents in encoded_parents(2, 2).double():
        location, log_scale, _ = mechanism.amount._transforms(parents[None], torch.float64)
        # a softplus's argument is the share of the maximum, half of the scale from -1 to 1
        grid = torch.linspace(-1, 1 + 2 * (location.abs() + 8 * log_scale.exp()).item(), 40_001).double()
        grid = torch.cat([-1 + torch.logspace(-5.6, -3, 10_001, dtype=torch.float64), grid[grid > -0.999]])
        density = mechanism.log_prob(grid, parents.expand(len(grid), -1)).exp()
        mass = mechanism.log_prob(torch.tensor([-1.0]).double(), parents[None]).exp().item()
        below = mechanism.sample(parents.expand(20_000, -1), torch.Generator().manual_seed(0))
        assert mass == pytest.approx((below == -1).double().mean().item(), abs=0.015)
        smallest = ((below > -1) & (below < grid[0])).double().mean().item()
        assert mass + smallest + torch.trapezoid(density, grid).item() == pytest.approx(1, abs=0.01)


@torch.no_grad()
def test_a_zero_keeps_its_noise_of_presence_and_draws_that_of_the_amount():
    mechanism, parents = build("zero_inflated", 2), encoded_parents(1, 2).expand(4000, -1)
    value = torch.where(torch.arange(4000) % 2 == 0, -1.0, 0.3)
    noise = mechanism.abduct(value, parents, torch.Generator().manual_seed(0))
    zero, positive = noise[::2, 1], noise[1::2, 1]
    assert positive.std() < 1e-12 and zero.mean().abs() < 0.1 and zero.std() == pytest.approx(1, abs=0.05)
    mechanism.presence.conditioner.bias += 1  # plaques become more likely: none vanishes, some appear
    after = mechanism.predict(noise, parents)
    torch.testing.assert_close(after[1::2], value[1::2], atol=1e-5, rtol=0)
    appeared = after[::2][after[::2] > -1]
    assert 0 < len(appeared) < 2000 and appeared.std() > 0.01


def test_a_zero_inflated_mechanism_learns_share_and_amounts():
    generator = torch.Generator().manual_seed(0)
    cause = torch.rand(2000, 1, generator=generator) * 2 - 1
    present = torch.rand(2000, generator=generator) < torch.sigmoid(3 * cause[:, 0])
    amount = (0.25 * torch.exp(0.5 * torch.randn(2000, generator=generator) + 0.3 * cause[:, 0])).clamp(max=1)
    value = torch.where(present, 2 * amount - 1, -1.0)
    torch.manual_seed(0)
    mechanism = ZeroInflatedMechanism(1)
    optimizer = torch.optim.Adam(mechanism.parameters(), lr=0.03)
    for _ in range(150):
        optimizer.zero_grad()
        (-mechanism.log_prob(value, cause).mean()).backward()
        optimizer.step()
    for level in (-0.7, 0.7):
        sample = mechanism.sample(torch.full((4000, 1), level), generator)
        share = torch.sigmoid(torch.tensor(3 * level)).item()
        assert (sample > -1).float().mean().item() == pytest.approx(share, abs=0.05)
        median = (sample[sample > -1].median().item() + 1) / 2
        assert median == pytest.approx(0.25 * math.exp(0.3 * level), rel=0.12)


def test_a_flow_learns_a_skewed_bimodal_density():
    torch.manual_seed(0)
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.7, 0.3])),
        torch.distributions.Normal(torch.tensor([-0.5, 0.6]), torch.tensor([0.2, 0.1])),
    )
    value = mixture.sample((1000,))
    mechanism, parents = FlowMechanism(0), torch.zeros(1000, 0)
    optimizer = torch.optim.Adam(mechanism.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = -mechanism.log_prob(value, parents).mean()
        loss.backward()
        optimizer.step()
    entropy = -mixture.log_prob(value).mean().item()
    gaussian = 0.5 * math.log(2 * math.pi * math.e * value.var().item())
    assert loss.item() < entropy + 0.2 * (gaussian - entropy), "most of what a Gaussian loses is won"
    assert mechanism.predict(torch.zeros(1, dtype=torch.float64), parents[:1]).item() == pytest.approx(
        value.median().item(), abs=0.1
    )

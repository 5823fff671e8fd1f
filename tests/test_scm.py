import math

import pytest
import torch

from segcft_ext.mechanisms import Mechanism
from segcft_ext.scm import SCM
from segcft_ext.variables import Variables

DEFINITIONS = [
    {"name": "heart", "kind": "continuous"},
    {"name": "sex", "kind": "binary"},
    {"name": "age", "kind": "continuous"},
    {"name": "view", "kind": "categorical", "num_categories": 3},
    {"name": "type", "kind": "continuous"},  # a name that nn.ModuleDict would refuse
]
PARENTS = {"heart": ["age", "sex", "view"], "view": ["age"], "sex": ["age"]}


def draw(count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.stack(
        [
            10 + 2 * torch.randn(count),
            torch.randint(2, (count,)).float(),
            50 + 15 * torch.randn(count),
            torch.randint(3, (count,)).float(),
            torch.rand(count),
        ],
        dim=1,
    )


def build(parents: dict[str, list[str]] | None) -> SCM:
    """An SCM with random weights, so that every edge matters."""
    variables = Variables(DEFINITIONS)
    variables.fit(draw(200), ["percent", "", "years", "", ""])
    torch.manual_seed(1)
    scm = SCM(variables, parents)
    with torch.no_grad():
        for parameter in scm.parameters():
            parameter.add_(0.7 * torch.randn_like(parameter))
    return scm


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bitwise, missing values included."""
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def with_gaps(values: torch.Tensor) -> torch.Tensor:
    values = values.clone()
    values[torch.rand(values.shape, generator=torch.Generator().manual_seed(4)) < 0.3] = math.nan
    return values


def plaques(count: int) -> torch.Tensor:
    """Two plaque areas, each absent from half of the cases, and the lumen's area."""
    torch.manual_seed(5)
    present = torch.rand(count, 2) < 0.5
    return torch.cat([present * (0.2 + 4 * torch.rand(count, 2)), 20 + torch.rand(count, 1)], dim=1)


def test_a_plaque_that_vanishes_or_appears_moves_its_children_and_no_action_moves_nothing():
    names = ["proximal", "mid", "lumen"]
    definitions = [{"name": n, "kind": "continuous", "zero_inflated": n != "lumen"} for n in names]
    variables = Variables(definitions)
    variables.fit(plaques(200), ["mm2"] * 3)
    torch.manual_seed(1)
    scm = SCM(variables, {"mid": ["proximal"], "lumen": ["proximal", "mid"]})
    with torch.no_grad():
        for parameter in scm.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    values = plaques(60)
    scm.nll(values).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scm.parameters())
    noise = scm.abduct(values, torch.Generator().manual_seed(0))
    torch.testing.assert_close(scm.predict(noise), values, atol=1e-3, rtol=1e-4)
    assert ((scm.predict(noise)[:, :2] == 0) == (values[:, :2] == 0)).all(), "zero is exactly zero"
    assert same(scm.counterfactual(values, {"proximal": values[:, 0]}), values)
    generator = torch.Generator().manual_seed(0)
    for target in (0.0, 3.0):
        after = scm.counterfactual(values, {"proximal": torch.full((60,), target)}, generator)
        assert after.isfinite().all() and (after[:, 0] == target).all() and (after[:, 1] >= 0).all()
        changed = values[:, 0] != target
        assert same(after[~changed], values[~changed])
        assert (after[changed, 2] != values[changed, 2]).all()
    first, second = (
        scm.counterfactual(values, {"proximal": torch.full((60,), 3.0)}, torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert same(first, second), "what a zero does not tell is drawn by the generator"


def test_without_edges_it_is_independent_marginals():
    scm, values = build(None), draw(20)
    scaled = scm.variables.scale(values)
    marginals = [m.log_prob(scaled[:, k], torch.zeros(20, 0)) for k, m in enumerate(scm.mechanisms)]
    torch.testing.assert_close(scm.log_prob(values), torch.stack(marginals, dim=1))
    gapped = with_gaps(values)
    target = torch.full((20,), 80.0)
    expected = gapped.clone()
    expected[:, 2] = 80
    assert same(scm.counterfactual(gapped, {"age": target}), expected)


def test_likelihood_of_missing_values_is_zero_without_nan_gradients():
    scm, values = build(PARENTS), with_gaps(draw(30))
    values.requires_grad_()
    log_prob = scm.log_prob(values)
    missing = values.isnan()
    assert log_prob.isfinite().all()
    assert (log_prob[missing] == 0).all()
    assert (log_prob[missing[:, 2], 0] == 0).all(), "a missing parent leaves nothing to say about its child"
    known = ~missing.any(dim=1)
    assert known.any()
    torch.testing.assert_close(log_prob[known], scm.log_prob(values[known]))
    assert scm.nll(values).item() == pytest.approx(-log_prob.sum(dim=1).mean().item())
    scm.nll(values).backward()
    assert values.grad.isfinite().all() and (values.grad[missing] == 0).all()
    assert all(p.grad.isfinite().all() for p in scm.parameters())


def test_noise_of_known_values_gives_them_back():
    scm, values = build(PARENTS), draw(50)
    torch.testing.assert_close(scm.predict(scm.abduct(values)), values, rtol=1e-5, atol=1e-4)


def test_no_action_gives_the_factual_values_back_bitwise():
    scm, values = build(PARENTS), with_gaps(draw(50))
    assert same(scm.counterfactual(values, {}), values)
    nothing = torch.zeros(50, 5, dtype=torch.bool)
    assert same(scm.counterfactual_rows(values, draw(50) + 1, nothing), values)
    complete = draw(50)
    assert same(scm.counterfactual(complete, {"age": complete[:, 2]}), complete), "do(age = its factual value)"


def test_only_descendants_change_and_others_are_copied_bitwise():
    scm, values = build(PARENTS), draw(50)
    result = scm.counterfactual(values, {"view": (values[:, 3] + 1) % 3})
    assert same(result[:, [1, 2, 4]], values[:, [1, 2, 4]])
    assert (result[:, 0] != values[:, 0]).all()
    result = scm.counterfactual(values, {"age": values[:, 2] + 20})
    assert same(result[:, 4], values[:, 4])
    assert (result[:, 0] != values[:, 0]).any() and (result[:, 3] != values[:, 3]).any()
    result = scm.counterfactual(values, {"age": values[:, 2] + 20, "heart": torch.full((50,), 9.0)})
    assert (result[:, 0] == 9).all(), "what is acted on is cut off from its parents"
    assert set(result[:, 1].tolist()) == {0, 1} and set(result[:, 3].tolist()) == {0, 1, 2}


def test_the_way_back_restores_continuous_values():
    scm, values = build({"heart": ["age", "sex"]}), draw(50)
    there = scm.counterfactual(values, {"age": values[:, 2] + 20})
    back = scm.counterfactual(there, {"age": values[:, 2]})
    assert (there[:, 0] - values[:, 0]).abs().max() > 0.1
    # The values in between are single precision, whose rounding a random spline magnifies.
    torch.testing.assert_close(back, values, rtol=0, atol=0.02)


def test_rows_with_their_own_actions_equal_one_action_for_all():
    scm, values = build(PARENTS), draw(6)
    target = draw(6).flip(0)
    mask = torch.eye(5, dtype=torch.bool)[torch.tensor([0, 1, 2, 3, 4, 2])]
    target[5, 2] = math.nan
    rows = scm.counterfactual_rows(values, target, mask, torch.Generator().manual_seed(7))
    for row, k in enumerate([0, 1, 2, 3, 4]):
        name = scm.variables.names[k]
        alone = scm.counterfactual(values, {name: target[row, k].expand(6)}, torch.Generator().manual_seed(7))
        torch.testing.assert_close(rows[row], alone[row])
    assert same(rows[5], values[5]), "a missing target is no action"


def test_gradient_reaches_the_targets_through_the_descendants():
    scm, values = build(PARENTS), draw(20)
    target = (values[:, 2] + 5).requires_grad_()
    scm.counterfactual(values, {"age": target})[:, 0].sum().backward()
    assert target.grad.isfinite().all() and (target.grad != 0).all()


def test_missing_descendants_are_completed_from_the_prior_only_where_the_action_reaches():
    scm, values = build(PARENTS), draw(400)
    values[:, 0] = math.nan
    assert scm.counterfactual(values, {"type": values[:, 4] + 1})[:, 0].isnan().all()
    target = torch.full((400,), 60.0)
    first = scm.counterfactual(values, {"age": target}, torch.Generator().manual_seed(1))
    again = scm.counterfactual(values, {"age": target}, torch.Generator().manual_seed(1))
    other = scm.counterfactual(values, {"age": target}, torch.Generator().manual_seed(2))
    assert first.isfinite().all() and same(first, again) and not same(first, other)
    noise = scm.abduct(values, torch.Generator().manual_seed(1))["heart"]
    assert noise.mean().abs() < 0.2 and noise.std().item() == pytest.approx(1, abs=0.1)


def test_likelihood_and_counterfactuals_of_rows_never_wait_for_the_device():
    scm, values = build(PARENTS).to("meta"), with_gaps(draw(20)).to("meta")  # no value can be read from there
    scm.nll(values).backward()
    mask = torch.ones(20, 5, dtype=torch.bool, device="meta")
    assert scm.counterfactual_rows(values, values + 1, mask).shape == (20, 5)


def test_values_are_not_rounded_to_half_precision():
    scm, values = build(PARENTS), draw(20)
    do = {"age": values[:, 2] + 7}
    noise = scm.abduct(values, torch.Generator().manual_seed(0))
    expected = (
        scm.log_prob(values),
        scm.predict(noise, do),
        scm.counterfactual(values, do, torch.Generator().manual_seed(0)),
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert same(scm.abduct(values, torch.Generator().manual_seed(0))["heart"], noise["heart"])
        found = (
            scm.log_prob(values),
            scm.predict(noise, do),
            scm.counterfactual(values, do, torch.Generator().manual_seed(0)),
        )
    assert all(map(same, found, expected))


def test_samples_follow_the_graph():
    scm = build(PARENTS)
    samples = scm.sample(500, torch.Generator().manual_seed(0))
    assert samples.shape == (500, 5) and samples.isfinite().all()
    assert same(samples, scm.sample(500, torch.Generator().manual_seed(0)))
    assert scm.log_prob(samples).isfinite().all()


def test_state_survives_saving_and_strict_loading(tmp_path):
    scm, values = build(PARENTS), draw(10)
    torch.save(scm.state_dict(), tmp_path / "scm.pt")
    other = SCM(Variables(DEFINITIONS), PARENTS)
    other.load_state_dict(torch.load(tmp_path / "scm.pt", weights_only=True))
    assert same(other.log_prob(values), scm.log_prob(values))
    assert other.variables.units == scm.variables.units
    with pytest.raises(ValueError, match="parents: the checkpoint holds"):
        SCM(Variables(DEFINITIONS), {**PARENTS, "sex": ["type"]}).load_state_dict(scm.state_dict())


def test_faulty_graphs_and_actions_are_named():
    variables = Variables(DEFINITIONS)
    with pytest.raises(ValueError, match="cycle sex -> age -> sex"):
        SCM(variables, {"sex": ["age"], "age": ["sex"]})
    with pytest.raises(ValueError, match="sex: unknown variable 'weight'"):
        SCM(variables, {"sex": ["weight"]})
    with pytest.raises(RuntimeError, match="no range yet"):
        SCM(variables).log_prob(draw(3))
    scm, values = build(PARENTS), draw(3)
    with pytest.raises(ValueError, match="no variable 'weight'"):
        scm.counterfactual(values, {"weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"do\['age'\]: found shape \(2,\), expected a tensor of shape \(3,\)"):
        scm.counterfactual(values, {"age": torch.ones(2)})
    with pytest.raises(ValueError, match=r"do\['age'\]: found \[nan, 1.0, 1.0\], expected finite"):
        scm.counterfactual(values, {"age": torch.tensor([math.nan, 1, 1])})


def test_a_known_linear_model_is_recovered_with_its_counterfactuals():
    """age -> heart: heart = 5 + 0.1 age + noise, so ten years more are 1 more, noise kept."""
    torch.manual_seed(0)
    age = 50 + 12 * torch.randn(1000)
    values = torch.stack([age, 5 + 0.1 * age + 0.5 * torch.randn(1000)], dim=1)
    variables = Variables([{"name": "age", "kind": "continuous"}, {"name": "heart", "kind": "continuous"}])
    variables.fit(values, ["years", "percent"])
    scm = SCM(variables, {"heart": ["age"]})
    optimizer = torch.optim.Adam(scm.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        scm.nll(values).backward()
        optimizer.step()
    result = scm.counterfactual(values, {"age": values[:, 0] + 10})
    error = (result[:, 1] - (values[:, 1] + 1)).abs()
    assert error.mean() < 0.1, "a tenth of the effect"
    no_model = (values[:, 1] - (values[:, 1] + 1)).abs()
    assert error.mean() < 0.1 * no_model.mean()
    samples = scm.sample(4000, torch.Generator().manual_seed(0))
    assert samples[:, 1].std().item() == pytest.approx(values[:, 1].std().item(), rel=0.1)
    assert torch.corrcoef(samples.T)[0, 1].item() == pytest.approx(torch.corrcoef(values.T)[0, 1].item(), abs=0.03)


def set_linear(mechanism: Mechanism, slopes: list[float], intercept: float, scale: float | None = None) -> None:
    """First output of the conditioner a linear function of the parents, exactly, as silu(x) - silu(-x) = x.

    Of a flow that is the mean of a Gaussian of this scale, for without its other outputs the spline is the identity.
    """
    conditioner = mechanism.conditioner
    with torch.no_grad():
        conditioner.bias.zero_()
        conditioner.bias[0] = intercept
        if scale is not None:
            conditioner.bias[1] = 4 * math.atanh(math.log(scale / 0.4) / 4)  # of the soft limit of the logarithm
        if slopes:
            first, _, last = conditioner.network
            for parameter in (first.weight, first.bias, last.weight):
                parameter.zero_()
            for column, slope in enumerate(slopes):
                for sign in (1, -1):
                    row = 2 * column + (sign < 0)
                    first.weight[row, column], last.weight[0, row] = sign, sign * slope


def test_a_model_made_by_hand_has_the_distributions_and_counterfactuals_of_theory():
    """sex -> age -> heart and sex -> heart, linear Gaussian in scaled units, 30 % men."""
    names = ["heart", "age", "sex"]
    variables = Variables([{"name": name, "kind": "binary" if name == "sex" else "continuous"} for name in names])
    variables.fit(torch.tensor([[5.0, 20, 0], [15, 80, 1]]), ["percent", "years", ""])
    scm = SCM(variables, {"heart": ["sex", "age"], "age": ["sex"]})
    heart, age, sex = scm.mechanisms
    set_linear(sex, [], math.log(0.3 / 0.7))
    set_linear(age, [0.3], 0.1, 0.2)
    set_linear(heart, [0.4, -0.5], 0.05, 0.25)  # of sex as -1 or 1, and of the scaled age
    count = 100_000
    generator = torch.Generator().manual_seed(0)
    noise = {n: m.sample_noise(count, generator) for n, m in zip(names, scm.mechanisms)}

    def moments(values: torch.Tensor) -> tuple[float, float]:
        scaled = variables.scale(values)[:, 0]
        return scaled.mean().item(), scaled.std().item()

    with torch.no_grad():
        values = scm.predict(noise)
        # The variance of what follows from sex, -1 or 1, is 4 p (1 - p) times the square of its whole effect.
        assert values[:, 2].mean().item() == pytest.approx(0.3, abs=0.005)
        whole = 0.4 - 0.5 * 0.3
        expected = 0.05 - 0.5 * 0.1 + whole * -0.4, math.sqrt(0.84 * whole**2 + (0.5 * 0.2) ** 2 + 0.25**2)
        assert moments(values) == pytest.approx(expected, abs=0.005)

        # do(age = 62), 0.4 on the scale: sex keeps its share, so this is not the mean of those who are 62 years old.
        acted = scm.predict(noise, {"age": torch.full((count,), 62.0)})
        assert torch.equal(acted[:, 2], values[:, 2]) and (acted[:, 1] == 62).all()
        wanted = 0.05 + 0.4 * -0.4 - 0.5 * 0.4
        assert moments(acted) == pytest.approx((wanted, math.sqrt(0.84 * 0.4**2 + 0.25**2)), abs=0.005)
        seen = moments(values[(values[:, 1] - 62).abs() < 0.5])[0]
        share = 0.3 / (0.3 + 0.7 * math.exp(-0.5 * 3**2))  # men are 62 on average, women three deviations younger
        assert seen == pytest.approx(0.05 + 0.4 * (2 * share - 1) - 0.5 * 0.4, abs=0.02) and seen > wanted + 0.5

        # Counterfactuals: the noise of each case is kept, in the grandchild too.
        some = values[:500]
        nothing, other = torch.zeros(500), 2 - 4 * some[:, 2]  # the change of sex, from -1 to 1 or back
        for name, target, change_of_sex, change_of_age in (
            ("age", some[:, 1] - 15, nothing, nothing - 0.5),
            ("sex", 1 - some[:, 2], other, 0.3 * other),
        ):
            found = variables.scale(scm.counterfactual(some, {name: target})) - variables.scale(some)
            change_of_heart = 0.4 * change_of_sex - 0.5 * change_of_age
            torch.testing.assert_close(found[:, 0], change_of_heart, atol=1e-5, rtol=0)
            torch.testing.assert_close(found[:, 1], change_of_age, atol=1e-5, rtol=0)

        # Of an age that is not known, whatever is drawn for it, the change is known.
        unknown = torch.where(torch.tensor([False, True, False]), torch.nan, some)
        found = variables.scale(scm.counterfactual(unknown, {"sex": 1 - some[:, 2]})) - variables.scale(some)
        torch.testing.assert_close(found[:, 0], whole * other, atol=1e-5, rtol=0)

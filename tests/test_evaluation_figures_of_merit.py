"""Each figure of the evaluation on inputs whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.metrics import structural_similarity
from torch import nn

from segcft_ext.dscm import Counterfactual
from segcft_ext.evaluation.axioms import composition, l1, reversibility
from segcft_ext.evaluation.bootstrap import _drawn, mean_interval, ratio_interval
from segcft_ext.evaluation.effectiveness import drift, error, slope
from segcft_ext.evaluation.judge import floor, structure_scores
from segcft_ext.evaluation.locality import change, dilate, leakage, margin, region_of_change
from segcft_ext.evaluation.methods import Identity
from segcft_ext.evaluation.positional import positional_leakage
from segcft_ext.evaluation.presence import presence, presence_floor
from segcft_ext.evaluation.realism import BottleneckFeatures, realism
from segcft_ext.evaluation.truth import image_quality
from segcft_ext.networks.folding import folding, jacobian_determinant
from segcft_ext.networks.segmentor import Segmentor

CASES = np.repeat(np.arange(30), 4)


def test_error_of_known_numbers() -> None:
    found = error(np.array([11.0, 18.0]), np.array([10.0, 20.0]), ["a", "b"])
    assert found["mape"] == pytest.approx(10)
    assert found["mae"] == pytest.approx(1.5)
    assert found["n"] == 2
    assert found["ci95"] == pytest.approx([10, 10])


def test_error_leaves_out_missing_targets_and_does_not_divide_by_zero() -> None:
    found = error(np.array([1.0, 2.0, 3.0]), np.array([np.nan, 0.0, 4.0]), ["a", "b", "c"])
    assert found["n"] == 2
    assert found["mape"] == pytest.approx(25)
    assert found["mae"] == pytest.approx(1.5)


def test_drift_compares_the_judge_with_itself() -> None:
    none = np.zeros(2)
    assert drift(none[:1], none[:1], np.array([10.0]), ["a"])["drift"] == 0
    assert drift(np.array([1.0]), none[:1], np.array([10.0]), ["a"])["drift"] == pytest.approx(10)
    assert drift(np.array([1.0]), np.array([3.0]), np.array([10.0]), ["a"])["drift"] == pytest.approx(20)
    gone = drift(np.array([1.0, 2.0]), none, np.array([0.0, 4.0]), ["a", "b"])
    assert gone["drift_mae"] == pytest.approx(1.5) and gone["drift"] == pytest.approx(50)


def test_what_is_missing_has_no_part_in_errors_and_slopes() -> None:
    nan = np.nan
    found = error(np.array([11.0, nan, 18.0]), np.array([10.0, 10.0, 20.0]), list("abc"))
    assert (found["n"], found["mae"], found["mape"]) == (2, pytest.approx(1.5), pytest.approx(10))
    achieved, wanted = np.array([0.5, 1.0, nan, 1.5, 7.0]), np.array([1.0, 2.0, 9.0, 3.0, nan])
    line = slope(achieved, wanted, list("abcde"))
    assert (line["n"], line["slope"], line["intercept"]) == (3, pytest.approx(0.5), pytest.approx(0, abs=1e-9))


def test_percentages_are_of_the_magnitude_and_their_intervals_are_theirs() -> None:
    assert error(np.array([-11.0]), np.array([-10.0]), ["a"])["mape"] == pytest.approx(10)
    measured = np.random.default_rng(0).normal(5, 1, 120)
    found = error(measured, np.full(120, 5.0), CASES)  # a percentage is twenty times the difference
    assert found["ci95"] == pytest.approx([20 * bound for bound in found["mae_ci95"]])
    assert found["mae_ci95"] == mean_interval(np.abs(measured - 5), CASES)
    found = drift(measured, np.full(120, 5.0), np.full(120, -5.0), CASES)
    assert found["drift_ci95"] == pytest.approx([20 * bound for bound in found["drift_mae_ci95"]])
    assert found["drift_mae_ci95"] == mean_interval(np.abs(measured - 5), CASES)


def test_presence_divides_the_interventions_in_four() -> None:
    factual, target = np.array([0.0, 0.0, 2.0, 2.0, 2.0]), np.array([0.0, 3.0, 0.0, 4.0, 1.0])
    found = presence(np.array([0.5, 0.0, 0.0, 5.0, 1.0]), target, factual, list("abcde"))
    assert {group: (cell["mae"], cell["seen"], cell["n"]) for group, cell in found.items()} == {
        "absent_absent": (0.5, 1, 1),
        "absent_present": (3, 0, 1),
        "present_absent": (0, 0, 1),
        "present_present": (0.5, 1, 2),
    }
    found = presence_floor(np.array([0.0, 1.0, 2.5]), np.array([0.0, 0.0, 2.0]), list("abc"))
    assert (found["absent"]["mae"], found["absent"]["seen"]) == (0.5, 0.5)
    assert (found["present"]["mae"], found["present"]["seen"]) == (0.5, 1)
    assert math.isnan(presence(factual, factual, factual, list("abcde"))["absent_present"]["seen"])


def test_positional_leakage_is_the_change_elsewhere_over_the_change_here() -> None:
    own, others = np.array([2.0, -4.0]), np.array([[1.0, 0.0], [-1.0, 1.0]])
    found = positional_leakage(own, others, ["a", "b"])
    assert found["leakage"] == pytest.approx(0.75 / 3) and found["own"] == 3 and found["others"] == 0.75
    assert math.isnan(positional_leakage(0 * own, others, ["a", "b"])["leakage"])


def test_slope_and_intercept_are_recovered() -> None:
    wanted = np.random.default_rng(0).normal(size=120)
    found = slope(0.5 + 0.8 * wanted, wanted, CASES)
    assert found["slope"] == pytest.approx(0.8)
    assert found["intercept"] == pytest.approx(0.5)
    assert found["ci95"] == pytest.approx([0.8, 0.8])
    assert math.isnan(slope(np.ones(3), np.ones(3), ["a", "b", "c"])["slope"])


def test_bootstrap_covers_the_mean_and_resamples_cases_not_rows() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(100):
        values = np.repeat(rng.normal(5, 1, 30), 4)  # four equal rows for each case carry no more than one
        low, high = mean_interval(values, CASES, seed=trial)
        hits += low <= 5 <= high
    assert 85 <= hits <= 100
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(30), rel=0.4)
    first = mean_interval(values, CASES, seed=3)
    _drawn.cache_clear()
    assert mean_interval(values, CASES, seed=3) == first
    assert all(map(math.isnan, mean_interval(np.ones(4), ["a"] * 4)))


def test_a_case_counts_with_all_of_its_rows() -> None:
    values = np.tile([0.0, 1.0, 2.0, 3.0], 30)  # every case has the same mean
    assert mean_interval(values, CASES) == pytest.approx([1.5, 1.5])
    assert ratio_interval(values, values + 1, CASES) == pytest.approx([0.6, 0.6])


def test_ninety_five_percent_are_those_of_a_gaussian_for_many_cases() -> None:
    values = np.random.default_rng(2).normal(size=1000)
    low, high = mean_interval(values, np.arange(1000))
    assert (low, high) == pytest.approx(
        values.mean() + np.array([-1.96, 1.96]) * values.std() / math.sqrt(1000), abs=4e-3
    )


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.25, 1.5, 2.4, 5.0])
@pytest.mark.parametrize("shape", [(20, 24), (8, 9, 10)])
def test_dilation_is_the_thresholded_distance_transform(radius: float, shape: tuple[int, ...]) -> None:
    mask = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)) > 0.98
    expected = np.stack([distance_transform_edt(~m[0].numpy()) <= radius for m in mask])[:, None]
    assert np.array_equal(dilate(mask, radius).numpy(), expected)


def test_margin_is_five_pixels_at_256() -> None:
    assert margin((256, 256)) == 5
    assert margin((64, 64)) == 1.25
    assert margin((64, 128, 32)) == 2.5


def test_leakage_of_a_change_inside_and_outside() -> None:
    before = torch.zeros(1, 1, 64, 64, dtype=torch.long)
    before[..., 20:30, 20:30] = 1
    after = torch.zeros_like(before)
    after[..., 20:30, 20:40] = 1
    image = torch.zeros(1, 1, 64, 64)
    masks = [torch.cat([label == 1, label == 2], 1) for label in (before, after)]
    region = region_of_change(*masks, torch.tensor([[True, False]]))
    assert torch.equal(region, dilate(after == 1, 1.25))
    moved = image + 0.4 * region
    assert [float(v) for v in change(image, moved, region)] == pytest.approx([0, 0.4])
    hazy = image + torch.where(region, 0.4, 0.1)
    outside, inside = change(image, hazy, region)
    found = leakage(outside.numpy(), inside.numpy(), ["a"])
    assert found["leakage"] == pytest.approx(0.25)


def test_leakage_of_no_change_is_zero() -> None:
    found = leakage(np.zeros(4), np.zeros(4), list("aabb"))
    assert found["leakage"] == 0
    assert found["ci95"] == [0, 0]


def test_a_change_without_a_region_leaks_and_is_not_left_out() -> None:
    """A haze over the whole image, in which nothing has appeared, beside a perfect case."""
    found = leakage(np.array([0.5, 0.0, np.nan]), np.array([np.nan, 0.4, np.nan]), ["a", "b", "c"])
    assert found["leakage"] == pytest.approx(0.25 / 0.4)
    assert (found["n"], found["n_inside"]) == (2, 1)
    assert found["ci95"][1] > 0


def test_leakage_where_every_row_has_a_region_is_the_ratio_of_means() -> None:
    outside, inside = np.random.default_rng(0).random((2, 12))
    cases = list("aabbccddeeff")
    found = leakage(outside, inside, cases)
    assert found["leakage"] == pytest.approx(outside.mean() / inside.mean())
    assert found["ci95"] == pytest.approx(ratio_interval(outside, inside, cases))
    assert found["n"] == found["n_inside"] == 12


def test_region_follows_only_what_ought_to_change() -> None:
    label = torch.tensor([[[[0, 1, 2]]], [[[0, 1, 2]]]]).repeat(1, 1, 3, 1)
    masks = torch.cat([label == 1, label == 2], 1)
    region = region_of_change(masks, masks, torch.tensor([[True, False], [False, True]]))
    # a margin of 5 / 256 * 3 pixels reaches no neighbour
    assert region[0, 0, 0].tolist() == [False, True, False]
    assert region[1, 0, 0].tolist() == [False, False, True]


def test_folding_is_seen_and_a_shift_is_not_folding() -> None:
    rows = torch.arange(16.0).view(1, 1, 16, 1).expand(1, 1, 16, 16)
    mirrored = torch.cat([15 - 2 * rows, torch.zeros_like(rows)], 1)  # phi = 15 - row
    share, minimum = folding(jacobian_determinant(mirrored))
    assert float(share) == 1
    assert float(minimum) == pytest.approx(-1, abs=1e-5)
    share, minimum = folding(jacobian_determinant(torch.full((1, 2, 16, 16), 3.0)))
    assert float(share) == 0
    assert float(minimum) == pytest.approx(1, abs=1e-5)


def test_a_cell_without_area_folds() -> None:
    share, minimum = folding(torch.tensor([[[1.0, 0.5], [0.0, -0.1]], [[1.0, 2.0], [0.3, 0.2]]]))
    assert share.tolist() == [0.5, 0] and minimum.tolist() == pytest.approx([-0.1, 0.2])


def test_a_distance_between_images_is_the_mean_over_their_pixels() -> None:
    image = torch.zeros(2, 1, 4, 4)
    other = image.clone()
    other[0, 0, 0], other[1, 0, :, 0] = 1.2, -0.4
    assert l1(image, other).tolist() == pytest.approx([0.3, 0.1])


class Fading(Identity):
    """Each pass darkens the image by 0.01, and by noise at a temperature above zero."""

    def counterfactual(self, image, values, do, temperature=0.0):  # type: ignore[no-untyped-def]
        noise = temperature * torch.randn_like(image)
        return Counterfactual(image - 0.01 + noise, super().counterfactual(image, values, do).values)


def test_composition_counts_every_pass() -> None:
    image, values = torch.rand(2, 1, 8, 8), torch.tensor([[3.0, math.nan], [4.0, 1.0]])
    exact = composition(Identity(["a", "b"]), image, values, ["a"], temperature=1.0)
    assert {count: float(errors.max()) for count, errors in exact.items()} == {1: 0, 10: 0}
    fading = composition(Fading(["a", "b"]), image, values, ["a"])
    assert {count: float(errors[0]) for count, errors in fading.items()} == pytest.approx({1: 0.01, 10: 0.1}, rel=1e-3)
    sampled = composition(Fading(["a", "b"]), image, values, ["a"], temperature=1.0)
    assert float(sampled[1].min()) > 0.5


def test_composition_goes_on_from_the_last_variables() -> None:
    class Ageing(Identity):
        """Each pass adds one to ``b``, by which the image fades."""

        def counterfactual(self, image, values, do, temperature=0.0):  # type: ignore[no-untyped-def]
            after = super().counterfactual(image, values, do).values + torch.tensor([0.0, 1.0])
            return Counterfactual(image - 0.01 * after[:, 1].view(-1, 1, 1, 1), after)

    found = composition(Ageing(["a", "b"]), torch.zeros(1, 1, 8, 8), torch.tensor([[3.0, 0.0]]), ["a"])
    assert {count: float(errors) for count, errors in found.items()} == pytest.approx({1: 0.01, 10: 0.55})


def test_reversibility_takes_the_intervention_back() -> None:
    class Shift(Identity):
        """Adds the change of ``a`` to the image."""

        def counterfactual(self, image, values, do, temperature=0.0):  # type: ignore[no-untyped-def]
            after = super().counterfactual(image, values, do).values
            return Counterfactual(image + (after - values)[:, 0].view(-1, 1, 1, 1), after)

    image, values = torch.rand(2, 1, 8, 8), torch.tensor([[3.0], [4.0]])
    method = Shift(["a"])
    result = method.counterfactual(image, values, {"a": torch.tensor([5.0, 1.0])})
    back = {"a": values[:, 0]}
    assert float(reversibility(method, image, result.image, result.values, back).max()) == pytest.approx(0, abs=1e-6)
    found = reversibility(Identity(["a"]), image, result.image, result.values, back)
    assert found.tolist() == pytest.approx([2, 3])


def test_structure_scores_by_hand() -> None:
    true = torch.tensor([[[[1, 1, 0, 0]]], [[[0, 0, 0, 0]]]])
    seen = torch.tensor([[[[1, 0, 0, 0]]], [[[1, 0, 0, 0]]]])
    dice, percent = structure_scores(seen, true, {"disc": 1})["disc"]
    assert float(dice[0]) == pytest.approx(2 / 3)
    assert float(percent[0]) == pytest.approx(50)
    assert math.isnan(dice[1]) and math.isnan(percent[1])  # nothing to find in the second


def test_image_quality_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 1, 96, 96, generator=generator) - 0.5
    near = torch.zeros(1, 1, 96, 96, dtype=torch.bool)
    near[..., :10] = True
    found = image_quality(truth + 0.02, truth, near)
    assert float(found["psnr"]) == pytest.approx(40, abs=1e-3)  # 10 log10(2^2 / 0.02^2)
    assert float(found["mae"]) == pytest.approx(0.02, abs=1e-6)
    assert float(image_quality(truth + 0.2 * near, truth, near)["psnr_near"]) == pytest.approx(20, abs=1e-3)
    assert float(image_quality(truth + 0.2 * ~near, truth, near)["psnr_near"]) == math.inf
    assert float(found["ssim"]) > 0.99
    noisy = (truth + 0.2 * torch.randn(truth.shape, generator=generator)).clamp(-1, 1)
    for contrast in (1, 0.05):
        expected = structural_similarity(
            *((contrast * i[0, 0].numpy() + 1).astype(float) for i in (truth, noisy)),
            data_range=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        found = image_quality(contrast * noisy, contrast * truth, near)
        assert float(found["ssim"]) == pytest.approx(expected, abs=0.02)  # borders differ
    same = image_quality(truth, truth, near)
    assert float(same["psnr"]) == math.inf
    assert float(same["ssim"]) == pytest.approx(1)


def test_realism_grows_with_the_distance_between_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    real, other = (torch.randn(200, 8, generator=generator) for _ in range(2))
    cases = [str(number) for number in range(200)]
    same, near, far = (realism(features, cases, real, cases) for features in (real, other, other + 1))
    assert near["fid"] < far["fid"] and abs(near["kid"]) < 0.25 * far["kid"]
    # a copy of the real images has no advantage over other real images: no image is compared with itself
    assert 0.5 < same["fid"] / near["fid"] < 2
    # nor have several equal images of one case
    copied = realism(torch.cat([other, other]), cases + cases, real, cases)
    assert copied["kid"] == pytest.approx(near["kid"], abs=0.1 * far["kid"])
    assert near == realism(other, cases, real, cases)
    # nor does it matter in which order the images of several cases come
    doubled = torch.cat([other, other + 1])
    turns = torch.arange(400).view(2, 200).T.flatten()
    assert realism(doubled, cases * 2, real, cases) == pytest.approx(
        realism(doubled[turns], [cases[n % 200] for n in turns], real, cases)
    )
    assert math.isnan(realism(real[:3], cases[:3], real[:3], cases[:3])["kid"])


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased squared distance of Binkowski et al. 2018, all pairs counted."""
    own, others, between = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((one, one), (other, other), (one, other)))
    n, m = len(one), len(other)
    return float(
        (own.sum() - np.trace(own)) / (n * (n - 1))
        + (others.sum() - np.trace(others)) / (m * (m - 1))
        - 2 * between.mean()
    )


def test_realism_is_the_distance_of_gaussians_and_of_kernels_in_standardised_features() -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, 400, 2, generator=generator)
    real, other = (drawn - drawn.mean(1, keepdim=True)) / drawn.std(1, keepdim=True)
    cases = [str(number) for number in range(400)]
    moved = 2 * other + torch.tensor([1.5, 0.0])
    found = realism(moved, cases, real, cases)
    # Of N(0, 1) and N(m, s²), for each feature: m² + (s - 1)².
    assert found["fid"] == pytest.approx(1.5**2 + 2 * 1, rel=0.1)
    assert found["kid"] == pytest.approx(kernel_distance(moved.numpy(), real.numpy()), rel=0.15)
    assert 0 < found["kid_sd"] < 0.5 * found["kid"] and found["n"] == 400
    units = torch.tensor([20.0, 0.5])  # of the features, which do not matter
    again = realism(units * moved - 7, cases, units * real - 7, cases)
    assert (again["fid"], again["kid"]) == pytest.approx((found["fid"], found["kid"]), rel=1e-3)


def test_a_feature_that_is_silent_on_real_images_does_not_drown_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    real, other = (torch.randn(60, 3, generator=generator) for _ in range(2))
    cases = [str(number) for number in range(60)]
    loud = realism(other, cases, real, cases)["fid"]
    silent = torch.tensor([1.0, 1.0, 1e-7])
    found = realism(silent * other + torch.tensor([0, 0, 1e-3]), cases, silent * real, cases)["fid"]
    assert found < 1.1 * loud
    assert math.isfinite(realism(other, cases, torch.ones_like(real), cases)["fid"])


def test_every_image_of_a_case_takes_part_in_the_realism() -> None:
    generator = torch.Generator().manual_seed(0)
    real, other = (torch.randn(60, 3, generator=generator) for _ in range(2))
    cases = [str(number) for number in range(60)]
    far = realism(other + 4, cases, real, cases)["fid"]
    for images in (torch.cat([other, other + 4]), torch.cat([other + 4, other])):
        assert 0.2 * far < realism(images, cases * 2, real, cases)["fid"] < 0.8 * far


@pytest.mark.parametrize(
    "architecture, arguments, count",
    [
        ("BasicUNet", {"features": (4, 4, 8, 8, 16, 4)}, 16),
        ("UNet", {"channels": (4, 8, 16), "strides": (2, 2), "num_res_units": 1}, 8 + 16),  # with the skip connection
        ("SegResNet", {"init_filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, 32),
    ],
)
def test_features_come_from_the_lowest_resolution(architecture: str, arguments: dict, count: int) -> None:
    network = Segmentor({"background": 0, "heart": 1}, architecture, **arguments).eval()
    features = BottleneckFeatures(network, torch.zeros(1, 1, 32, 32), "judge")
    found = features(torch.rand(3, 1, 32, 32))
    assert found.shape == (3, features.num_features)
    assert features.num_features == count
    assert features.layer in features.name


def test_features_are_averaged_over_the_image() -> None:
    image = torch.rand(3, 1, 8, 8)
    features = BottleneckFeatures(nn.Sequential(nn.AvgPool2d(2), nn.Upsample(8)), image[:1], "means")
    torch.testing.assert_close(features(image), image.mean((2, 3)))


def test_features_need_a_lower_resolution() -> None:
    with pytest.raises(ValueError, match="lower resolution"):
        BottleneckFeatures(nn.Sequential(nn.Conv2d(1, 4, 1)), torch.zeros(1, 1, 8, 8), "flat")


def test_the_floor_of_the_slope_is_the_judges_own() -> None:
    true = np.array([[8.0, 1.0], [10.0, 2.0], [12.0, 4.0]])
    shrunk = np.stack([10 + 0.75 * (true[:, 0] - 10), true[:, 1]], axis=1)  # nearer to the mean than it is
    found = floor(shrunk, true, list("abc"), ["heart", "lung"])
    assert found["heart"]["slope"] == pytest.approx(0.75) and found["lung"]["slope"] == pytest.approx(1)
    assert found["heart"]["mae"] == pytest.approx(1 / 3) and found["lung"]["mae"] == 0

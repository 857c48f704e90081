"""Losses by hand, the ignore mask, independence of how a batch is split, weights over time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from medseg_diff.diffusion.objectives import (
    cross_entropy,
    dice_loss,
    discretised_nll,
    focal,
    gaussian_kl,
    gaussian_nll,
    masked_mean,
    noise_weight,
    snr_weight,
    squared_error,
    step_terms,
    variational_bound,
)
from medseg_diff.diffusion.parameterisations import clean_from, learned_variance, noise_from
from medseg_diff.diffusion.paths import (
    BetaTable,
    BrownianBridge,
    Linear,
    Path,
    VarianceExploding,
    VariancePreserving,
    step_variances,
)

LOSSES = ["dice", "exclusive", "overlapping", "focal exclusive", "focal overlapping", "squared"]


def row(*values: float) -> Tensor:
    """One sample, one channel."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, -1)


def test_dice_by_hand():
    p, truth = row(1, 0.5, 0, 0), row(1, 1, 0, 0)
    assert float(dice_loss(p, truth)) == pytest.approx(1 - (2 * 1.5 + 1) / (1.5 + 2 + 1))
    assert float(dice_loss(p, truth, smooth=0.5)) == pytest.approx(1 - 3.5 / 4)
    assert float(dice_loss(truth, truth)) == pytest.approx(0)
    empty = row(0, 0, 0, 0)
    assert float(dice_loss(empty, empty)) == pytest.approx(0)
    assert float(dice_loss(empty, truth)) == pytest.approx(1 - 1 / 3)


def test_dice_is_averaged_over_samples_and_channels():
    full, empty = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    truth = torch.stack([torch.stack([full, full]), torch.stack([full, full])])
    p = torch.stack([torch.stack([full, full]), torch.stack([full, empty])])
    assert float(dice_loss(p, truth)) == pytest.approx((1 - 1 / 5) / 4)


def test_exclusive_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    truth = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    assert float(cross_entropy(logits, truth, exclusive=True)) == pytest.approx(math.log(4))
    flipped = cross_entropy(logits, truth.flip(1), exclusive=True)
    assert float(flipped) == pytest.approx(math.log(4 / 3))


def test_overlapping_cross_entropy_by_hand():
    logits = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    truth = torch.tensor([[[1.0], [1.0]]], dtype=torch.float64)
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert float(cross_entropy(logits, truth, exclusive=False)) == pytest.approx(expected)


def test_squared_error_by_hand():
    assert float(squared_error(row(1, 2, 3, 4), row(1, 0, 0, 4))) == pytest.approx(13 / 4)


def test_ignored_voxels_do_not_count():
    weight = row(1, 1, 0, 0)
    assert float(squared_error(row(1, 2, 9, 9), row(0, 0, 0, 0), weight)) == pytest.approx(5 / 2)
    p, truth = row(1, 0.5, 1, 1), row(1, 1, 0, 0)
    assert float(dice_loss(p, truth, weight)) == pytest.approx(1 - 4 / 4.5)
    logits = torch.tensor([[[0.0, 50.0], [0.0, 0.0]]], dtype=torch.float64)
    truth2 = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    for exclusive in (True, False):
        found = cross_entropy(logits, truth2, exclusive=exclusive, weight=row(1, 0))
        assert float(found) == pytest.approx(math.log(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_zero_at_ignored_voxels(loss: str):
    output = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    truth = torch.zeros(2, 3, 5)
    truth[:, 0] = 1
    weight = torch.ones(2, 1, 5)
    weight[:, :, 3:] = 0
    value_of(loss, output, truth, weight).backward()
    assert output.grad is not None
    assert not output.grad[..., 3:].any()
    assert bool((output.grad[..., :3] != 0).any())


def test_a_sample_with_no_truth_gives_zero_not_nan():
    values = torch.ones(2, 3, 4)
    weight = torch.zeros(2, 1, 4)
    weight[1] = 1
    assert float(masked_mean(values, weight)) == pytest.approx(0.5)


def test_masked_mean_of_everything_is_the_mean():
    values = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
    ones = torch.ones(2, 1, 4, dtype=torch.float64)
    assert float(masked_mean(values, None)) == pytest.approx(11.5)
    assert float(masked_mean(values, ones)) == pytest.approx(11.5)


def value_of(
    loss: str,
    output: Tensor,
    truth: Tensor,
    weight: Tensor | None,
    samples: Tensor | None = None,
) -> Tensor:
    if loss == "dice":
        return dice_loss(output.sigmoid(), truth, weight, samples=samples)
    if loss == "squared":
        return squared_error(output, truth, weight, samples)
    function = focal if loss.startswith("focal") else cross_entropy
    exclusive = loss.endswith("exclusive")
    return function(output, truth, exclusive=exclusive, weight=weight, samples=samples)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("masked", [False, True])
def test_two_half_batches_average_to_the_whole(loss: str, masked: bool):
    generator = torch.Generator().manual_seed(3)
    output = torch.randn(4, 3, 6, 5, generator=generator, dtype=torch.float64)
    truth = (
        torch.nn.functional.one_hot(torch.randint(3, (4, 6, 5), generator=generator), 3)
        .movedim(-1, 1)
        .double()
    )
    weight = (torch.rand(4, 1, 6, 5, generator=generator) > 0.4).double() if masked else None
    if weight is not None:
        weight[0] = 0
        weight[0, 0, 0, 0] = 1
    whole = value_of(loss, output, truth, weight)
    halves = [
        value_of(loss, output[i], truth[i], None if weight is None else weight[i])
        for i in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(sum(halves) / 2, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_samples_are_not_normalised(loss: str):
    generator = torch.Generator().manual_seed(4)
    output = torch.randn(3, 2, 5, generator=generator, dtype=torch.float64)
    truth = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 0, 1]] * 3), 2).mT.double()
    alone = [value_of(loss, output[i : i + 1], truth[i : i + 1], None) for i in range(3)]
    found = value_of(loss, output, truth, None, torch.tensor([2.0, 0.0, 0.5]))
    torch.testing.assert_close(found, (2 * alone[0] + 0.5 * alone[2]) / 3, rtol=1e-12, atol=0)


def test_focal_by_hand():
    logits = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    truth = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    classes = focal(logits, truth, exclusive=True, gamma=2)
    assert float(classes) == pytest.approx((3 / 4) ** 2 * math.log(4))
    # Regions: p = 1/2 where there is one, and p = 3/4 where there is none.
    regions = focal(logits, truth, exclusive=False, gamma=2)
    expected = ((1 / 2) ** 2 * math.log(2) + (3 / 4) ** 2 * math.log(4)) / 2
    assert float(regions) == pytest.approx(expected)
    present = focal(logits, torch.ones_like(truth), exclusive=False, gamma=2)
    assert float(present) == pytest.approx(((1 / 4) * math.log(2) + math.log(4 / 3) / 16) / 2)
    assert float(focal(logits, truth, exclusive=True)) == float(classes)
    with pytest.raises(ValueError, match="negative"):
        focal(logits, truth, exclusive=True, gamma=-1)


@pytest.mark.parametrize("exclusive", [True, False])
def test_focal_at_gamma_zero_is_cross_entropy(exclusive: bool):
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    truth = torch.rand(2, 3, 7, generator=generator, dtype=torch.float64).softmax(1)
    weight = (torch.rand(2, 1, 7, generator=generator) > 0.3).double()
    found = focal(logits, truth, exclusive=exclusive, gamma=0, weight=weight)
    wanted = cross_entropy(logits, truth, exclusive=exclusive, weight=weight)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_of_two_classes_is_that_of_one_region(gamma: float):
    z = torch.linspace(-4, 4, 9, dtype=torch.float64).reshape(1, 1, -1)
    truth = (torch.arange(9) % 2).double().reshape(1, 1, -1)
    pair = torch.cat([torch.zeros_like(z), z], 1)
    both = torch.cat([1 - truth, truth], 1)
    classes = focal(pair, both, exclusive=True, gamma=gamma)
    region = focal(z, truth, exclusive=False, gamma=gamma)
    torch.testing.assert_close(classes, region, rtol=1e-12, atol=0)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_has_finite_slopes_where_it_is_certain(exclusive: bool, gamma: float):
    logits = torch.tensor([[[200.0, -200.0], [-200.0, 200.0]]], requires_grad=True)
    truth = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    loss = focal(logits, truth, exclusive=exclusive, gamma=gamma)
    loss.backward()
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert float(logits.grad[0, 0, 1]) < -0.2


TIMES = torch.tensor([0.02, 0.3, 0.6, 0.95], dtype=torch.float64)


def test_min_snr_weights_by_hand():
    # alpha_bar 0.9 and 0.2: SNR 9 and 1/4.
    path, t = BetaTable([0.1, 1 - 0.2 / 0.9]), torch.tensor([0.5, 1.0], dtype=torch.float64)
    for kind, wanted in {
        "noise": [5 / 9, 1],
        "score": [5 / 9, 1],
        "clean": [5, 1 / 4],
        "residual": [5, 1 / 4],
        "velocity": [5 / 10, 1 / 5],
    }.items():
        assert snr_weight(path, t, kind, 5).tolist() == pytest.approx(wanted), kind
    assert snr_weight(path, t, "clean").tolist() == pytest.approx([5, 1 / 4])
    assert snr_weight(path, t, "clean", 20).tolist() == pytest.approx([9, 1 / 4])


@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (path, kind)
        for path in (
            VariancePreserving("cosine"),
            VariancePreserving("linear", 0.4),
            VarianceExploding(),
            Linear(),
            BrownianBridge(),
        )
        for kind in ("noise", "clean", "velocity", "score", "residual", "flow_velocity")
        if kind != "flow_velocity" or isinstance(path, Linear)
    ],
)
def test_min_snr_counts_an_error_of_clean_alike_in_every_output(
    path: Path, kind: str, gamma: float
):
    state = torch.zeros(4, 1, 1, dtype=torch.float64)
    off = clean_from(kind, path, state + 1, state, TIMES) - clean_from(
        kind, path, state, state, TIMES
    )
    a, _, sigma = path.coefficients(TIMES)
    wanted = torch.minimum((a / sigma) ** 2, torch.tensor(gamma)) * off.flatten() ** 2
    torch.testing.assert_close(snr_weight(path, TIMES, kind, gamma), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", ["noise", "clean", "velocity", "score", "residual"])
@pytest.mark.parametrize(
    "path", [VariancePreserving("cosine"), VariancePreserving("linear", 0.4), VarianceExploding()]
)
def test_noise_weight_makes_any_error_one_of_the_noise(path: Path, kind: str):
    """Two outputs that differ by 1 imply noises that differ by the weight's root."""
    state = torch.zeros(4, 1, 1, dtype=torch.float64)
    implied = [
        noise_from(path, clean_from(kind, path, output, state, TIMES), state, TIMES)
        for output in (state, state + 1)
    ]
    wanted = (implied[1] - implied[0]).flatten() ** 2
    torch.testing.assert_close(noise_weight(path, TIMES, kind), wanted, rtol=1e-9, atol=0)


def test_noise_weight_of_a_flow():
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    # Noise is x_t + (1 - t) (noise - clean) on the straight path.
    assert noise_weight(Linear(), t, "flow_velocity").tolist() == pytest.approx([0.75**2, 0])
    assert noise_weight(Linear(), t, "velocity")[1] == 0
    with pytest.raises(ValueError, match="source image"):
        noise_weight(Linear(source_as_noise=True), t, "flow_velocity")


def test_min_snr_at_the_ends_is_finite():
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert snr_weight(Linear(), ends, "noise").tolist() == [0, 1]
    assert snr_weight(Linear(), ends, "clean").tolist() == [5, 0]
    assert snr_weight(Linear(), ends, "velocity").tolist() == [0, 0]
    assert snr_weight(Linear(), ends, "flow_velocity").tolist() == [0, 0]
    assert snr_weight(BetaTable([0.5]), ends[1:], "clean").tolist() == pytest.approx([1])


def test_min_snr_needs_noise_and_a_gamma():
    with pytest.raises(ValueError, match="source"):
        snr_weight(Linear(source_as_noise=True), TIMES, "flow_velocity")
    with pytest.raises(ValueError, match="gamma"):
        snr_weight(Linear(), TIMES, "clean", 0)


def test_gaussian_terms_are_torchs():
    mean, sd = row(-1, 0.3, 2), row(0.2, 1, 3)
    other_mean, other = row(0.5, 0.3, -1), row(0.7, 2, 0.4)
    wanted = kl_divergence(Normal(mean, sd), Normal(other_mean, other))
    torch.testing.assert_close(gaussian_kl(mean, sd**2, other_mean, other**2), wanted)
    values = row(0, -2, 5)
    torch.testing.assert_close(gaussian_nll(values, mean, sd), -Normal(mean, sd).log_prob(values))


def test_the_discretised_decoder_shares_out_all_mass():
    lattice = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, sd in ((0.1, 0.3), (-0.99, 0.02), (1.4, 0.5), (0.0, 1e-3)):
        at, spread_of = torch.full_like(lattice, mean), torch.full_like(lattice, sd)
        found = discretised_nll(lattice, at, spread_of, 2 / 255)
        assert float((-found).exp().sum()) == pytest.approx(1, abs=1e-12)
        inside = slice(1, -1)
        normal = Normal(at, spread_of)
        mass = normal.cdf(lattice + 1 / 255) - normal.cdf(lattice - 1 / 255)
        torch.testing.assert_close((-found).exp()[inside], mass[inside], rtol=0, atol=1e-12)


def test_the_discretised_decoder_of_masks_is_a_threshold_at_zero():
    found = discretised_nll(row(-1, 1), row(0.3, 0.3), row(0.5, 0.5), 2)
    inside = float(Normal(0.3, 0.5).cdf(torch.tensor(0.0, dtype=torch.float64)))
    assert found.flatten().tolist() == pytest.approx([-math.log(inside), -math.log(1 - inside)])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_discretised_decoder_keeps_its_digits_far_off(sign: int):
    mean = torch.tensor([sign * 30.0], requires_grad=True)
    sd = torch.tensor([0.1], requires_grad=True)
    found = discretised_nll(torch.zeros(1), mean, sd, 2 / 255)
    found.sum().backward()
    nearest = (30 - 1 / 255) / 0.1
    assert float(found.detach()) == pytest.approx(nearest**2 / 2, rel=1e-3)
    assert mean.grad is not None
    assert float(mean.grad) == pytest.approx(sign * nearest / 0.1, rel=0.01)
    assert sd.grad is not None
    assert bool(torch.isfinite(sd.grad).all())


BOUND_PATHS: dict[str, Path] = {
    "preserving": VariancePreserving("linear"),
    "scaled": VariancePreserving("cosine", 0.5),
    "exploding": VarianceExploding(),
    "linear": Linear(),
    "bridge": BrownianBridge(0.5),
}
bound_paths = pytest.mark.parametrize("path", BOUND_PATHS.values(), ids=BOUND_PATHS.keys())


def scalar(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def conditioned(path: Path, clean: float, x_t: float, t: float, s: float, source: float):
    """Mean and variance of x_s given x_t and clean, by Gaussian conditioning.

    With m = a clean + b source: x_s - m_s has variance sigma_s^2 and covariance
    (a_t / a_s) sigma_s^2 with x_t - m_t.
    """
    a_t, b_t, sigma_t = (float(c) for c in path.coefficients(scalar(t)))
    a_s, b_s, sigma_s = (float(c) for c in path.coefficients(scalar(s)))
    gain = (a_t / a_s) * sigma_s**2 / sigma_t**2
    mean = a_s * clean + b_s * source + gain * (x_t - a_t * clean - b_t * source)
    return mean, sigma_s**2 - gain * (a_t / a_s) * sigma_s**2


@bound_paths
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.6), (0.5, 0.49), (0.1, 0.02)])
def test_a_step_counts_the_divergence_of_its_posterior(path: Path, t: float, s: float):
    clean, estimate, x_t, source, variance = 0.7, -0.2, 0.4, 1.5, 0.03
    found = step_terms(
        path,
        *(row(v) for v in (clean, estimate, variance, x_t)),
        scalar(t),
        scalar(s),
        source=row(source) if path.uses_source else None,
    )
    mean, own = conditioned(path, clean, x_t, t, s, source)
    guess, _ = conditioned(path, estimate, x_t, t, s, source)
    wanted = kl_divergence(
        Normal(scalar(mean), scalar(own).sqrt()), Normal(scalar(guess), scalar(variance).sqrt())
    )
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-6, atol=0)


def test_the_first_step_of_a_bridge_is_pinned():
    path, source = BrownianBridge(0.5), row(1.5)
    found = step_terms(
        path, row(0.7), row(-0.2), row(0.2), source, scalar(1), scalar(0.6), source=source
    )
    own, gap = 0.24, 0.4 * 0.9
    wanted = (own / 0.2 - 1 - math.log(own / 0.2) + gap**2 / 0.2) / 2
    assert float(found) == pytest.approx(wanted)


def bound(raw: float, estimate: float, t: float, s: float, **options) -> Tensor:
    return variational_bound(
        BOUND_PATHS["preserving"],
        *(row(v) for v in (0.7, estimate, raw, 0.4)),
        scalar(t),
        scalar(s),
        **options,
    )


def test_at_its_lower_end_a_learned_variance_leaves_the_means_alone():
    path, t, s = BOUND_PATHS["preserving"], 0.5, 0.4
    lower, upper = (float(v) for v in step_variances(path, scalar(t), scalar(s)))
    mean, _ = conditioned(path, 0.7, 0.4, t, s, 0)
    guess, _ = conditioned(path, -0.2, 0.4, t, s, 0)
    found = bound(-1, -0.2, t, s, unit="nats")
    assert found.tolist() == pytest.approx([(mean - guess) ** 2 / (2 * lower)])
    assert bound(-1, 0.7, t, s).tolist() == pytest.approx([0], abs=1e-12)
    ratio = lower / upper
    assert bound(1, 0.7, t, s, unit="nats").tolist() == pytest.approx(
        [(ratio - 1 - math.log(ratio)) / 2]
    )
    assert (bound(0.3, 0, t, s) * math.log(2)).tolist() == pytest.approx(
        bound(0.3, 0, t, s, unit="nats").tolist()
    )


@bound_paths
def test_the_decoder_is_a_density_of_clean(path: Path):
    t, s = scalar(0.05), scalar(0.0)
    grid = torch.linspace(-30, 30, 40001, dtype=torch.float64).reshape(1, 1, -1)
    like = torch.zeros_like(grid)
    variance = learned_variance(path, like + 0.4, t, s)
    source = like + 0.3 if path.uses_source else None
    terms = step_terms(path, grid, like + 0.2, variance, like, t, s, source=source)
    density = (-terms).exp().flatten()
    assert float(torch.trapezoid(density, grid.flatten())) == pytest.approx(1, rel=1e-6)
    sd = float(variance[0, 0, 0].sqrt()) / float(path.coefficients(s).a)
    wanted = -Normal(row(0.2), row(sd)).log_prob(grid)
    torch.testing.assert_close(terms, wanted)


def test_the_decoder_in_bins_has_the_learned_variance():
    variance = learned_variance(BOUND_PATHS["preserving"], row(0.4), scalar(0.05), scalar(0))
    wanted = discretised_nll(row(0.7), row(0.6), variance.sqrt(), 0.1) / math.log(2)
    found = bound(0.4, 0.6, 0.05, 0, bin_width=0.1)
    assert found.tolist() == pytest.approx(wanted.flatten().tolist())


@pytest.mark.parametrize("bin_width", [None, 2 / 255])
def test_a_bound_of_mixed_steps_is_that_of_each(bin_width: float | None):
    path = BOUND_PATHS["scaled"]
    t, s = torch.tensor([[0.5, 0.01, 0.8], [0.4, 0.0, 0.79]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(6)
    clean, estimate, raw, x_t = torch.rand(4, 3, 2, 5, generator=generator) * 2 - 1
    estimate.requires_grad_(True)
    raw.requires_grad_(True)
    weight = torch.ones(3, 1, 5)
    weight[:, :, 3:] = 0
    found = variational_bound(
        path, clean, estimate, raw, x_t, t, s, weight=weight, bin_width=bin_width
    )
    for i in range(3):
        one = slice(i, i + 1)
        alone = variational_bound(
            path,
            *(x[one, :, :3] for x in (clean, estimate, raw, x_t)),
            t[one],
            s[one],
            bin_width=bin_width,
        )
        torch.testing.assert_close(found[one], alone)
    found.sum().backward()
    assert estimate.grad is None, "the bound trains the variance alone"
    assert raw.grad is not None
    assert bool(torch.isfinite(raw.grad).all())
    assert bool((raw.grad[..., :3] != 0).all())
    assert not raw.grad[..., 3:].any()

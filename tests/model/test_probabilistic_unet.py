"""Probabilistic U-Net: its loss against the paper, who sees the mask, what its draws learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg_diff.config import parse_config
from medseg_diff.data.records import Batch
from medseg_diff.inference.ensemble import infer
from medseg_diff.model import Sampling, build_model
from medseg_diff.model.probabilistic import divergence
from medseg_diff.networks.conditioners import Context
from medseg_diff.networks.probabilistic import Gaussian
from tests.baseline_fixtures import batch_of, config_of, image_of, model_of, request, unpacked


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_the_divergence_by_hand():
    """Means one apart at sd 1 cost 1/2; sd e against 1 costs (e^2 - 1) / 2 - 1."""
    zero = torch.zeros(1, 2)
    moved = Gaussian(torch.tensor([[1.0, 0.0]]), zero)
    wide = Gaussian(zero, torch.tensor([[0.0, 1.0]]))
    prior = Gaussian(zero, zero)
    assert divergence(moved, prior).tolist() == pytest.approx([0.5])
    assert divergence(wide, prior).tolist() == pytest.approx([(np.e**2 - 1) / 2 - 1])
    assert divergence(prior, prior).tolist() == [0]


def test_the_divergence_against_torch():
    torch.manual_seed(0)
    q, p = (Gaussian(torch.randn(4, 6), 0.5 * torch.randn(4, 6)) for _ in range(2))
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(
        normal(q.mean, q.log_sd.exp()), normal(p.mean, p.log_sd.exp())
    ).sum(1)
    torch.testing.assert_close(divergence(q, p), wanted)
    assert not torch.allclose(divergence(p, q), wanted)


@pytest.mark.parametrize("size", [(5, 7), (5, 7, 3)])
def test_the_loss_is_the_papers_over_the_number_of_voxels(size: tuple[int, ...]):
    """Sum of cross-entropy + beta KL, by hand, from latents of the posterior."""
    model, given = model_of("probabilistic_unet", len(size)), batch_of(*size)
    found = model(given)
    with torch.no_grad():
        truth = torch.stack([(given.labels[:, 0] == k).float() for k in range(3)], 1)
        q = model.posterior(torch.cat([given.image, truth], 1))
        p = model.prior(given.image)
        z = q.mean + q.log_sd.exp() * given.noise.flatten(1)[:, :6]
        logits = model.head(model.context(given.image).features[0], z)
        entropy = -(logits.log_softmax(1) * truth).flatten(1).sum(1)
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(q.mean, q.log_sd.exp()),
            torch.distributions.Normal(p.mean, p.log_sd.exp()),
        ).sum(1)
    voxels = np.prod(size)
    assert float(found.total.detach()) == pytest.approx(float((entropy + kl).mean() / voxels), 1e-5)
    assert found.parts["kl"] == pytest.approx(float(kl.mean() / voxels), rel=1e-5)


def test_beta_weighs_the_divergence():
    given, one = batch_of(5, 7), model_of("probabilistic_unet")
    keys = config_of("probabilistic_unet").model_dump() | {
        "objective": {"cross_entropy": 1.0, "kl": 10.0}
    }
    torch.manual_seed(0)
    ten = build_model(parse_config(keys)).eval()
    assert ten(given).parts["kl"] == pytest.approx(10 * one(given).parts["kl"])
    assert ten(given).parts["cross_entropy"] == pytest.approx(one(given).parts["cross_entropy"])


@pytest.mark.parametrize(
    ("task", "terms"),
    [
        ({"ignore_label": 9}, 20),
        ({"regions": {"whole": (1, 2), "core": (2,)}}, 2 * 35),
    ],
    ids=["ignored voxels", "regions"],
)
def test_the_divergence_counts_against_the_terms_of_the_cross_entropy(task, terms: int):
    model = model_of("probabilistic_unet", **task)
    given = batch_of(5, 7)
    if "ignore_label" in task:
        given.labels.flatten(1)[:, 20:] = 9
    with torch.no_grad():
        truth = model.codec.targets(given.labels)
        q = model.posterior(torch.cat([given.image, truth], 1))
        kl = divergence(q, model.prior(given.image)).mean()
        assert model(given).parts["kl"] == pytest.approx(float(kl) / terms, rel=1e-5)


def test_the_posterior_sees_the_mask_and_the_prior_does_not():
    model, given = model_of("probabilistic_unet"), batch_of(8, 8)
    other = Batch(given.image, 2 - given.labels, given.t, given.noise, given.coins)
    seen: dict[str, list[Gaussian]] = {"prior": [], "posterior": []}
    for name, found in seen.items():
        getattr(model, name).register_forward_hook(lambda m, i, out, found=found: found.append(out))
    with torch.no_grad():
        model(given), model(other)
    assert torch.equal(seen["prior"][0].mean, seen["prior"][1].mean)
    assert float((seen["posterior"][0].mean - seen["posterior"][1].mean).abs().max()) > 1e-3


def test_prediction_does_not_ask_the_posterior():
    model = model_of("probabilistic_unet")
    before = infer([model], image_of(8, 9, 1), (8, 8, 1), request())
    with torch.no_grad():
        for parameter in model.posterior.parameters():
            parameter.fill_(float("nan"))
    after = infer([model], image_of(8, 9, 1), (8, 8, 1), request())
    assert np.array_equal(before.probability, after.probability)
    assert np.isfinite(after.probability).all()


def test_a_draw_is_the_priors_latent_through_the_last_layers():
    """And the U-Net and the prior run once a window, whatever the number of draws."""
    model, image = model_of("probabilistic_unet"), torch.randn(1, 1, 9, 10)
    calls = {"network": 0, "prior": 0, "head": 0}
    walk = model.network.maps
    model.network.maps = lambda x: (calls.update(network=calls["network"] + 1), walk(x))[1]
    for name in ("prior", "head"):
        getattr(model, name).register_forward_hook(
            lambda *_, name=name: calls.update({name: calls[name] + 1})
        )
    normals = torch.randn(4, 6)
    with torch.no_grad():
        context = model.context(image)
        (step,) = model.trajectory(context.repeat(4), normals, Sampling())
        assert calls == {"network": 1, "prior": 1, "head": 1}
        for n in range(4):
            z = context.prior.mean + context.prior.log_sd.exp() * normals[n]
            alone = model.head(context.features[0], z).softmax(1)
            torch.testing.assert_close(step.probabilities[n : n + 1], alone)


def test_a_foreign_context_is_refused():
    model, image = model_of("probabilistic_unet"), torch.randn(1, 1, 8, 8)
    with pytest.raises(ValueError, match="own context"):
        next(model.trajectory(Context(image), torch.randn(1, 6), Sampling()))


def test_draws_learn_that_a_mask_has_two_readings():
    """The same image, marked whole or not at all: draws are one or the other, not grey."""
    model = model_of("probabilistic_unet").train()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 1, 8, 8, generator=generator).expand(8, -1, -1, -1)
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    nothing = torch.zeros(8, 2)
    for _ in range(100):
        chosen = torch.randint(0, 2, (8, 1, 1, 1), generator=generator, dtype=torch.int16)
        labels = chosen.expand(-1, 1, 8, 8)
        noise = torch.randn(8, 3, 8, 8, generator=generator)
        optimiser.zero_grad()
        model(Batch(image, labels, nothing[:, 0], noise, nothing)).total.backward()
        optimiser.step()
    fused = infer(
        [model.eval()], image[0, :, :, :, None].numpy(), (8, 8, 1), request(draws=64, batch_size=64)
    )
    shares = unpacked(fused)[:, 0].reshape(64, -1).mean(1)
    assert ((shares > 0.9) | (shares < 0.1)).mean() > 0.9
    assert 0.25 < shares.mean() < 0.75

"""Draws: settling, mirrored members, the masks themselves, and what is said of them."""

from __future__ import annotations

from math import erf, sqrt
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch

from medseg_diff.batch.run import write_answer
from medseg_diff.codecs import OneHotCodec
from medseg_diff.config import PlanConfig
from medseg_diff.data.transforms import network_input
from medseg_diff.errors import UsageError
from medseg_diff.inference.draws import DrawMasks, Fused, expected_change
from medseg_diff.inference.ensemble import Request, infer
from medseg_diff.model import Sampling, with_flips
from medseg_diff.model.flipped import Flipped
from tests.inference.test_inference import SHAPE, SPACING, reading_predictor
from tests.io.faults import NiftiFile
from tests.phantoms import grid_affine, make_phantom
from tests.tiny import Threshold

TWO = OneHotCodec(((0,), (1,)))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def request(**changes) -> Request:
    settings = {"case": "c", "seed": 0, "draws": 3, "sampling": Sampling("ancestral", 2)}
    return Request(**{**settings, **changes})


def image_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)


def packed(masks: np.ndarray) -> np.ndarray:
    """(N, structures, *S) -> bits along the last axis."""
    return np.packbits(np.moveaxis(masks, 0, -1).astype(np.uint8), axis=-1)


def fused_of(draws: np.ndarray) -> Fused:
    """Probabilities (N, K, *S) of two classes -> the answer of one round."""
    masks = draws[:, 1:] > 0.5
    return Fused(
        draws.mean(0).astype(np.float32),
        draws.var(0).mean(0).astype(np.float32),
        np.zeros(draws.shape[2:], np.float32),
        DrawMasks((packed(masks),), (len(draws),)),
        {"context": 1, "denoiser": len(draws)},
    )


def two_classes(*shape: int, seed: int = 0) -> np.ndarray:
    p = np.random.default_rng(seed).random(shape)
    return np.stack([1 - p, p], 1).astype(np.float32)


def test_masks_come_back_draw_by_draw():
    first, second = np.random.default_rng(0).random((2, 11, 2, 3, 4, 5)) > 0.5
    masks = DrawMasks((packed(first[:9]), packed(second[:3])), (9, 3))
    assert len(masks) == 12
    wanted = np.concatenate([first[:9], second[:3]])
    np.testing.assert_array_equal(np.stack(list(masks)), wanted)
    slabs = np.stack(list(masks.slabs()), 1)
    np.testing.assert_array_equal(slabs, np.moveaxis(wanted, 0, -1))
    np.testing.assert_array_equal(masks.voxels(), wanted.sum((2, 3, 4)).T)


def test_joined_rounds_are_the_draws_together():
    """Mean, variance and masks of 3 + 5 draws are those of the 8."""
    draws = two_classes(8, 4, 5, 6)
    whole = fused_of(draws)
    parts = fused_of(draws[:3]).joined(fused_of(draws[3:]))
    np.testing.assert_allclose(parts.probability, whole.probability, atol=1e-6)
    np.testing.assert_allclose(parts.variance, whole.variance, atol=1e-6)
    assert parts.pairwise_dice == pytest.approx(whole.pairwise_dice)
    assert parts.network_calls == {"context": 2, "denoiser": 8}


def test_expected_change_by_hand():
    """Two classes, one voxel in doubt and one not: Phi(-margin / standard error) / mask size."""
    p = np.array([0.4, 0.8, 0.6, 0.6])
    sure = np.ones(4)
    channel = np.stack([p, sure], 1)[:, :, None, None]
    fused = fused_of(np.stack([1 - channel, channel], 1))
    margin, error = 2 * p.mean() - 1, 2 * p.std() / sqrt(3)
    wanted = 0.5 * (1 + erf(-margin / error / sqrt(2))) / 2
    assert expected_change(fused, exclusive=True) == pytest.approx(wanted, rel=1e-4)
    assert expected_change(fused_of(two_classes(1, 2, 2, 2)), exclusive=True) == float("inf")


def test_draws_stop_when_the_mask_has_settled():
    quiet, loud = Threshold(TWO, noise=0.01), Threshold(TWO, noise=3.0)
    image = image_of(8, 8, 8)
    for model, least in ((quiet, 4), (loud, 33)):
        fused = infer([model], image, (8, 8, 8), request(draws=64, settle=0.02))
        assert len(fused.masks) >= least
        done = expected_change(fused, exclusive=True)
        assert done < 0.02 or len(fused.masks) == 64
    assert len(infer([quiet], image, (8, 8, 8), request(draws=64, settle=0.02)).masks) == 4


def test_rounds_double(monkeypatch: pytest.MonkeyPatch):
    """4, 4, 8, 16 draws and what is left; the mask is looked at in between."""
    from medseg_diff.inference import ensemble

    seen = []

    def never(work, fused):
        seen.append(len(fused.masks))
        return 1.0

    monkeypatch.setattr(ensemble, "_change", never)
    infer(
        [Threshold(TWO, noise=0.5)],
        image_of(4, 4, 4),
        (4, 4, 4),
        request(draws=37, settle=0.5),
    )
    assert seen == [4, 8, 16, 32, 37]


def test_settled_draws_are_the_first_of_all_draws():
    """Rounds change which draws are made, never a draw; contexts are encoded once."""
    model, image = Threshold(TWO, noise=0.5), image_of(8, 8, 8)
    rounds = infer([model], image, (8, 8, 8), request(draws=16, settle=1e-9))
    whole = infer([model], image, (8, 8, 8), request(draws=16))
    np.testing.assert_allclose(rounds.probability, whole.probability, atol=1e-6)
    np.testing.assert_allclose(rounds.variance, whole.variance, atol=1e-6)
    np.testing.assert_array_equal(np.stack(list(rounds.masks)), np.stack(list(whole.masks)))
    assert rounds.network_calls["context"] == 1


def test_mirrored_members_answer_in_place():
    """A voxel-wise model says the same in a mirror; its noise is another draw's."""
    image = image_of(4, 5, 6)
    model = Threshold(TWO, noise=0.0)
    members = with_flips(model, (0, 2))
    assert [m.axes for m in members if isinstance(m, Flipped)] == [[2], [4], [2, 4]]
    answers = infer(members, image, (4, 5, 6), request(draws=1))
    alone = infer([model], image, (4, 5, 6), request(draws=1))
    np.testing.assert_allclose(answers.probability, alone.probability, atol=1e-6)
    assert len(answers.masks) == 4


def test_coordinates_of_a_mirrored_scan_still_run_upwards():
    plan = PlanConfig(spatial_dims=3, coordinates=True)
    image = torch.from_numpy(network_input(image_of(3, 4, 5), plan))[None]
    mirrored = Flipped(Threshold(TWO), (0, 2), 3).context(image).image
    torch.testing.assert_close(mirrored[:, 1:], image[:, 1:])
    torch.testing.assert_close(mirrored[:, :1], image[:, :1].flip((2, 4)))


def test_a_model_that_is_not_symmetric_gains_members():
    class Leaning(Threshold):
        def context(self, image):
            return super().context(image + torch.linspace(-1, 1, image.shape[2])[:, None, None])

    image = image_of(6, 5, 4)
    pair = infer(with_flips(Leaning(TWO, noise=0.0), (0,)), image, (6, 5, 4), request(draws=1))
    assert 0 < pair.pairwise_dice[0] < 1


def test_draws_are_written_in_one_file(tmp_path: Path):
    """4-D label maps on the scan's grid, equal to the answer's; nothing when not asked."""
    phantom = make_phantom(grid_affine("PIR", SPACING, SHAPE), SHAPE)
    file = NiftiFile(phantom.image, phantom.affine, sform_code=2, qform_code=1)
    scan = file.write(tmp_path / "scan.nii.gz")
    predictor = reading_predictor(noise=0.1)
    answer = predictor.predict(scan, draws=3, save_draws=True)
    assert answer.draws is not None
    assert answer.record["draws_made"] == 3
    write_answer(answer, tmp_path, "case")
    stored = nib.load(tmp_path / "case_draws.nii.gz")
    assert stored.shape == (*SHAPE, 3)
    assert stored.get_data_dtype() == np.uint8
    np.testing.assert_allclose(stored.affine, nib.load(scan).affine, atol=1e-6)
    values = np.moveaxis(np.asarray(stored.dataobj), -1, 0)
    np.testing.assert_array_equal(values, np.asarray(answer.draws))
    assert (values[0] != values[1]).any()
    votes = np.mean(values == 1, axis=0)
    agreed = (votes == 1) | (votes == 0)
    np.testing.assert_array_equal(np.asarray(answer.mask[0] == 1)[agreed], votes[agreed] == 1)
    assert predictor.predict(scan, draws=3).draws is None


def test_draws_of_a_raster_image_are_pages(tmp_path: Path):
    from medseg_diff import io

    pixels = np.arange(30, dtype=np.uint8).reshape(1, 5, 6)
    io.monai_io.raster.write_png(tmp_path / "x.png", pixels)
    like = io.read_image(tmp_path / "x.png")
    draws = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    io.write_draws(tmp_path / "x_draws.tif", draws, like, n_classes=3)
    pages = tifffile.imread(tmp_path / "x_draws.tif")
    assert pages.dtype == np.uint8
    np.testing.assert_array_equal(pages, draws)


def test_doubt_splits_into_its_two_parts(tmp_path: Path):
    """Entropy of the mean = mean entropy of the draws + mutual information."""
    predictor = reading_predictor(noise=0.3)
    phantom = make_phantom(grid_affine("RAS", SPACING, SHAPE), SHAPE)
    file = NiftiFile(phantom.image, phantom.affine, sform_code=2)
    answer = predictor.predict(file.write(tmp_path / "scan.nii.gz"), draws=6)
    entropy, variance, single, shared = np.asarray(answer.doubt)
    assert (shared >= 0).all()
    np.testing.assert_allclose(single + shared, np.maximum(entropy, single), atol=1e-6)
    assert shared[variance == 0].max(initial=0) < 1e-5
    assert shared.max() > 0.01


def test_a_bound_outside_its_range_is_refused():
    with pytest.raises(UsageError, match="--settle"):
        reading_predictor().predict("scan.nii.gz", settle=2.0)

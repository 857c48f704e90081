"""One scan in, one answer on the scan's own grid (faults F09, F10, F14, F17, F18, F27)."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

import medseg_diff as md
from medseg_diff.config import Config
from medseg_diff.data.transforms import normalise, to_model_grid, to_scan_grid
from medseg_diff.errors import InputError, UsageError
from medseg_diff.files import file_sha256
from medseg_diff.inference.predictor import Predictor
from tests.phantoms import (
    BALLS,
    NiftiFile,
    all_axcodes,
    centroid,
    grid_affine,
    make_phantom,
    turn,
)
from tests.tiny import save_untrained, threshold_predictor, tiny_config

SHAPE = (14, 12, 11)
SPACING = (2.9, 3.1, 3.3)
BRIGHT = [{"kind": "ct", "mean": 0.0, "sd": 100.0}]
RASTER = {
    "task": {
        "modality": "RGB",
        "channels": ["rgb"],
        "labels": {"background": 0, "cell": 1},
        "input_channels": [3],
    },
    "plan": {
        "spatial_dims": 2,
        "spacing_mm": [1, 1, 1],
        "patch_size": [16, 16],
        "normalisation": [{"kind": "unit"}] * 3,
    },
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("run"), tiny_config())


@pytest.fixture(scope="module")
def predictor(run: Path) -> Predictor:
    return md.load(run, device="cpu")


def reading_predictor(noise: float = 0.0, **plan) -> Predictor:
    """Model whose mask is the phantom's own labels."""
    return threshold_predictor(tiny_config(plan={"normalisation": BRIGHT, **plan}), noise)


def write(path: Path, image: np.ndarray, affine: np.ndarray) -> Path:
    return NiftiFile(image.astype(np.float32), affine).write(path)


def noisy(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 30, shape)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_all_axis_orders_give_one_mask(tmp_path: Path, predictor: Predictor):
    """F09, with an untrained network: its mask depends on every voxel's place."""
    affine = grid_affine("RAS", SPACING, SHAPE)
    base = nib.Nifti1Image(noisy().astype(np.float32), affine)
    wanted = None
    for codes in all_axcodes():
        turned = base.as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(codes)
            )
        )
        path = write(tmp_path / f"{codes}.nii", turned.get_fdata(), turned.affine)
        answer = predictor.predict(path, case="same", draws=1, steps=1)
        assert nib.aff2axcodes(np.asarray(answer.mask.affine)) == tuple(codes)
        for name, values in (("mask", answer.mask), ("doubt", answer.doubt)):
            mine = nib.Nifti1Image(np.asarray(values[0], np.float32), np.asarray(values.affine))
            mine = nib.as_closest_canonical(mine).get_fdata()
            if wanted is None:
                wanted = {}
            if name not in wanted:
                wanted[name] = mine
            if name == "mask":
                assert np.array_equal(mine, wanted[name]), codes
            else:
                np.testing.assert_allclose(mine, wanted[name], atol=1e-5, err_msg=codes)
    assert wanted is not None
    assert 0 < (wanted["mask"] > 0).mean() < 1


@pytest.mark.parametrize("degrees", [0, 10, 30, 44, 46])
def test_oblique_grids_keep_their_anatomy_in_place(tmp_path: Path, degrees: int):
    """F10: centres of mass in world coordinates, within half a voxel."""
    shape, spacing = (30, 26, 22), (1.5, 1.6, 1.8)
    for axis in (0, 2):
        phantom = make_phantom(grid_affine("LPS", spacing, shape, turn(degrees, axis)), shape)
        predictor = reading_predictor(spacing_mm=[2.0, 1.6, 1.2], patch_size=[24, 24, 24])
        for ball in BALLS:
            # One ball at a time: the blurred edge of a brighter one looks like a darker one.
            image = 100 * (phantom.labels == ball)
            answer = predictor.predict(write(tmp_path / f"{axis}.nii", image, phantom.affine))
            affine = np.asarray(answer.mask.affine)
            np.testing.assert_allclose(affine, phantom.affine, atol=1e-4)
            found = centroid(np.asarray(answer.mask[0]), 1, affine)
            assert np.linalg.norm(found - phantom.centroid(ball)) < 0.5 * min(spacing)


def test_the_output_lies_on_the_inputs_grid(tmp_path: Path):
    """F14: shape, affine, codes, units; and every file says so."""
    from medseg_diff.batch.run import write_answer

    phantom = make_phantom(grid_affine("PIR", SPACING, SHAPE), SHAPE)
    file = NiftiFile(phantom.image, phantom.affine, sform_code=2, qform_code=1)
    answer = reading_predictor(noise=0.1).predict(file.write(tmp_path / "scan.nii.gz"))
    assert answer.mask.shape == (1, *SHAPE)
    assert answer.mask.dtype == torch.int16
    assert answer.probability.shape == (3, *SHAPE)
    assert answer.doubt.shape == (4, *SHAPE)
    for values in (answer.mask, answer.probability, answer.doubt):
        np.testing.assert_allclose(np.asarray(values.affine), phantom.affine, atol=1e-5)
    assert 0 <= float(answer.probability.min()) <= float(answer.probability.max()) <= 1 + 1e-6
    assert 0 <= float(answer.doubt[0].min()) <= float(answer.doubt[0].max()) <= 1
    out = tmp_path / "out"
    out.mkdir()
    write_answer(answer, out, "scan")
    before = nib.load(tmp_path / "scan.nii.gz")
    for ending, kind in (("", "u"), ("_prob", "f"), ("_doubt", "f")):
        after = nib.load(out / f"scan{ending}.nii.gz")
        assert after.shape[:3] == SHAPE
        np.testing.assert_allclose(after.affine, before.affine, atol=1e-6)
        assert int(after.header["sform_code"]) == 2
        assert int(after.header["qform_code"]) == 1
        assert after.header.get_xyzt_units()[0] == "mm"
        assert after.get_data_dtype().kind == kind
    written = np.asarray(nib.load(out / "scan.nii.gz").dataobj)
    assert np.array_equal(written, np.asarray(answer.mask[0]))


@pytest.mark.parametrize("shape", [(14, 12, 1), (1, 12, 11)])
def test_a_single_slice_is_refused_by_a_3d_model(tmp_path: Path, predictor, shape):
    """F17."""
    path = write(tmp_path / "flat.nii", noisy(shape), grid_affine("RAS", SPACING, shape))
    with pytest.raises(InputError, match=r"flat\.nii.*3-D model needs a volume.*2-D model"):
        predictor.predict(path)


def test_a_raster_image_is_refused_by_a_3d_model(tmp_path: Path, predictor):
    Image.fromarray(np.zeros((12, 12), np.uint8)).save(tmp_path / "flat.png")
    with pytest.raises(InputError, match="volume"):
        predictor.predict(tmp_path / "flat.png")


@pytest.mark.parametrize("shape", [(2, 9, 15), (15, 2, 2), (5, 5, 5), (33, 3, 16)])
def test_scans_smaller_than_the_patch(tmp_path: Path, predictor, shape):
    """F18: padded and cropped back, no NaN."""
    path = write(tmp_path / "s.nii", noisy(shape), grid_affine("LPI", (2.5, 2.5, 2.5), shape))
    answer = predictor.predict(path)
    assert answer.mask.shape == (1, *shape)
    for values in (answer.probability, answer.doubt):
        assert values.shape[1:] == shape
        assert bool(torch.isfinite(values).all())


@pytest.mark.parametrize("value", [0.0, 37.0])
def test_a_constant_image_gives_an_empty_mask_and_a_warning(tmp_path: Path, predictor, value):
    """F27."""
    image = np.full(SHAPE, value)
    answer = predictor.predict(write(tmp_path / "c.nii", image, grid_affine("RAS", SPACING, SHAPE)))
    assert not answer.mask.any()
    assert not answer.probability.any()
    assert not answer.doubt.any()
    assert answer.record["status"] == "warning"
    assert any("constant image" in w for w in answer.record["warnings"])


def test_anisotropic_resampling_there_and_back_keeps_a_sphere():
    shape, spacing = (30, 28, 12), (1.0, 1.1, 3.0)
    affine = grid_affine("LPS", spacing, shape)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    sphere = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3], axis=-1) < 11
    config = tiny_config(plan={"spacing_mm": [1.5, 1.5, 1.5]})
    pipeline = to_model_grid(config.plan)
    scan = MetaTensor(torch.from_numpy(sphere[None].astype(np.float32)), affine=affine)
    placed = pipeline(scan)
    assert placed.shape[1:] == (20, 21, 24)
    back = to_scan_grid(placed.as_tensor(), placed, pipeline)
    np.testing.assert_allclose(np.asarray(back.affine), affine, atol=1e-6)
    assert dice(np.asarray(back[0]) > 0.5, sphere) > 0.95


def test_normalisation_by_hand():
    plan = tiny_config(
        plan={
            "normalisation": [
                {"kind": "zscore"},
                {"kind": "zscore_foreground"},
                {"kind": "ct", "clip": [0, 4], "mean": 1, "sd": 2},
                {"kind": "unit", "scale": 8},
                {"kind": "zscore"},
            ]
        }
    ).plan
    values = np.array([0.0, 2.0, 4.0, 6.0], np.float32)
    image = np.stack([values, values, values, values, np.full(4, 7.0, np.float32)])
    found = normalise(image.reshape(5, 2, 2, 1), plan.normalisation or ()).reshape(5, 4)
    np.testing.assert_allclose(found[0], (values - 3) / np.sqrt(5), rtol=1e-6)
    np.testing.assert_allclose(found[1], (values - 4) / np.sqrt(8 / 3), rtol=1e-6)
    np.testing.assert_allclose(found[2], [-0.5, 0.5, 1.5, 1.5])
    np.testing.assert_allclose(found[3], [0, 0.25, 0.5, 0.75])
    assert not found[4].any()


def test_same_seed_same_answer_another_seed_another(tmp_path: Path, predictor):
    path = write(tmp_path / "s.nii", noisy(), grid_affine("RAS", SPACING, SHAPE))
    first, again = (predictor.predict(path, seed=3) for _ in range(2))
    other = predictor.predict(path, seed=4)
    renamed = predictor.predict(path, seed=3, case="another")
    assert torch.equal(first.probability.as_tensor(), again.probability.as_tensor())
    assert not torch.equal(first.probability.as_tensor(), other.probability.as_tensor())
    assert not torch.equal(first.probability.as_tensor(), renamed.probability.as_tensor())
    batched = predictor.predict(path, seed=3, batch_size=1)
    np.testing.assert_allclose(
        np.asarray(first.probability), np.asarray(batched.probability), atol=1e-5
    )


def test_the_record(tmp_path: Path):
    phantom = make_phantom(grid_affine("RAS", (1.5, 1.6, 1.8), (30, 26, 22)))
    path = write(tmp_path / "scan.nii", phantom.image, phantom.affine)
    predictor = reading_predictor(spacing_mm=[1.5, 1.6, 1.8], patch_size=[32, 32, 32])
    record = predictor.predict(path, seed=5).record
    assert record["case"] == "scan"
    assert record["status"] == "ok"
    assert record["seed"] == 5
    assert record["spacing_mm"] == pytest.approx([1.5, 1.6, 1.8])
    counts = {k: int((phantom.labels == v).sum()) for k, v in predictor.labels.items() if v}
    assert record["voxels"] == counts
    assert record["volumes_ml"] == pytest.approx({k: n * 4.32e-3 for k, n in counts.items()})
    assert record["hashes"]["input"] == {"T1": file_sha256(path)}


def test_labels_may_be_listed_in_any_order(tmp_path: Path):
    """Names belong to values, not to positions in the case list."""
    config = tiny_config(
        plan={"normalisation": BRIGHT, "spacing_mm": [1.5, 1.6, 1.8], "patch_size": [32, 32, 32]}
    )
    task = config.task.model_copy(
        update={"labels": {"third": 3, "background": 0, "second": 2, "first": 1}}
    )
    predictor = threshold_predictor(Config.model_validate({**config.model_dump(), "task": task}))
    phantom = make_phantom(grid_affine("RAS"))
    answer = predictor.predict(write(tmp_path / "s.nii", phantom.image, phantom.affine))
    assert list(answer.record["voxels"]) == ["first", "second", "third"]
    for plane, name in zip(answer.probability, answer.record["voxels"], strict=True):
        assert int((plane > 0.5).sum()) == answer.record["voxels"][name]


def test_png_in_png_out(tmp_path: Path):
    from medseg_diff.batch.run import find_cases, predict_many

    config = tiny_config(**RASTER)
    pixels = np.zeros((21, 30, 3), np.uint8)
    pixels[4:15, 18:27] = 255
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "cells.png")
    predictor = threshold_predictor(config)
    assert predict_many(predictor, find_cases([folder], ["rgb"]), tmp_path / "out") == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "cells.png"))
    assert np.array_equal(mask, (pixels[..., 0] > 0).astype(np.uint8))
    assert (tmp_path / "out" / "cells_prob.tif").is_file()
    untrained = md.load(save_untrained(tmp_path / "run", config), device="cpu")
    answer = untrained.predict(folder / "cells.png")
    assert answer.mask.shape == (1, 21, 30)
    assert answer.record["volumes_ml"] is None
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    with pytest.raises(InputError, match=r"grey\.png.*planes"):
        untrained.predict(folder / "grey.png")


def test_a_2d_model_walks_the_slices_of_a_volume(tmp_path: Path):
    config = tiny_config(
        plan={
            "spatial_dims": 2,
            "patch_size": [16, 16],
            "spacing_mm": [1.5, 1.6, 1.8],
            "normalisation": BRIGHT,
        }
    )
    phantom = make_phantom(grid_affine("RAS"))
    path = write(tmp_path / "s.nii", phantom.image, phantom.affine)
    answer = threshold_predictor(config).predict(path)
    assert np.array_equal(np.asarray(answer.mask[0]), phantom.labels)


def test_settings_out_of_range_are_wrong_use(tmp_path: Path, predictor):
    for name, value in (("draws", 0), ("steps", -1), ("sampler", "magic"), ("batch_size", 0)):
        with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
            predictor.predict(tmp_path / "none.nii", **{name: value})
    with pytest.raises(UsageError, match="--device"):
        md.load("anything", device="abacus")


def test_models_that_differ_form_no_ensemble(tmp_path: Path, run: Path):
    both = md.load([run, save_untrained(tmp_path / "b", tiny_config(), seed=1)], device="cpu")
    path = write(tmp_path / "s.nii", noisy(), grid_affine("RAS", SPACING, SHAPE))
    assert both.predict(path).record["models"] == 2
    other = save_untrained(tmp_path / "c", tiny_config(plan={"spacing_mm": [2, 2, 2]}))
    with pytest.raises(InputError, match="plan differs"):
        md.load([run, other], device="cpu")


def test_a_centre_crop_looks_at_the_middle_alone(tmp_path: Path):
    """Beyond the crop is background, on a grid turned away from the model's; draws too."""
    labels = np.random.default_rng(1).integers(0, 4, SHAPE)
    affine = grid_affine("LPS", (2.5, 2.5, 2.5), SHAPE)
    path = write(tmp_path / "s.nii", labels * 100.0, affine)
    whole = reading_predictor().predict(path, save_draws=True, draws=1)
    answer = reading_predictor(centre_crop=[8, 6, 5]).predict(path, save_draws=True, draws=1)
    np.testing.assert_array_equal(whole.mask[0], labels)
    inside = np.zeros(SHAPE, bool)
    # Fourteen voxels leave three on either side of eight; of 11 the middle 5 are 3 to 7.
    inside[3:11, 3:9, 3:8] = True
    wanted = np.where(inside, labels, 0)
    np.testing.assert_array_equal(answer.mask[0], wanted)
    assert answer.draws is not None
    np.testing.assert_array_equal(answer.draws[0], wanted)
    assert float(np.abs(answer.probability.numpy()[:, ~inside]).max()) == 0
    assert np.array_equal(answer.mask.affine, whole.mask.affine)


def test_a_crop_larger_than_the_scan_changes_nothing(tmp_path: Path):
    path = write(tmp_path / "s.nii", noisy(), grid_affine("RAS", (2.5, 2.5, 2.5), SHAPE))
    answers = [
        reading_predictor(**plan).predict(path, draws=1)
        for plan in ({}, {"centre_crop": [99, 99, 99]})
    ]
    np.testing.assert_array_equal(*(answer.probability for answer in answers))


def test_the_anchor_answers_for_itself(tmp_path: Path):
    """Sampler 'anchor' is the conditioner's softmax, whatever the draw, and costs no denoiser."""
    anchored = {"conditioner": "anchored", "output": "correction"}
    run = save_untrained(tmp_path / "run", tiny_config(model=anchored))
    path = write(tmp_path / "s.nii", noisy((16, 16, 16)), grid_affine("RAS", (2.5,) * 3, (16,) * 3))
    predictor = md.load(run, device="cpu")
    answer, other = (predictor.predict(path, sampler="anchor", draws=1, seed=s) for s in (0, 1))
    model = predictor.runs[0].model
    with torch.no_grad():
        values = normalise(
            np.asarray(noisy((16, 16, 16)), np.float32)[None], predictor.plan.normalisation
        )
        wanted = model.context(torch.from_numpy(values)[None]).anchor.softmax(1)[0, 1:]
    np.testing.assert_allclose(answer.probability, wanted, atol=1e-5)
    np.testing.assert_array_equal(answer.probability, other.probability)
    assert answer.record["network_calls"]["denoiser"] == 0


def test_the_anchor_needs_an_anchored_model(predictor: Predictor, tmp_path: Path):
    path = write(tmp_path / "s.nii", noisy(), grid_affine("RAS", SPACING, SHAPE))
    with pytest.raises(UsageError, match="conditioner: anchored"):
        predictor.predict(path, sampler="anchor")


def test_a_window_of_its_own_for_prediction(tmp_path: Path):
    """The scan in one piece, though patches were smaller; the context is asked once."""
    path = write(
        tmp_path / "s.nii", noisy((16, 24, 20)), grid_affine("RAS", (2.5,) * 3, (16, 24, 20))
    )
    calls = {}
    for name, prediction in (("patches", {}), ("whole", {"window": [16, 24, 20]})):
        config = tiny_config(prediction=prediction | {"overlap": 0.0})
        predictor = md.load(save_untrained(tmp_path / name, config), device="cpu")
        calls[name] = predictor.predict(path, draws=1, steps=1).record["network_calls"]["context"]
    assert calls == {"patches": 4, "whole": 1}
    with pytest.raises(UsageError, match="same number"):
        tiny_config(prediction={"window": [16, 16]})

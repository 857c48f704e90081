"""The film: every step of one draw, on the slice that shows most, as a GIF and a strip."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from medseg_diff.errors import InputError, UsageError
from medseg_diff.figures import COLOURS, film
from medseg_diff.figures.film import Film, FilmStep, frames, shoot, strip, write_film
from medseg_diff.inference.predictor import load
from tests.tiny import save_untrained, threshold_predictor, tiny_config


def block(shape=(20, 16, 12)):
    """Presence of two structures; the first is largest at the third axis' index 4."""
    mask = np.zeros((2, *shape), np.float32)
    mask[0, 4:10, 4:10, 3:6] = 1
    mask[0, 3:12, 3:12, 4] = 1
    mask[1, 14:18, 4:8, 4] = 1
    return mask


def noise_to(mask, count=5):
    """Film from uniform noise to a mask, in equal steps."""
    noise = np.random.default_rng(0).random(mask.shape).astype(np.float32)
    times = np.linspace(1, 0, count)
    return tuple(FilmStep(float(t), t * noise + (1 - t) * mask, mask) for t in times)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Run folder of an untrained model, and a scan of 20 x 24 x 16 voxels of 2.5 mm."""
    folder = tmp_path_factory.mktemp("film")
    scan = np.random.default_rng(1).normal(size=(20, 24, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, np.diag([2.5, 2.5, 2.5, 1])), folder / "scan.nii.gz")
    return save_untrained(folder / "run", tiny_config()), folder / "scan.nii.gz"


def colours(picture):
    return {tuple(int(v) for v in c) for _, c in picture.convert("RGB").getcolors(1 << 20)}


def bytes_of(name):
    return tuple(round(255 * v) for v in to_rgb(name))


def test_the_last_state_shows_the_largest_slice_upright():
    mask = block()
    image = np.zeros((1, *mask.shape[1:]), np.float32)
    last = frames(Film(image, noise_to(mask), np.diag([1.0, 1, 2, 1])))[-1]
    width = (last.width - film._GAP) // 3 - film._GAP
    middle = np.asarray(last)[film._BAR : -film._GAP, 2 * film._GAP + width :][:, :width]
    first, second = (np.all(middle == bytes_of(COLOURS[k]), axis=-1) for k in (0, 1))
    # 9 x 9 and 4 x 4 of the 20 x 16 voxels of the slice.
    assert first.mean() == pytest.approx(81 / 320, abs=0.01)
    assert second.mean() == pytest.approx(16 / 320, abs=0.01)
    # Larger x is the patient's right (RAS+), which is the left of the picture.
    assert np.nonzero(second)[1].mean() < np.nonzero(first)[1].mean()


def test_a_state_on_another_scale_still_ends_in_black_and_full_colour():
    mask = block()
    half = tuple(FilmStep(s.t, 0.5 + (s.state - 0.5) / 2, s.clean) for s in noise_to(mask))
    image = np.zeros((1, *mask.shape[1:]), np.float32)
    shown = colours(frames(Film(image, half, np.eye(4)))[-1])
    assert {(0, 0, 0), bytes_of(COLOURS[0]), bytes_of(COLOURS[1])} <= shown


def test_nothing_found_is_an_empty_film():
    nothing = np.zeros((2, 20, 16), np.float32)
    shot = Film(np.zeros((1, 20, 16), np.float32), noise_to(nothing))
    assert shot.empty
    assert bytes_of(COLOURS[0]) not in colours(frames(shot)[-1])
    assert not Film(shot.image, noise_to(block()[..., 4])).empty


def test_files_hold_every_step_and_a_strip_of_at_most_eight(tmp_path):
    shot = Film(np.zeros((3, 20, 16), np.float32), noise_to(block()[..., 4], 11))
    gif, png = write_film(tmp_path / "a.gif", shot)
    with Image.open(gif) as shown:
        assert shown.n_frames == 11
        assert shown.info["loop"] == 0
        assert shown.info["duration"] == film.FRAME_MS
        shown.seek(10)
        assert shown.info["duration"] == film.LAST_MS
    whole = strip(shot)
    with Image.open(png) as written:
        assert whole.size == written.size
    narrow = strip(Film(shot.image, shot.steps[:3]))
    assert (whole.width - film._GAP) / (narrow.width - film._GAP) == pytest.approx(8 / 3)
    with pytest.raises(InputError, match="not a name for a film"):
        write_film(tmp_path / "a.mp4", shot)
    with pytest.raises(InputError, match="cannot be written"):
        write_film(tmp_path / "nowhere" / "a.gif", shot)


def test_shooting_keeps_every_step_of_the_first_draw(trained):
    run, scan = trained
    predictor = load(run)
    shot = shoot(predictor, scan, steps=4)
    assert [step.t for step in shot.steps] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    # Three structures on the central window of 16 voxels a side.
    assert shot.steps[0].state.shape == (3, 16, 16, 16)
    assert shot.image.shape == (1, 16, 16, 16)
    np.testing.assert_array_equal(
        shot.image[0], np.asarray(nib.load(scan).dataobj)[2:18, 4:20, 0:16]
    )
    # The first state is noise, the last is the last answer.
    first = shot.steps[0].state
    assert first.std() > 0.3
    np.testing.assert_allclose(shot.steps[-1].state, shot.steps[-1].clean, atol=1e-5)
    again = shoot(predictor, scan, steps=4)
    np.testing.assert_array_equal(again.steps[2].state, shot.steps[2].state)
    other = shoot(predictor, scan, steps=4, seed=1)
    assert np.abs(other.steps[0].state - first).mean() > 0.1


def test_the_first_state_is_the_noise_of_the_first_draw(trained):
    from medseg_diff.inference.noise import NoiseField

    run, scan = trained
    field = NoiseField(3, "scan", 0, 0, 4).window([2, 4, 0], [16, 16, 16])
    first = shoot(load(run), scan, steps=1, seed=3).steps[0].state
    np.testing.assert_allclose(first, ((field[1:] + 1) / 2).clip(0, 1), atol=1e-6)


def test_padding_is_not_shown(trained, tmp_path):
    run, _ = trained
    small = np.random.default_rng(2).normal(size=(10, 24, 16)).astype(np.float32)
    nib.save(nib.Nifti1Image(small, np.diag([2.5, 2.5, 2.5, 1])), tmp_path / "small.nii.gz")
    shot = shoot(load(run), tmp_path / "small.nii.gz", steps=1)
    assert shot.image.shape == (1, 10, 16, 16)
    assert shot.steps[0].clean.shape == (3, 10, 16, 16)


def test_refuses_what_cannot_be_filmed(trained):
    run, scan = trained
    with pytest.raises(InputError, match="no trajectory"):
        shoot(threshold_predictor(tiny_config()), scan)
    with pytest.raises(UsageError, match="--steps"):
        shoot(load(run), scan, steps=0)
    with pytest.raises(UsageError, match=r"--sampler.*ddim"):
        shoot(load(run), scan, sampler="nonsense")


def test_the_command(trained, tmp_path, monkeypatch, capsys):
    from medseg_diff.cli.main import main

    run, scan = map(str, trained)
    words = ["medseg-diff", "film", "--model", run, "--input", scan, "--steps", "2"]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "f.gif")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    with Image.open(tmp_path / "f.gif") as written:
        assert written.n_frames == 3
    assert "f.png" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*words, "--input", scan, "--out", str(tmp_path / "f.gif")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "not one file per channel" in capsys.readouterr().err

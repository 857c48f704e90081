"""Optic discs from fake files: rim, cup and sites pixel by pixel, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg_diff.data.fundus import from_disc_folders, from_optic_discs
from medseg_diff.errors import InputError
from tests.data.test_domains import everywhere, label_of

# Rows and columns differ, so that neither can take the other's place.
SIZE = (5, 7)
GREYS = np.array([255, 128, 0])


def truth(seed: int) -> np.ndarray:
    """Background, rim and cup as 0, 1, 2."""
    return np.random.default_rng(seed).integers(0, 3, SIZE)


def picture(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(1000 + seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(colours).save(path)


def grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def refuge(folder: Path) -> None:
    """Four training and four validation pictures; the test part's masks are not there."""
    masks = folder / "Annotation-Training400" / "Disc_Cup_Masks"
    for n in range(1, 5):
        letter, kind = ("g", "Glaucoma") if n < 3 else ("n", "Non-Glaucoma")
        picture(folder / "Training400" / kind / f"{letter}{n:04d}.jpg", n)
        grey(masks / kind / f"{letter}{n:04d}.bmp", GREYS[truth(n)])
        picture(folder / "Disc_Cup_Fovea_Illustration" / kind / f"{letter}{n:04d}.jpg", 50 + n)
        picture(folder / "REFUGE-Validation400" / f"V{n:04d}.jpg", 10 + n)
        mask = folder / "REFUGE-Validation400-GT" / "Disc_Cup_Masks" / f"V{n:04d}.bmp"
        grey(mask, GREYS[truth(10 + n)])
    picture(folder / "Test400" / "T0001.jpg", 99)


def drishti(folder: Path) -> None:
    """Two training and two test pictures, with soft maps of four readers."""
    for n, part, answers in ((2, "Training", "GT"), (4, "Training", "GT"),
                             (1, "Test", "Test_GT"), (3, "Test", "Test_GT")):  # fmt: skip
        stem = f"drishtiGS_{n:03d}"
        picture(folder / part / "Images" / "NORMAL" / f"{stem}.png", 30 + n)
        label, maps = truth(30 + n), folder / part / answers / stem / "SoftMap"
        # One reader alone drew 64 outside; two of four make 128, which counts.
        grey(maps / f"{stem}_ODsegSoftmap.png", np.where(label == 0, 64, 128))
        grey(maps / f"{stem}_cupsegSoftmap.png", np.where(label == 2, 255, 127))


def test_refuge_and_drishti_become_one_list(tmp_path: Path):
    refuge(tmp_path / "in" / "REFUGE")
    drishti(tmp_path / "in" / "Drishti-GS1_files")
    caselist = from_optic_discs(tmp_path / "in", tmp_path / "out")
    everywhere(caselist, {"REFUGE_train", "REFUGE_validation", "Drishti_GS"})
    assert len(caselist.cases) == 12
    assert caselist.structures == {"optic_disc": [1, 2], "optic_cup": [2]}
    for n in range(1, 5):
        letter = "g" if n < 3 else "n"
        np.testing.assert_array_equal(label_of(caselist, f"refuge_{letter}{n:04d}"), truth(n))
        np.testing.assert_array_equal(label_of(caselist, f"refuge_V{n:04d}"), truth(10 + n))
        np.testing.assert_array_equal(label_of(caselist, f"drishtiGS_{n:03d}"), truth(30 + n))
    case = next(c for c in caselist.cases if c.case == "refuge_n0003")
    # Not the picture with outlines drawn in that has the same name.
    original = tmp_path / "in/REFUGE/Training400/Non-Glaucoma/n0003.jpg"
    assert caselist.channel_paths(case)["RGB"].read_bytes() == original.read_bytes()


def test_a_cup_counts_as_disc_where_no_disc_was_drawn(tmp_path: Path):
    drishti(tmp_path / "in")
    maps = tmp_path / "in" / "Training" / "GT" / "drishtiGS_002" / "SoftMap"
    disc, cup = np.zeros(SIZE), np.zeros(SIZE)
    disc[1], cup[2] = 191, 191
    grey(maps / "drishtiGS_002_ODsegSoftmap.png", disc)
    grey(maps / "drishtiGS_002_cupsegSoftmap.png", cup)
    caselist = from_optic_discs(tmp_path / "in", tmp_path / "out")
    expected = np.zeros(SIZE)
    expected[1], expected[2] = 1, 2
    np.testing.assert_array_equal(label_of(caselist, "drishtiGS_002"), expected)


def test_bad_files_of_refuge_are_refused(tmp_path: Path):
    home = tmp_path / "in"
    refuge(home)
    mask = home / "Annotation-Training400" / "Disc_Cup_Masks" / "Glaucoma" / "g0002.bmp"
    grey(mask, np.full(SIZE, 127))
    with pytest.raises(InputError, match=r"g0002.bmp: unknown mask values.*127.*0, 128, 255"):
        from_optic_discs(home, tmp_path / "1")
    grey(mask, np.full(SIZE, 255).T)
    with pytest.raises(InputError, match=r"g0002.bmp.*differs.*7, 5.*5, 7.*g0002.jpg"):
        from_optic_discs(home, tmp_path / "2")
    mask.unlink()
    with pytest.raises(InputError, match=r"images without a mask.*g0002"):
        from_optic_discs(home, tmp_path / "3")
    picture(home / "copy" / "V0001.jpg", 1)
    with pytest.raises(InputError, match=r"one name in several folders.*V0001.jpg"):
        from_optic_discs(home, tmp_path / "4")


def test_bad_files_of_drishti_are_refused(tmp_path: Path):
    home = tmp_path / "in"
    drishti(home)
    maps = home / "Test" / "Test_GT" / "drishtiGS_003" / "SoftMap"
    grey(maps / "drishtiGS_003_cupsegSoftmap.png", np.ones(SIZE))
    with pytest.raises(InputError, match=r"003_cupseg.*not a soft map \(found at most 1; .*Unpack"):
        from_optic_discs(home, tmp_path / "1")
    (maps / "drishtiGS_003_cupsegSoftmap.png").unlink()
    with pytest.raises(InputError, match=r"soft maps of the cup are missing.*drishtiGS_003"):
        from_optic_discs(home, tmp_path / "2")
    (maps / "drishtiGS_003_ODsegSoftmap.png").unlink()
    with pytest.raises(InputError, match=r"images without a mask.*drishtiGS_003"):
        from_optic_discs(home, tmp_path / "3")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no pictures with masks found.*Give the folder"):
        from_optic_discs(tmp_path / "empty", tmp_path / "4")


@pytest.mark.parametrize("coding", ["refuge", "labels"])
def test_folders_of_ones_own(tmp_path: Path, coding: str):
    values = GREYS if coding == "refuge" else np.arange(3)
    for s, site in enumerate(("one", "two")):
        for n in range(4):
            picture(tmp_path / "in" / site / "images" / f"x{n}.png", 10 * s + n)
            grey(tmp_path / "in" / site / "labels" / f"x{n}.png", values[truth(10 * s + n)])
    caselist = from_disc_folders(tmp_path / "in", tmp_path / "out", coding=coding)
    everywhere(caselist, {"one", "two"})
    for n in range(4):
        np.testing.assert_array_equal(label_of(caselist, f"two_x{n}"), truth(10 + n))
    other = "labels" if coding == "refuge" else "refuge"
    with pytest.raises(InputError, match=r"x\d.png"):
        from_disc_folders(tmp_path / "in", tmp_path / "again", coding=other)
    with pytest.raises(InputError, match=r"one: no pictures found.*SITE/images"):
        from_disc_folders(tmp_path / "in" / "one", tmp_path / "third", coding=coding)

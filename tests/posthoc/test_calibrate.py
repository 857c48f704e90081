"""A temperature fitted on validation cases, kept in the card, and used by every prediction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_diff.calibration import TopLabelCalibration, near_foreground
from medseg_diff.checkpoint import load_run
from medseg_diff.data.caselist import CaseList, load_caselist
from medseg_diff.errors import InputError, UsageError
from medseg_diff.inference.predictor import Predictor, load
from medseg_diff.io import read_label
from medseg_diff.posthoc.temperature import calibrate
from medseg_diff.temperature import apply_temperature
from medseg_diff.training.fit import fit
from tests.training_fixtures import tiny, write_dataset


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CaseList]:
    folder = tmp_path_factory.mktemp("calibrate")
    cases = write_dataset(folder)
    return fit(tiny(cases), folder / "run"), load_caselist(cases)


@pytest.fixture
def run(trained: tuple[Path, CaseList], tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def test_the_card_keeps_the_fit(trained: tuple[Path, CaseList], run: Path) -> None:
    """The fit lowers the NLL; the weights still load; the mask is the same, its map is not."""
    cases, before = trained[1], load(run)
    (case,) = cases.part("test")
    plain = before.predict(cases.channel_paths(case))
    found = calibrate(before, cases, draws=3)
    assert found.temperature.nll_after < found.temperature.nll_before
    card = load_run(run).card["calibration"]
    assert card["temperature"] == found.temperature.value != 1.0
    assert (card["part"], card["cases"], card["draws"]) == ("validation", 1, 3)
    after = load(run)
    answer = after.predict(cases.channel_paths(case))
    assert answer.record["temperature"] == found.temperature.value
    np.testing.assert_array_equal(np.asarray(answer.mask), np.asarray(plain.mask))
    wanted = apply_temperature(
        np.asarray(before.all_channels(plain)), found.temperature.value, exclusive=True
    )
    np.testing.assert_allclose(np.asarray(answer.probability), wanted[1:], atol=1e-5)
    np.testing.assert_allclose(np.asarray(answer.doubt), np.asarray(plain.doubt), atol=1e-6)
    raw = after.predict(cases.channel_paths(case), calibrated=False)
    assert raw.record["temperature"] is None
    np.testing.assert_array_equal(np.asarray(raw.probability), np.asarray(plain.probability))


def test_ece_is_that_of_the_judged_voxels(trained: tuple[Path, CaseList], run: Path) -> None:
    cases, predictor = trained[1], load(run)
    found = calibrate(predictor, cases)
    (case,) = cases.part("validation")
    answer = predictor.predict(cases.channel_paths(case), case=case.case, calibrated=False)
    truth = np.asarray(read_label(cases.reference_paths(case)[0]))[0]
    p = np.asarray(predictor.all_channels(answer))
    near = near_foreground((truth != 0) | (p.argmax(0) != 0), (1, 1, 1))
    pool = TopLabelCalibration()
    pool.add(p, truth, near)
    assert found.ece_before == pytest.approx(pool.score().ece, abs=1e-6)
    assert found.temperature.voxels == near.sum()


def test_fitting_again_starts_from_the_plain_probability(
    trained: tuple[Path, CaseList], run: Path
) -> None:
    first = calibrate(load(run), trained[1])
    again = calibrate(load(run), trained[1])
    assert again.temperature == first.temperature


def test_an_ensemble_keeps_its_mean(trained: tuple[Path, CaseList], run: Path) -> None:
    calibrate(load(run), trained[1])
    both = Predictor([load_run(run), load_run(run)])
    (case,) = trained[1].part("test")
    assert both.predict(trained[1].channel_paths(case)).record["temperature"] is None
    with pytest.raises(UsageError, match="belongs to one run"):
        calibrate(both, trained[1])


def test_the_test_part_is_never_fitted_on(trained: tuple[Path, CaseList], run: Path) -> None:
    with pytest.raises(UsageError, match="never fitted on the test part"):
        calibrate(load(run), trained[1], part="test")
    alone = trained[1].with_cases(trained[1].part("train"))
    with pytest.raises(InputError, match="no validation case"):
        calibrate(load(run), alone)


def test_the_command(
    trained: tuple[Path, CaseList], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from medseg_diff.cli.measure import calibrate as command

    command(run, device="cpu")
    out = capsys.readouterr().out
    assert out.startswith("temperature ")
    assert "on 1 cases" in out
    assert "temperature" in json.loads((run / "card.json").read_text())["calibration"]

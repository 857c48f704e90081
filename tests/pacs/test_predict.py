"""`predict --pacs` as a user types it, against a fake archive: what it says, leaves and sends."""

from __future__ import annotations

import gzip
import io as streams
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from medseg_diff import io
from medseg_diff.cli.main import main
from tests.io.dicoms import AXIAL, DATA, IDENTITY, SERIES, planes, save
from tests.pacs.fakes import Node, Web, node, row, web
from tests.tiny import save_untrained, tiny_config

STUDY, CASE = "2.25.5", f"series_{SERIES.replace('.', '-')[-12:]}"
CANARY = b"CANARY"
CUT, REFUSED, LOST = {"cut": 4}, {"stow": (409, {"CANARY": "CANARY"})}, {"lost": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("model") / "run", tiny_config())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return sorted(save(planes(AXIAL, DATA), tmp_path / "source").iterdir())


@pytest.fixture
def server(files: list[Path]) -> Iterator[Web]:
    with web(Web(files)) as running:
        yield running


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["medseg-diff", "predict", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def words(run: Path, url: str, out: Path) -> list[object]:
    model = ["--model", run, "--draws", 1, "--steps", 1, "--device", "cpu"]
    return [*model, "--pacs", url, "--study", STUDY, "--out", out]


def leaks(folder: Path) -> list[str]:
    """Files that hold a canary in their name or content."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        if CANARY in raw or b"19000101" in raw or "CANARY" in path.name:
            found.append(path.name)
    return found


def test_identity_goes_into_the_answers_and_nowhere_else(
    run: Path, server: Web, tmp_path, monkeypatch, capfd, caplog
):
    caplog.set_level(logging.DEBUG)
    assert call(monkeypatch, *words(run, server.url, tmp_path / "out"), "--store") == 0
    said = "".join(capfd.readouterr()) + caplog.text
    assert "CANARY" not in said
    assert STUDY not in said.replace(server.url, "")
    assert SERIES not in said
    assert leaks(tmp_path / "out") == [f"{CASE}_doubt.dcm", f"{CASE}_seg.dcm"]
    assert leaks(Path(tempfile.gettempdir())) == []
    assert list(Path(tempfile.gettempdir()).glob("medseg_diff*")) == []
    sent = [
        pydicom.dcmread(streams.BytesIO(body[body.index(b"\r\n\r\n") + 4 :]))
        for body in server.stored
    ]
    assert [dataset.Modality for dataset in sent] == ["SEG", "OT"]
    for dataset in sent:
        assert dataset.PatientName == IDENTITY["PatientName"]
        assert dataset.StudyInstanceUID == STUDY
        assert "InstitutionName" not in dataset


@pytest.mark.parametrize("fault", [CUT, LOST, REFUSED, {"status": 500}, {"password": "CANARY"}])
def test_failures_carry_none_and_leave_no_scan(
    run: Path, server: Web, tmp_path, monkeypatch, capfd, caplog, fault: dict[str, object]
):
    caplog.set_level(logging.DEBUG)
    for name, value in fault.items():
        setattr(server, name, value)
    out = tmp_path / "out"
    assert call(monkeypatch, *words(run, server.url, out), "--store") == 1
    shown = capfd.readouterr()
    assert "CANARY" not in shown.out + shown.err + caplog.text
    assert "Traceback" not in shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert list(Path(tempfile.gettempdir()).glob("medseg_diff*")) == []
    # A refused storage leaves the prediction itself where it is.
    assert (out / f"{CASE}.nii.gz").is_file() == (fault is REFUSED)
    if fault is REFUSED:
        assert f"{CASE}_seg.dcm" in shown.err
        assert "HTTP 409" in shown.err


def test_nothing_is_sent_back_without_being_asked(run, server: Web, tmp_path, monkeypatch):
    assert call(monkeypatch, *words(run, server.url, tmp_path / "out")) == 0
    assert server.stored == []
    assert (tmp_path / "out" / f"{CASE}_seg.dcm").is_file()


def test_storing_again_needs_no_new_prediction(run, server: Web, tmp_path, monkeypatch, capfd):
    asked = words(run, server.url, tmp_path / "out")
    server.stow = (503, {})
    assert call(monkeypatch, *asked, "--store") == 1
    written = (tmp_path / "out" / f"{CASE}_seg.dcm").stat().st_mtime_ns
    server.stow = None
    assert call(monkeypatch, *asked, "--store", "--continue") == 0
    assert "done before" in capfd.readouterr().out
    assert (tmp_path / "out" / f"{CASE}_seg.dcm").stat().st_mtime_ns == written


def test_the_answer_is_that_of_the_folder(run, server: Web, files, tmp_path, monkeypatch):
    assert call(monkeypatch, *words(run, server.url, tmp_path / "out")) == 0
    with node(Node(files)) as dicom:
        assert call(monkeypatch, *words(run, dicom.url, tmp_path / "dimse")) == 0
    folder = files[0].parent.rename(tmp_path / CASE)
    local = ["--model", run, "--draws", 1, "--steps", 1, "--device", "cpu", "--input", folder]
    assert call(monkeypatch, *local, "--out", tmp_path / "local") == 0
    masks = [tmp_path / out / f"{CASE}.nii.gz" for out in ("out", "dimse", "local")]
    assert io.read_label(masks[2]).max() > 0
    assert masks[0].read_bytes() == masks[1].read_bytes() == masks[2].read_bytes()


def test_one_of_several_series(run: Path, server: Web, tmp_path, monkeypatch, capfd):
    server.extra = [row(**{"0020000E": "1.2.3.4567890", "00080060": "CT"}) | {"class": ""}]
    assert call(monkeypatch, *words(run, server.url, tmp_path / "out")) == 1
    assert "--series" in capfd.readouterr().err
    assert call(monkeypatch, *words(run, server.url, tmp_path / "out"), "--series", "1111") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--study": None}, "--study"),
        ({"--study": "../1"}, "not a UID"),
        ({"--pacs": None}, "--input or --pacs"),
        ({"--input": "x"}, "--input or --pacs"),
        ({"--pacs": "http://jane:CANARY@h/x"}, "environment variables"),
        ({"--pacs-ca": "ca.pem"}, "dicoms:// alone"),
        ({"--pacs": "dicoms://A@127.0.0.1:2762", "--pacs-ca": "gone.pem"}, "no such file"),
        ({"--own-aet": "much too long a title"}, "AE title"),
        ({"--store": "", "--no-dicom-seg": ""}, "nothing to store"),
        ({"--pacs": None, "--input": "x", "--store": ""}, "needs --pacs"),
    ],
)
def test_wrong_use(tmp_path, monkeypatch, capfd, change: dict[str, str | None], message: str):
    """Said before a model is loaded: there is none."""
    options = {"--model": "nowhere", "--pacs": "http://127.0.0.1:9/x", "--study": STUDY,
               "--out": str(tmp_path / "out")} | change  # fmt: skip
    given = [w for k, v in options.items() if v is not None for w in ((k, v) if v else (k,))]
    assert call(monkeypatch, *given) == 2
    line = capfd.readouterr().err
    assert message in line
    assert "CANARY" not in line


BOTH = {"task": {"channels": ["T1", "T2"]}, "plan": {"normalisation": [{"kind": "zscore"}] * 2}}


@pytest.fixture
def two(files: list[Path], tmp_path: Path) -> Iterator[Web]:
    """A study of two series on one frame of reference, the second one twice as bright."""

    def second(dataset: pydicom.Dataset, _: int) -> None:
        dataset.SeriesInstanceUID = f"{SERIES}.2"
        dataset.SOPInstanceUID = pydicom.uid.generate_uid()

    other = save(planes(AXIAL, DATA * 2, edit=second), tmp_path / "second")
    with web(Web([*files, *sorted(other.iterdir())])) as running:
        yield running


def test_a_model_of_several_channels_fetches_a_series_for_each(
    two: Web, tmp_path: Path, monkeypatch, capfd
):
    model, out = save_untrained(tmp_path / "two", tiny_config(**BOTH)), tmp_path / "out"
    asked = ["--series", f"T2={SERIES}.2,T1={SERIES}", "--store"]
    assert call(monkeypatch, *words(model, two.url, out), *asked) == 0
    said = capfd.readouterr().out
    assert said.count("fetched: ") == 2
    assert "for T2" in said
    local = tmp_path / "local"
    for folder, channel in (("source", "T1"), ("second", "T2")):
        (tmp_path / folder).rename(tmp_path / f"{CASE}_{channel}")
    given = ["--input", *(tmp_path / f"{CASE}_{c}" for c in ("T1", "T2"))]
    settings = ["--model", model, "--draws", 1, "--steps", 1, "--device", "cpu", "--out", local]
    assert call(monkeypatch, *settings, given[0], given[1], "--input", given[2]) == 0
    for end in ("", "_prob"):
        one, other = (d / f"{CASE}{end}.nii.gz" for d in (out, local))
        assert one.read_bytes() == other.read_bytes()
    assert len(two.stored) == 2
    assert list(Path(tempfile.gettempdir()).glob("medseg_diff*")) == []


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ([], "T1=END_OF_UID,T2=END_OF_UID"),
        (["--series", SERIES], "T1=END_OF_UID"),
        (["--series", f"T1={SERIES}"], "T1=END_OF_UID"),
        (["--series", f"T1={SERIES},T1={SERIES}.2"], "T1=END_OF_UID"),
        (["--series", f"T1={SERIES},FLAIR={SERIES}.2"], "T1=END_OF_UID"),
        (["--series", f"T1={SERIES},T2={SERIES}"], "one series for two channels"),
        (["--series", f"T1={SERIES},T2=9999"], "no series ends in"),
    ],
)
def test_each_channel_needs_its_own_series(
    two: Web, tmp_path: Path, monkeypatch, capfd, asked: list[str], word: str
):
    model = save_untrained(tmp_path / "two", tiny_config(**BOTH))
    assert call(monkeypatch, *words(model, two.url, tmp_path / "out"), *asked) in (1, 2)
    shown = capfd.readouterr().err
    assert word in shown
    assert len(shown.strip().splitlines()) == 1
    assert not list((tmp_path / "out").glob("*"))


def test_a_missing_extra_is_named(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "dicomweb_client", None)
    monkeypatch.delitem(sys.modules, "dicomweb_client.web", raising=False)
    monkeypatch.delitem(sys.modules, "medseg_diff.pacs.dicomweb", raising=False)
    assert call(monkeypatch, *words(run, "http://127.0.0.1:9/x", tmp_path / "out")) == 2
    assert "medseg-diff[pacs]" in capfd.readouterr().err

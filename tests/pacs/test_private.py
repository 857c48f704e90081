"""The folder in which scans wait: for its owner only, and never left behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from medseg_diff.errors import InputError
from medseg_diff.pacs.archive import new_file
from medseg_diff.pacs.private import private_folder

LINGER = """
import sys
from medseg_diff.pacs.private import private_folder
with private_folder() as folder:
    (folder / "scan.dcm").write_text("CANARY")
    print(folder, flush=True)
    sys.stdin.read()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_its_owner_may_look(tmp_path: Path):
    old = os.umask(0)
    try:
        with private_folder() as folder:
            assert mode(folder) == 0o700
            assert mode(new_file(folder, 3)) == 0o600
            assert [p.name for p in folder.iterdir()] == ["000003.dcm"]
    finally:
        os.umask(old)


def test_it_is_removed_on_success_and_on_failure():
    with private_folder() as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x.dcm").write_text("x")
    assert not folder.exists()
    seen = []

    def interrupted() -> None:
        with private_folder() as folder:
            seen.append(folder)
            (folder / "x.dcm").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not seen[0].exists()


def test_what_a_killed_process_left_is_removed_and_a_living_one_keeps_its_own():
    root = tempfile.gettempdir()
    words = [sys.executable, "-c", LINGER]
    environment = {**os.environ, "TMPDIR": root}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(words, env=environment, **pipes) as killed,
        subprocess.Popen(words, env=environment, **pipes) as living,
    ):
        dead, alive = (Path(p.stdout.readline().strip()) for p in (killed, living))
        killed.kill()
        killed.wait()
        assert dead.is_dir()
        with private_folder():
            assert not dead.exists()
            assert (alive / "scan.dcm").read_text() == "CANARY"
        living.communicate("")
        assert not alive.exists()


def test_links_and_other_computers_folders_are_left_alone(tmp_path: Path):
    root = Path(tempfile.gettempdir())
    with private_folder() as folder:
        ours = folder.name.split("-")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "x").write_text("x")
    link = root / "-".join([*ours[:2], "999999999", "1", "aa"])
    link.symlink_to(precious)
    foreign = root / "-".join([ours[0], "00000000", "999999999", "1", "aa"])
    foreign.mkdir()
    with private_folder():
        assert (precious / "x").is_file()
        assert foreign.is_dir()


def test_no_room_is_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    with pytest.raises(InputError, match="TMPDIR"), private_folder():
        pass

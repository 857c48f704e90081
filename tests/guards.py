"""Take away one guard of the fault tables at a time and see the row's tests fail.

    python -m tests.guards [F39 K05 ...]      # all listed rows without arguments
    python tests/reliability.py               # puts what this found into docs/reliability.md

Each guard is one replacement of text in a temporary copy of the package; the tests that carry the
row's number run against the copy. What was found is kept in `docs/guards.json`.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.planted_faults import ROOT, Fault, preload, run_tests
from tests.reliability import guards as tests_of

RECORD = ROOT / "docs" / "guards.json"


class Guard(NamedTuple):
    """What protects a row: a text in a file of the package, and the same without the guard."""

    file: str
    fault: Fault


GUARDS = {
    "F11": Guard("io/grid.py", Fault("if not distance <= GRID_TOLERANCE_MM:", "if False:")),
    "F12": Guard("io/grid.py", Fault("if shapes[0] != shapes[1]:", "if False:")),
    "F15": Guard("io/nifti.py", Fault("n == 1 and options.volume is None", "False")),
    "F16": Guard("io/nifti.py", Fault("0 <= options.volume < n", "True")),
    "F24": Guard("io/stored.py", Fault("> _EXACT_IN_FLOAT32:", "> 2**62:")),
    "F25": Guard("io/stored.py", Fault("if count and options.nan_fill is None:", "if False:")),
    "F26": Guard("io/stored.py", Fault("if count and options.nan_fill is None:", "if False:")),
    "F27": Guard("inference.py", Fault("if placed.constant:", "if False:")),
    "F28": Guard("sanity.py", Fault("if low >= 0 or high <= 0:", "if False:")),
    "F29": Guard("data/transforms.py", Fault("if spec.clip is not None:", "if False:")),
    "F30": Guard("io/stored.py", Fault("INTEGER_TOLERANCE = 0.01", "INTEGER_TOLERANCE = 0.0")),
    "F31": Guard("io/stored.py", Fault("INTEGER_TOLERANCE = 0.01", "INTEGER_TOLERANCE = 1.0")),
    "F32": Guard("io/stored.py", Fault("    if odd:\n", "    if False:\n")),
    "F33": Guard("io/images.py", Fault("np.uint8 if n_classes <= 255", "np.uint8 if True")),
    "F35": Guard("io/safety.py", Fault("    except EOFError:", "    except ZeroDivisionError:")),
    "F36": Guard("io/safety.py", Fault("while chunk := stream.read(_CHUNK):", "while False:")),
    "F39": Guard("io/safety.py", Fault("if claimed > (size", "if False and claimed > (size")),
    "F42": Guard("io/safety.py", Fault("if stat.S_ISDIR(status.st_mode):", "if False:")),
    "F44": Guard("batch.py", Fault("if channel in other:", "if False:")),
    "F70": Guard("checkpoint.py", Fault("    if differing:\n", "    if False:\n")),
    "F71": Guard("checkpoint.py", Fault("!= expected:\n", "== 0:\n")),
    "F72": Guard("sanity.py", Fault("if share == 0:", "if False:")),
    "F73": Guard("memory.py", Fault("now.host_bytes(on_host=device is None) > host", "False")),
    "F74": Guard("memory.py", Fault("if voxels * READ_BYTES > host:", "if False:")),
    "K01": Guard(
        "checkpoint.py",
        Fault('Path(tempfile.mkdtemp(dir=parent, prefix=".new_"))', 'parent / f"step_{step:08d}"'),
    ),
    "K02": Guard("checkpoint.py", Fault("    except OSError as", "    except EOFError as")),
    "K05": Guard("checkpoint.py", Fault("if _is_whole(candidate):", "if True:")),
    "K06": Guard("resume.py", Fault("if changed and not allow_mismatch:", "if False:")),
    "K09": Guard("training.py", Fault(">= training.stop_after_bad_losses:", "< 0:")),
    "K10": Guard("batch.py", Fault("or entry.made_from != made_from", "")),
    "K11": Guard("batch.py", Fault("except Exception as error:", "except EOFError as error:")),
    "K12": Guard("manifest.py", Fault("entry.owner == self.owner", "True")),
    "K14": Guard("batch.py", Fault("if out.resolve() in folders:", "if False:")),
    "K15": Guard("inference.py", Fault("except torch.OutOfMemoryError", "except EOFError")),
    "K20": Guard("batch.py", Fault("        _remove_images(out, case.name)", "        pass")),
}  # fmt: skip


def tests_notice(copy: Path, row: str, guard: Guard) -> bool:
    """Whether a test of the row fails without its guard."""
    target = copy / "medseg_diff" / guard.file
    original = target.read_text(encoding="utf-8")
    if guard.fault.old not in original:
        raise SystemExit(f"{row}: the guard is gone from {guard.file}: {guard.fault.old}")
    target.write_text(original.replace(guard.fault.old, guard.fault.new, 1), encoding="utf-8")
    names = " ".join(f"{test.file}::{test.name}" for test in tests_of()[row])
    try:
        return run_tests(copy, names) != 0
    finally:
        target.write_text(original, encoding="utf-8")


def main() -> int:
    """Remove the guards of the chosen rows; 1 if one is not missed."""
    chosen = sys.argv[1:] or sorted(GUARDS)
    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    preload()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        for part in ("medseg_diff", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for row in chosen:
            missed = tests_notice(copy, row, GUARDS[row])
            found[row] = "missed" if missed else "not missed"
            print(f"{row}: {found[row]} ({GUARDS[row].file})", flush=True)
            RECORD.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    return int(any(found[row] != "missed" for row in chosen))


if __name__ == "__main__":
    sys.exit(main())

"""The direction of imports, the fences around third parties, and what is never done."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "medseg_diff"
# Data runs down this list; a module imports only what stands above it.
ORDER = (
    "errors", "files", "memory", "recipes", "config", "io", "pacs", "data", "networks", "codecs",
    "diffusion", "model", "checkpoint", "adapters", "fusion", "calibration", "temperature",
    "metrics", "inference", "translation", "synthesis", "batch", "figures", "report",
    "comparison", "evaluation", "posthoc", "training", "adaptation", "cli",
)  # fmt: skip
RANK = {name: rank for rank, name in enumerate(ORDER)}
FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner_imports(path: Path) -> set[str]:
    """Parts of the package that a file imports from."""
    found = {n.split(".")[1] for n in imports(path) if n.startswith("medseg_diff.")}
    return {name for name in found if name in ORDER}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


file_of = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))


def test_every_module_has_its_place():
    assert {part_of(p) for p in FILES} - {"__init__"} <= set(ORDER)


@file_of
def test_imports_run_up_the_list(path: Path):
    part = part_of(path)
    if part == "__init__":
        pytest.skip("the package's front door")
    late = {n for n in inner_imports(path) if RANK[n] > RANK[part]}
    assert not late, f"{part} imports {sorted(late)}, which come after it"


@pytest.mark.parametrize(
    ("part", "stranger"), [("networks", "diffusion"), ("diffusion", "networks")]
)
def test_networks_and_diffusion_do_not_know_each_other(part: str, stranger: str):
    files = [p for p in FILES if part_of(p) == part]
    assert files
    for path in files:
        assert stranger not in inner_imports(path), path.name
        assert not inner_imports(path) & {"io", "data", "model", "config"}, path.name


def test_fusion_knows_nobody():
    files = [p for p in FILES if part_of(p) == "fusion"]
    assert files
    for path in files:
        assert inner_imports(path) <= {"fusion"}, path.name
        assert {n.split(".")[0] for n in imports(path)} <= {
            *sys.stdlib_module_names, "numpy", "scipy", "medseg_diff",
        }, path.name  # fmt: skip


def test_only_the_model_sees_networks_and_diffusion_together():
    both = {part_of(p) for p in FILES if {"networks", "diffusion"} <= inner_imports(p)}
    assert both == {"model"}


@file_of
def test_file_formats_stay_inside_io(path: Path):
    formats = {"io": set(), "pacs": {"nibabel", "highdicom"}}
    fenced = formats.get(part_of(path), {"nibabel", "pydicom", "highdicom"})
    assert not [n for n in imports(path) if n.split(".")[0] in fenced]


@file_of
def test_the_network_stays_inside_pacs(path: Path):
    if part_of(path) != "pacs":
        network = {"pynetdicom", "dicomweb_client", "requests", "urllib3", "http", "ssl"}
        assert not [n for n in imports(path) if n.split(".")[0] in network]


def test_pacs_knows_only_io():
    """Sending and receiving need no model, no data and no figures."""
    files = [p for p in FILES if part_of(p) == "pacs"]
    assert files
    for path in files:
        assert inner_imports(path) <= {"errors", "io", "pacs"}, path.name


@file_of
def test_nothing_dangerous(path: Path):
    modules = {n.split(".")[0] for n in imports(path)}
    assert not modules & {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    # MONAI's bundles work out expressions that stand in their files.
    assert not [n for n in imports(path) if n.startswith("monai.bundle") or "ConfigParser" in n]
    for name, call in calls(path):
        assert name.split(".")[-1] not in ("extractall", "unpack_archive"), name
        words = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert name not in ("eval", "exec", "torch.load", "os.system", "os.popen"), name
        assert name not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), name
        assert words.get("shell", "False") == "False", f"{name}: shell"
        assert words.get("allow_pickle", "False") == "False", f"{name}: allow_pickle"


@file_of
def test_files_are_short(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_importing_the_package_is_light():
    code = (
        "import sys, medseg_diff, medseg_diff.cli.main\n"
        "heavy = {'torch', 'monai', 'SimpleITK', 'matplotlib', 'pandas', 'scipy', 'nibabel',"
        " 'pydicom', 'pynetdicom', 'dicomweb_client', 'requests', 'ray'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

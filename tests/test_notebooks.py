"""The notebooks run from top to bottom, on the embedded sample and the shipped model."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("01_quickstart", 1),
        ("02_diffusion_core", 3),
        ("03_many_plausible_masks", 4),
        ("04_hospital_scan", 1),
        ("05_translation", 2),
        ("06_domain_shift", 2),
    ],
)
def test_notebook_runs(repository: Path, tmp_path: Path, name: str, count: int) -> None:
    """Its last code cell asserts a Dice; here we see that it was reached."""
    notebook = nbformat.read(repository / "notebooks" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    assert last.execution_count == len([c for c in notebook.cells if c.cell_type == "code"])
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == count

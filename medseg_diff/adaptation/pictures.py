"""Pictures of a comparison: a case under every row, the best rows, scans that were restyled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_diff import io
from medseg_diff.adaptation.definition import Experiment
from medseg_diff.adaptation.experiment import domain_cases, scores_folder
from medseg_diff.adaptation.table import ORACLE, Table, read_rows
from medseg_diff.adaptation.work import SOURCE_ONLY
from medseg_diff.adaptation.write import Picture, write_table
from medseg_diff.data.caselist import FILE_NAME, Case, CaseList, load_caselist
from medseg_diff.figures import Panel, domain_panels

# Rows beside source_only and the oracle in the picture of the best.
BEST = 3


def write_report(wanted: Experiment, target: str, files: Sequence[Path], out: Path) -> Table:
    """Table and report of one target of a comparison that was run.

    Args:
        wanted: The comparison.
        target: Name of one of its targets.
        files: The rows' CSVs.
        out: The comparison's folder.

    Raises:
        InputError: if a row, a scan or a prediction is missing.
    """
    shown = Shown.of(wanted, target, out)
    long = read_rows(files)
    long = long[(long["domain"] == "target") & (long["seed"] == wanted.seeds[0])]
    dice = long.groupby(["row", "case"], sort=False)["dice"].mean()

    def pictures(table: Table) -> list[Picture]:
        drawn = [_best(shown, table, dice), _every_row(shown), _restyled(shown)]
        return [one for one in drawn if one is not None]

    return write_table(f"{wanted.name}, {target}", files, out / target, pictures)


@dataclass(frozen=True)
class Shown:
    """What pictures of a target are made from.

    Attributes:
        experiment: The comparison.
        target: Name of the target.
        out: The comparison's folder.
        source: The source's cases.
        cases: The target's.
    """

    experiment: Experiment
    target: str
    out: Path
    source: CaseList
    cases: CaseList

    @classmethod
    def of(cls, experiment: Experiment, target: str, out: Path) -> Shown:
        """Of a comparison that was run."""
        source = domain_cases(experiment, experiment.source, out / "domains" / "source")
        place = out / "domains" / target
        cases = domain_cases(experiment, experiment.targets[target], place)
        return cls(experiment, target, out, source, cases)

    @property
    def labels(self) -> list[int]:
        """Label values of the structures."""
        return [v for values in self.cases.structures.values() for v in values]

    @property
    def scored(self) -> list[Case]:
        """Cases that were scored."""
        return [c for c in self.cases.part(self.experiment.part) if c.references]

    def reference(self, case: Case) -> NDArray[np.int16]:
        """First reference mask (*S)."""
        return np.asarray(io.read_label(self.cases.reference_paths(case)[0]))[0]

    def panel(self, row: str, case: Case, title: str) -> Panel:
        """What a row was shown of a case and what it answered."""
        seed = self.experiment.seeds[0]
        folder = scores_folder(self.out, self.target, seed, row, "target")
        shown = folder / "images" / FILE_NAME
        listed = load_caselist(shown.parent) if shown.is_file() else self.cases
        own = next(c for c in listed.cases if c.case == case.case)
        path = next(
            p
            for p in (folder / "predictions").iterdir()
            if io.case_stem(p) == case.case and p.name.endswith((".nii.gz", ".png"))
        )
        reference = self.reference(case)
        cut = _cut(reference)
        mask = np.asarray(io.read_label(path))[0]
        return Panel(title, _image(listed, own)[cut].T, reference[cut].T, mask[cut].T)

    def scan(self, cases: CaseList, case: Case, title: str) -> Panel:
        """A scan with the reference of the target's case of that name."""
        reference = np.asarray(io.read_label(cases.reference_paths(case)[0]))[0]
        cut = _cut(reference)
        return Panel(title, _image(cases, case)[cut].T, reference[cut].T)


def target_picture(experiment: Experiment, target: str, out: Path) -> bytes:
    """PNG of one slice: source, target, then what each row was shown and answered.

    Raises:
        InputError: if a scan or a prediction is missing.
    """
    return _every_row(Shown.of(experiment, target, out)).png


def _every_row(shown: Shown) -> Picture:
    case = shown.scored[0]
    # Domains of other patients have no picture of this one.
    twin = next((c for c in shown.source.cases if c.case == case.case), None)
    panels = [] if twin is None else [shown.scan(shown.source, twin, "source")]
    panels.append(shown.scan(shown.cases, case, "target"))
    panels += [shown.panel(row, case, _words(row)) for row in shown.experiment.rows]
    return Picture(
        "One case under every row",
        "The first scored case, where its reference is largest. Dashed: reference; solid: "
        "prediction. Each row's picture is what its model was shown.",
        domain_panels(panels, shown.labels),
        "One case in source and target, and every row's answer",
    )


def _best(shown: Shown, table: Table, dice: pd.Series) -> Picture | None:
    """Three cases, from the one that the shift harms most, under the best rows."""
    rows = [name for name in _ranked(table, shown.experiment) if name in dice.index]
    first = SOURCE_ONLY if SOURCE_ONLY in rows else rows[0]
    others = [name for name in rows if name not in (SOURCE_ONLY, ORACLE)][:BEST]
    columns = [first, *others, *([ORACLE] if ORACLE in rows else [])]
    columns = list(dict.fromkeys(columns))
    order = dice[first].sort_values()
    chosen = list(dict.fromkeys(order.index[[0, len(order) // 2, -1]]))
    panels = []
    for name in chosen:
        case = next(c for c in shown.scored if c.case == name)
        panels.append(shown.scan(shown.cases, case, f"{name}, target"))
        panels += [shown.panel(r, case, f"{_words(r)}: {dice[r][name]:.2f}") for r in columns]
    return Picture(
        "The best rows",
        "Cases with the lowest, the middle and the highest Dice of the first row of masks, where "
        "their references are largest. Dashed: reference; solid: prediction; numbers: Dice of the "
        f"case. Rows by mean target Dice, the first {BEST}; chosen on the scored cases, so no "
        "measure of how good a choice on other cases would be.",
        domain_panels(panels, shown.labels, columns=len(columns) + 1),
        "Three target scans with the masks of the best rows",
    )


def _ranked(table: Table, experiment: Experiment) -> list[str]:
    order = table.rows.sort_values("dice", ascending=False, kind="stable")["row"]
    return [name for name in order if name in experiment.rows]


def _restyled(shown: Shown) -> Picture | None:
    """Scans before and after, for rows that restyle them for prediction or for training."""
    panels = []
    home = shown.out / shown.target / f"seed{shown.experiment.seeds[0]}"
    for row in shown.experiment.rows:
        at_test = scores_folder(shown.out, shown.target, shown.experiment.seeds[0], row, "target")
        for folder, origin in ((at_test / "images", shown.cases), (home / row, shown.source)):
            if not (folder / FILE_NAME).is_file():
                continue
            listed = load_caselist(folder)
            case = next((c for c in listed.cases if c.references), None)
            before = next((c for c in origin.cases if case and c.case == case.case), None)
            if case is not None and before is not None:
                panels.append(shown.scan(origin, before, f"{case.case}, as it is"))
                panels.append(shown.scan(listed, case, f"{_words(row)}"))
    if not panels:
        return None
    return Picture(
        "Restyled scans",
        "In pairs: a scan as it is, and as the row restyled it: a target scan before prediction, "
        "or a source scan before training. Each in its own grey window.",
        domain_panels(panels, shown.labels, columns=4),
        "Scans before and after restyling",
    )


def _words(row: str) -> str:
    return row.replace("_", " ")


def _cut(reference: NDArray[np.int16]) -> tuple[slice | int, ...]:
    """The slice of the last axis with most of the reference; all of a 2-D image."""
    if reference.ndim == 2:
        return (slice(None), slice(None))
    return (slice(None), slice(None), int((reference > 0).sum((0, 1)).argmax()))


def _image(cases: CaseList, case: Case) -> NDArray[np.float32]:
    return np.asarray(io.read_channels(cases.channel_paths(case)))[0]

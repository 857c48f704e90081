"""What an evaluation says beyond overlap: calibration, risk and coverage, plausibility.

Each part appears where its files do: calibration needs the probability maps that `predict` wrote
beside the masks, risk and coverage the draws' spread in the JSON, plausibility the draws themselves
and at least two annotators.

Legend: N draws, R annotators, K structures, *S spatial axes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_diff.calibration import MARGIN_MM, RegionalCalibration
from medseg_diff.errors import InputError
from medseg_diff.io import ReadOptions, read_image, read_label
from medseg_diff.metrics import plausibility, statistics
from medseg_diff.metrics.pairing import CaseFiles
from medseg_diff.metrics.risk import AURC_DEFINITION, risk_coverage, score_doubt
from medseg_diff.report import Extras

DOUBTS = {
    "spread": "1 - mean Dice between draws",
    "entropy": "predictive entropy per predicted voxel",
}
_PLAUSIBLE = {
    "ged2": "GED²",
    "hm_iou": "HM-IoU",
    "best_dice_references": "best-match Dice",
    "sample_diversity": "diversity of draws",
    "reference_diversity": "diversity of annotators",
}


@dataclass
class Appraisal:
    """Sums over cases; no map is kept.

    Args:
        structures: Name to label values.
        annotators: Case to all of its reference masks, where there are several.
        ignore_label: Value whose voxels are not judged.
        options: How to read maps and masks.
    """

    structures: Mapping[str, Sequence[int]]
    annotators: Mapping[str, Sequence[Path]]
    ignore_label: int | None
    options: ReadOptions
    _pools: dict[str, RegionalCalibration] = field(default_factory=dict)
    _together: RegionalCalibration = field(default_factory=RegionalCalibration)
    _doubts: dict[str, dict[str, float]] = field(default_factory=dict)
    _plausible: list[dict[str, Any]] = field(default_factory=list)

    def add(self, case: CaseFiles, reference: NDArray[Any], affine: NDArray[np.float64]) -> None:
        """Take one case.

        Args:
            case: Its files.
            reference: Label map (*S) of the first annotator.
            affine: Voxel to mm, (4, 4).

        Raises:
            InputError: if a map or mask is not on the reference's grid.
        """
        if case.prediction is None:
            return
        references = self._references(case, reference)
        spacing = [float(n) for n in np.linalg.norm(affine[:3, :3], axis=0)][: reference.ndim]
        self._calibrate(case, references, spacing)
        self._doubts[case.name] = self._case_doubt(case)
        if case.draws is not None and len(references) > 1:
            self._cover(case, references)

    def summary(self, per_case: pd.DataFrame, patients: Mapping[str, str] | None) -> dict[str, Any]:
        """Numbers for ``summary.json``; a part without data is left out."""
        found: dict[str, Any] = {}
        if self._pools:
            found["calibration"] = {
                name: {score.region: _plain(asdict(score)) for score in pool.scores()}
                for name, pool in self._pools.items()
            }
        risks = self._risks(per_case, patients)
        if risks:
            found["doubt"] = {"aurc": AURC_DEFINITION, "doubts": DOUBTS, "scores": risks}
        if self._plausible:
            table = self.plausible_cases()
            found["plausibility"] = {
                "definition": plausibility.GED_DEFINITION,
                "hm_iou": plausibility.HM_IOU_DEFINITION,
                "structures": {
                    str(name): _means(rows) for name, rows in table.groupby("structure", sort=False)
                },
            }
        return found

    def extras(self, per_case: pd.DataFrame) -> Extras:
        """The report's further sections."""
        notes = []
        bins = curve = table = None
        if self._pools:
            diagram = self._together.near.diagram()
            bins = [
                (float(c), float(f), int(n))
                for c, f, n in zip(
                    diagram.confidence, diagram.frequency, diagram.count, strict=True
                )
                if n > 0
            ]
            notes.append(
                f"Calibration: voxels within {MARGIN_MM:g} mm of a structure, all structures "
                "pooled; over the whole image the background flatters (summary.json has both)."
            )
        risk, doubts = self._paired(per_case)
        curves = {
            DOUBTS[name]: risk_coverage(risk, doubt)
            for name, doubt in doubts.items()
            if np.isfinite(doubt).sum() > 1
        }
        if curves:
            curve = {name: (c.coverage, c.risk) for name, c in curves.items()}
            notes.append("Risk is 1 - mean Dice of the cases answered, the least doubted first.")
        if self._plausible:
            table = _shown(self.plausible_cases())
            notes.append(f"GED is {plausibility.GED_DEFINITION}.")
        return Extras(bins, curve, table, tuple(notes))

    def plausible_cases(self) -> pd.DataFrame:
        """One row per case and structure: GED and its companions; empty without draws."""
        return pd.DataFrame(self._plausible)

    def _references(self, case: CaseFiles, first: NDArray[Any]) -> NDArray[Any]:
        paths = list(self.annotators.get(case.name, ()))
        if len(paths) < 2:
            return first[None]
        judged = read_label(paths[0], options=self.options)
        masks = [
            np.asarray(read_label(path, like=judged, options=self.options))[0] for path in paths
        ]
        return np.stack(masks)

    def _calibrate(
        self, case: CaseFiles, references: NDArray[Any], spacing: Sequence[float]
    ) -> None:
        """Judge each structure's probability by the share of annotators who marked a voxel."""
        maps = self._map(case, "_prob", references.shape[1:])
        names = list(case.record.get("voxels", ()))
        if maps is None or len(maps) != len(names):
            return
        where = None
        if self.ignore_label is not None:
            where = (references != self.ignore_label).all(0)
        for name, plane in zip(names, maps, strict=True):
            if name not in self.structures:
                continue
            truth = np.isin(references, list(self.structures[name])).mean(0)
            p = np.clip(plane, 0, 1)
            for pool in (self._pools.setdefault(name, RegionalCalibration()), self._together):
                pool.add(p, truth, spacing, where)

    def _case_doubt(self, case: CaseFiles) -> dict[str, float]:
        spread = [v for v in case.record.get("pairwise_dice", {}).values() if v is not None]
        found = {"spread": 1 - float(np.mean(spread)) if spread else math.nan}
        size = sum(case.record.get("voxels", {}).values())
        maps = self._map(case, "_doubt", None)
        # An empty mask has no voxel to share its doubt among: all of it counts.
        found["entropy"] = math.nan if maps is None else float(maps[0].sum()) / max(size, 1)
        return found

    def _cover(self, case: CaseFiles, references: NDArray[Any]) -> None:
        assert case.draws is not None
        draws = np.asarray(read_image(case.draws, _all_volumes(self.options)))
        if draws.shape[1:] != references.shape[1:]:
            raise InputError(
                "draws are not on the grid of the reference",
                file=case.draws,
                found=draws.shape[1:],
                expected=references.shape[1:],
            )
        scores = plausibility.score_structures(
            draws.astype(np.int32), references, self.structures, ignore_label=self.ignore_label
        )
        for name, score in scores.items():
            self._plausible.append({"case": case.name, "structure": name, **asdict(score)})

    def _map(
        self, case: CaseFiles, ending: str, shape: tuple[int, ...] | None
    ) -> NDArray[np.float32] | None:
        """A map beside the prediction, (K, *S), or None."""
        assert case.prediction is not None
        for suffix in (".nii.gz", ".tif"):
            path = case.prediction.with_name(f"{case.name}{ending}{suffix}")
            if not path.is_file():
                continue
            values = np.asarray(read_image(path, _all_volumes(self.options)))
            if shape is not None and values.shape[1:] != shape:
                raise InputError(
                    "the map is not on the grid of the reference",
                    file=path,
                    found=values.shape[1:],
                    expected=shape,
                )
            return values
        return None

    def _paired(
        self, per_case: pd.DataFrame
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Risk of every case, and each doubt in the same order."""
        dice = statistics.case_means(per_case)["dice"]
        blank = dict.fromkeys(DOUBTS, math.nan)
        doubts = {
            name: np.array([self._doubts.get(str(case), blank)[name] for case in dice.index])
            for name in DOUBTS
        }
        return 1 - dice.to_numpy(dtype=np.float64), doubts

    def _risks(
        self, per_case: pd.DataFrame, patients: Mapping[str, str] | None
    ) -> dict[str, dict[str, Any]]:
        risk, doubts = self._paired(per_case)
        cases = [str(case) for case in statistics.case_means(per_case).index]
        units = [patients.get(case, case) for case in cases] if patients else None
        return {
            name: _plain(asdict(score_doubt(risk, doubt, patients=units)))
            for name, doubt in doubts.items()
            if np.isfinite(doubt).sum() > 1
        }


def _all_volumes(options: ReadOptions) -> ReadOptions:
    return replace(options, volume="all", nan_fill=0.0)


def _means(rows: pd.DataFrame) -> dict[str, Any]:
    """Mean of each score with its interval, and how many cases and draws it is over."""
    found: dict[str, Any] = {
        "n": len(rows),
        "samples": int(rows["samples"].min()),
        "references": int(rows["references"].min()),
        "all_empty": int(rows["all_empty"].sum()),
    }
    for name in _PLAUSIBLE:
        mean = statistics.summarise(rows[name].to_numpy())
        found[name] = _plain({"mean": mean.mean, "ci_low": mean.low, "ci_high": mean.high})
    return found


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """One row per structure, as text."""
    lines = []
    for structure, rows in table.groupby("structure", sort=False):
        line = {"Structure": str(structure), "Cases": str(len(rows))}
        line |= {"Draws": str(rows["samples"].min()), "Annotators": str(rows["references"].min())}
        for column, heading in _PLAUSIBLE.items():
            mean = statistics.summarise(rows[column].to_numpy())
            known = not math.isnan(mean.low)
            interval = f" [{mean.low:.3f}, {mean.high:.3f}]" if known else ""
            line[heading] = f"{mean.mean:.3f}{interval}"
        lines.append(line)
    return pd.DataFrame(lines)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as JSON knows them."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }

"""The command of domain adaptation experiments; see ``main.py``, which gives it its name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def adapt(
    experiment: Annotated[Path, typer.Argument(help="YAML file; see configs/experiments/.")],
    out: Annotated[Path, typer.Option(help="Folder for trainings, rows, tables and reports.")],
) -> None:
    """Train and score every row of a domain adaptation experiment; goes on where it stopped."""
    from medseg_diff.adaptation.definition import load_experiments
    from medseg_diff.adaptation.experiment import run_experiment
    from medseg_diff.adaptation.pictures import write_report
    from medseg_diff.adaptation.summary import write_summary
    from medseg_diff.adaptation.write import shown_rows
    from medseg_diff.training.fit import Stopped

    comparisons = load_experiments(experiment)
    tables = {}
    for place, wanted in comparisons.items():
        try:
            files = run_experiment(wanted, out / place, lambda line: print(line, flush=True))
        except Stopped as stop:
            # The training's own checkpoint is what the next call goes on from.
            print(f"{out.name}: stopped; the same command goes on from here", file=sys.stderr)
            raise typer.Exit(stop.exit_code) from None
        for target, rows in files.items():
            if place:
                print(place)
            table = write_report(wanted, target, rows, out / place)
            tables[place, target] = table
            for note in table.notes:
                print(note)
            shown = shown_rows(table)
            columns = ["Row", "Dice [95 % CI]", "Gap closed", "Source Dice"]
            print(shown[columns].to_string(index=False))
            print(f"report: {out / place / target / 'report.html'}")
    if len(tables) > 1:
        print(f"all comparisons: {write_summary(tables, out)}")

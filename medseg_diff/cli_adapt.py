"""The command of domain adaptation experiments; see ``cli.py``, which gives it its name."""

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
    from medseg_diff.adaptation.experiment import load_experiment, run_experiment
    from medseg_diff.adaptation.pictures import target_picture
    from medseg_diff.adaptation.write import shown_rows, write_table
    from medseg_diff.training import Stopped

    wanted = load_experiment(experiment)
    try:
        files = run_experiment(wanted, out, lambda line: print(line, flush=True))
    except Stopped as stop:
        # The training's own checkpoint is what the next call goes on from.
        print(f"{out.name}: stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(stop.exit_code) from None
    for target, rows in files.items():
        picture = target_picture(wanted, target, out)
        table = write_table(f"{wanted.name}, {target}", rows, out / target, picture)
        for note in table.notes:
            print(note)
        shown = shown_rows(table)
        print(shown[["Row", "Dice [95 % CI]", "Gap closed", "Source Dice"]].to_string(index=False))
        print(f"report: {out / target / 'report.html'}")

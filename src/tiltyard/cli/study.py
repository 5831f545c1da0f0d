"""The verb `study`: one recipe under several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tiltyard.cli.arguments import LARGEST, DryRun, Json, Runs
from tiltyard.cli.output import console_for, emit


def study(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a recipe of the package, e.g. studies/kl.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="STAGE.KEY=VALUE", help="As those of `run`.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Number of seeds.")] = 3,
    first: Annotated[int, typer.Option(min=0, max=LARGEST - 1000, help="The first of them.")] = 0,
    at: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC=VALUE", help="Compare families of models (FAMILY@STRENGTH) there, e.g. kl=0.5."),
    ] = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
    jobs: Annotated[int, typer.Option(min=1, max=LARGEST, help="Stages at a time, as in `run`.")] = 1,
) -> None:
    """Run a recipe with several seeds: means with intervals over seeds, models at equal KL or length.

    `tiltyard study studies/kl --seeds 3`
    """
    from tiltyard.pipeline.study import run_study
    from tiltyard.report.study_tables import print_study

    console = console_for(json_output)
    how = {"seeds": seeds, "first": first, "at": at or [], "dry_run": dry_run, "jobs": jobs}
    result = run_study(recipe, overrides or [], runs_root=runs, console=console, **how)  # type: ignore[arg-type]
    if json_output:
        emit(result)
    elif not dry_run:
        print_study(result, console)
        console.print(f"everything is in {result['folder']}", highlight=False, soft_wrap=True)

"""The verbs that show runs: `report` writes one page, `watch` follows a run in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tiltyard.cli.arguments import Json, Runs
from tiltyard.cli.output import console_for, emit
from tiltyard.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from tiltyard.runs import RunReader, StageReader

BETWEEN_STAGES = 10.0  # seconds that a run may look finished before the next stage starts

Folders = Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of runs (runs/demo), or their names.")]


def report(
    folders: Folders,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    watts: Annotated[
        float | None, typer.Option(min=0.1, help="Power of the machine under load, for the energy estimate.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of an hour of the machine.")] = None,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Write one self-contained page about a run, or several side by side.

    `tiltyard report runs/demo -o report.html`; open it with a double click.
    """
    from tiltyard.pipeline.state import package_version
    from tiltyard.report.html import write_report
    from tiltyard.report.text import plain
    from tiltyard.runs import find_run

    found = [find_run(folder, runs) for folder in folders]
    if output.is_dir():
        raise ConfigError("this is a folder", where=f"-o {output}", expected="a file, e.g. report.html")
    path, notes = write_report(found, output, defaults=defaults_of, watts=watts, price=price, version=package_version())
    size = path.stat().st_size
    if json_output:
        emit({"report": str(path), "bytes": size, "missing": notes})
        return
    console = console_for(False)
    for note in notes:
        console.print(plain(note), markup=False, highlight=False, soft_wrap=True)
    console.print(f"the report is {path} ({size / 1e6:.1f} MB)", markup=False, highlight=False, soft_wrap=True)


def defaults_of(kind: str) -> Mapping[str, Any]:
    """{dotted key: default} of a kind of stage, as values of JSON; settings without a default are left out."""
    from tiltyard.config import REQUIRED, describe
    from tiltyard.files import jsonable
    from tiltyard.records import flattened
    from tiltyard.stages.base import get_stage

    rows = describe(get_stage(kind).settings)
    return flattened({row.key: jsonable(row.default) for row in rows if row.default is not REQUIRED})


def watch(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run (runs/demo), or its name.")],
    *,
    stage: Annotated[str, typer.Option(help="A stage; without it the one that is running, or ran last.")] = "",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the present state and end.")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Follow a run in the terminal: curves, samples, alarms. It reads files alone, so it can be stopped at any time.

    `tiltyard watch demo`; on a finished run, and on a pipe, it prints the last state and ends.
    """
    from tiltyard.report.live import is_finished, screen, stage_to_watch
    from tiltyard.runs import RunReader, find_run

    console = console_for(False)
    run = RunReader(find_run(folder, runs))
    found = stage_to_watch(run, stage)
    if found is None:
        console.print("no stage was started yet")
        return
    if not (once or is_finished(run)) and console.is_terminal:
        found = _follow(run, stage, every, console) or found
    console.print(screen(found, _rows(found), console))


def _rows(stage: StageReader) -> list[dict[str, Any]]:
    from tiltyard.report.live import Follower

    return Follower(stage.folder / "metrics.jsonl").read()


def _follow(run: RunReader, name: str, every: float, console: Console) -> StageReader | None:
    """Shows the run until it has finished, or Ctrl-C; returns the stage that was shown last."""
    import time

    from rich.live import Live

    from tiltyard.report.live import Follower, is_finished, screen, stage_to_watch

    found, follower, quiet = stage_to_watch(run, name), None, 0.0
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while quiet < BETWEEN_STAGES:
                found = stage_to_watch(run, name) or found
                if found is not None:
                    path = found.folder / "metrics.jsonl"
                    follower = follower if follower is not None and follower.path == path else Follower(path)
                    live.update(screen(found, follower.read(), console), refresh=True)
                time.sleep(every)
                quiet = quiet + every if is_finished(run) else 0.0
    except KeyboardInterrupt:
        pass
    return found

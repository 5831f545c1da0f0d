"""`tiltyard judge`: have judges label a file or a store, and measure them against people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tiltyard.cli.arguments import DryRun, Json, Runs, run_one_stage
from tiltyard.cli.output import emit, show_result
from tiltyard.errors import ConfigError, nearest

KINDS = {"run": "ai_label", "calibrate": "calibrate"}


def judge(
    action: Annotated[str, typer.Argument(metavar="run|calibrate", help="Label items, or measure judges by people.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="[DATA] KEY=VALUE", help="Settings.")] = None,
    dry_run: DryRun = False,
    json_output: Json = False,
    runs: Runs = Path("runs"),
) -> None:
    """Ask AI judges about answers, and measure them against people.

    `tiltyard judge run pairs.jsonl judge.kind=model judge.model=runs/demo/sft name=labels`
    """
    kind, pairs = judge_arguments(action, settings)
    outcome = run_one_stage(kind, pairs, dry_run=dry_run, json_output=json_output, runs=runs)
    if json_output:
        emit(outcome)
    elif not dry_run:
        show_result(outcome, kind)


def judge_arguments(action: str, pairs: Sequence[str] | None) -> tuple[str, list[str]]:
    """Returns (kind of stage, `KEY=VALUE` arguments); a first argument without `=` is the data.

    Raises:
        ConfigError: an unknown action.
    """
    if action not in KINDS:
        raise ConfigError(
            "unknown action of judge",
            where="judge",
            got=action,
            expected=" or ".join(KINDS),
            fix=nearest(action, list(KINDS)),
        )
    given = list(pairs or ())
    if given and "=" not in given[0]:
        given[0] = f"data={given[0]}"
    return KINDS[action], given

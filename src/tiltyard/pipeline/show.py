"""Printing of plans on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from tiltyard.config import REQUIRED, describe
from tiltyard.files import jsonable
from tiltyard.pipeline.recipe import Step
from tiltyard.pipeline.state import Decision, shortened
from tiltyard.records import flat_keys, records_of

VERBS = {"run": "runs", "resume": "resumes", "skip": "is skipped"}
STYLES = {"run": "green", "resume": "yellow", "skip": "dim"}


def show_plan(console: Console, step: Step, decision: Decision, lines: Sequence[str]) -> None:
    """A stage of the resolved plan: what happens, its settings (what differs from the default stands out), its plan."""
    console.print(_head(step, decision))
    console.print(_settings(step))
    if step.uses:
        console.print(Text(f"  needs {', '.join(step.uses)}", style="dim"))
    for text, path in step.inputs:
        console.print(Text(f"  reads {path}" + (f"  (written {text})" if str(path) != text else ""), style="dim"))
    for line in lines:
        console.print(Text(f"  {line}"))


def show_start(console: Console, step: Step, decision: Decision, lines: Sequence[str]) -> None:
    """The line that opens a stage, and its resolved plan."""
    console.print(_head(step, decision))
    for line in lines:
        console.print(Text(f"  {line}", style="dim"))


def _head(step: Step, decision: Decision) -> Text:
    kind = f" ({step.stage.name})" if step.stage.name != step.name else ""
    verb = Text(VERBS[decision.action], style=STYLES[decision.action])
    return Text.assemble((step.name, "bold"), f"{kind}: ", verb, f", {decision.why}")


def _settings(step: Step) -> Text:
    """Settings that differ from their defaults first and bold; the others dim."""
    changed: list[str] = []
    usual: list[str] = []
    values: dict[str, Any] = jsonable(step.settings)
    short = flat_keys(step.stage.settings)
    mains = {key: record.main for key, record in records_of(step.stage.settings).items()}
    for setting in describe(step.stage.settings):
        value = values
        for part in setting.key.split("."):
            value = value[part]
        name = setting.key.rpartition(".")[2]
        homes = short.get(name, [])
        shown = setting.key if homes != [setting.key] else name
        shown = setting.key.partition(".")[0] if name == mains.get(setting.key.partition(".")[0]) else shown
        pair = f"{shown}={shortened(value)}"
        default = setting.default is not REQUIRED and jsonable(setting.default) == value
        (usual if default else changed).append(pair)
    text = Text("  ")
    text.append("  ".join(changed), style="bold cyan")
    if usual:
        text.append(("  " if changed else "") + "  ".join(usual), style="dim")
    return text

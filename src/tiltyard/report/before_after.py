"""The table of a model before and after training, on the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.evaluation.before_after import Line
from tiltyard.files import write_atomic
from tiltyard.stats.intervals import Estimate

_HEADERS = ("", "before", "after", "change (95% interval)")


def print_lines(lines: Sequence[Line], console: Console, note: str = "") -> None:
    """Prints the table, a legend, and a note below it."""
    utf = console.encoding.lower().startswith("utf")
    table = Table(box=box.SIMPLE_HEAD if utf else box.ASCII2, pad_edge=False, header_style="bold", padding=(0, 1))
    for header in _HEADERS:
        table.add_column(Text(header), justify="left" if not header else "right", no_wrap=True)
    for line in lines:
        name, *cells = cells_of(line)
        better = is_better(line)
        style = "" if better is None else "green" if better else "red"
        table.add_row(Text(name, "cyan"), *map(Text, cells[:-1]), Text(cells[-1], style))
    console.print(table)
    for line in lines:
        console.print(Text(f"{line.name.strip()}: {line.means}", style="dim"), soft_wrap=True)
    if note:
        console.print(Text(note, style="dim"), soft_wrap=True)


def write_markdown(path: Path, lines: Sequence[Line], note: str = "") -> Path:
    """Writes the table as Markdown."""
    rows = [" | ".join(cells_of(line)) for line in lines]
    head = [f"| {' | '.join(_HEADERS)} |", "|---|---|---|---|"]
    legend = [f"* {line.name.strip()}: {line.means}." for line in lines]
    text = ["# Before and after", "", *head, *(f"| {row} |" for row in rows), "", *legend, "", note, ""]
    return write_atomic(path, "\n".join(text).encode())


def cells_of(line: Line) -> tuple[str, str, str, str]:
    """Returns name, before, after and change as texts; where there is no paired change, after's own interval."""
    before = "" if line.before is None else _number(line.before.value, line.unit)
    after = "" if line.after is None else _number(line.after.value, line.unit)
    shown = line.change or line.after
    interval = ""
    if shown is not None and not math.isnan(shown.low):
        low, high = (_number(x, line.unit, sign=line.change is not None) for x in shown.ci)
        interval = f"{low} to {high}"
        if line.change is not None:
            interval = f"{_number(line.change.value, line.unit, sign=True)} ({interval})"
        else:
            interval = f"after: {interval}"
    return line.name, before, after, interval


def is_better(line: Line) -> bool | None:
    """True or False where the interval of a line with a direction leaves no doubt; None otherwise."""
    estimate: Estimate | None = line.change
    zero = 0.0
    if estimate is None and line.after is not None and line.before is not None:
        estimate, zero = line.after, line.before.value
    if estimate is None or not line.higher or math.isnan(estimate.low):
        return None
    if estimate.low <= zero <= estimate.high:
        return None
    return (estimate.value > zero) == (line.higher == "better")


def _number(value: float, unit: str, *, sign: bool = False) -> str:
    form = "+" if sign else ""
    if unit == "share":
        return f"{100 * value:{form}.1f}%"
    digits = 0 if unit == "tokens" and abs(value) >= 10 else 1 if unit == "tokens" else 3
    return f"{value:{form}.{digits}f}"

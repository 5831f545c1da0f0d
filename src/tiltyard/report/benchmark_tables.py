"""The table of models on benchmark files: every measure with its interval and the paired difference to the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.evaluation.benchmarks import Figure
from tiltyard.report.significance import p_text
from tiltyard.report.text import plain

DIGITS = {"share": (100, 0), "score": (1, 2), "bits": (1, 3)}  # of a unit: factor, decimals


def print_benchmarks(found: Sequence[Figure], baseline: str, console: Console) -> None:
    """Prints a table for each benchmark: a line for each measure and model, subsets below the measure that has them."""
    utf = console.encoding.lower().startswith("utf")
    for name in dict.fromkeys(figure.benchmark for figure in found):
        own = [one for one in found if one.benchmark == name and (not one.subset or one.measure.headline)]
        console.print(_table(name, own, baseline, utf=utf))
    measures = dict.fromkeys(one.measure for one in found)
    for measure in measures:
        better = f" {measure.better.capitalize()} is better." if measure.better else ""
        console.print(Text(f"{plain(measure.name.strip())}: {plain(measure.means)}.{better}", "dim"), soft_wrap=True)


def _table(name: str, found: Sequence[Figure], baseline: str, *, utf: bool) -> Table:
    sign = "±" if utf else "+/-"
    style = box.SIMPLE_HEAD if utf else box.ASCII2
    table = Table(box=style, pad_edge=False, header_style="bold", padding=(0, 1), collapse_padding=True)
    compared = any(one.difference is not None for one in found)
    heads = ["value", "n", *([f"less {plain(baseline)}", "q", "shows"] if compared else [])]
    table.add_column(Text(plain(name)), overflow="fold", max_width=24)
    table.add_column(Text("model"), style="cyan", overflow="fold", max_width=14)
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    last = ""
    for one in found:
        label = f"  {plain(one.subset)}" if one.subset else plain(one.measure.name)
        cells = [_value(one, sign), f"{one.estimate.n:,}", *(_difference(one) if compared else [])]
        table.add_row(Text("" if label == last else label), Text(plain(one.model)), *map(Text, cells))
        last = label
    return table


def _value(one: Figure, sign: str) -> str:
    scale, digits = DIGITS[one.measure.unit]
    value, low, high = (scale * x for x in one.estimate[:3])
    percent = "%" if one.measure.unit == "share" else ""
    half = max(high - value, value - low)
    return f"{value:.{digits}f}{percent}" + ("" if math.isnan(half) else f" {sign} {half:.{digits}f}")


def _difference(one: Figure) -> list[str]:
    """(difference with its interval, adjusted p-value, smallest difference that shows)."""
    d = one.difference
    if d is None:
        return ["", "", ""]
    scale, digits = DIGITS[one.measure.unit]
    value, low, high = (f"{scale * x:+.{digits}f}" for x in (d.value, d.low, d.high))
    inside = value if math.isnan(d.low) else f"{value} ({low} to {high})"
    shows = "" if math.isnan(d.mde) else f"{scale * d.mde:.{digits}f}"
    return [inside, "" if math.isnan(one.q) else p_text(one.q), shows]

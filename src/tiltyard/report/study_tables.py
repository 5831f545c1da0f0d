"""Tables of a study: every measurement as its mean over seeds with the half width of its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from tiltyard.report.text import plain

SHOWN = 8  # metrics of a table


def print_study(result: Mapping[str, Any], console: Console) -> None:
    """Prints the tables of a study, and how the seeds' spread compares with the interval of a single run."""
    seeds = result["seeds"]
    for stage, models in result["tables"].items():
        metrics = list(dict.fromkeys(metric for row in models.values() for metric in row))[:SHOWN]
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1), title_justify="left",
                      title=f"{plain(stage)}: means over {len(seeds)} seeds ± half a 95% t interval")  # fmt: skip
        table.add_column("")
        for metric in metrics:
            table.add_column(plain(metric).replace("_", " "), justify="right")
        for name, row in models.items():
            table.add_row(
                _label(name, row, len(seeds)), *(cell(row[metric]) if metric in row else "–" for metric in metrics)
            )
        console.print(table)
        if line := spread(models):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _label(name: str, row: Mapping[str, Mapping[str, Any]], seeds: int) -> str:
    """The model's name, and how many seeds have it where some do not: a family need not reach a level under each."""
    n = max((facts["n"] for facts in row.values()), default=seeds)
    return plain(name) + ("" if n == seeds else f" ({n} of {seeds} seeds)")


def cell(facts: Mapping[str, Any]) -> str:
    """A mean with the half width of its interval; without one where there is one seed."""
    half = (facts["high"] - facts["low"]) / 2 if facts["high"] is not None else math.nan
    return f"{facts['value']:.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else "")


def spread(models: Mapping[str, Mapping[str, Mapping[str, Any]]], metric: str = "gold") -> str:
    """A line that compares the deviation between seeds with the one that a single run's interval stands for."""
    rows = [row[metric] for row in models.values() if metric in row and "within" in row[metric]]
    rows = [row for row in rows if len(row["values"]) > 1]
    if not rows:
        return ""
    between = math.sqrt(statistics.fmean(statistics.variance(row["values"]) for row in rows))
    within = statistics.fmean(row["within"] for row in rows) / 1.96
    return (
        f"{metric}: between seeds the standard deviation is {between:.3f} (pooled over {len(rows)} models); the "
        f"intervals of single runs, which know prompts alone, stand for {within:.3f}"
    )

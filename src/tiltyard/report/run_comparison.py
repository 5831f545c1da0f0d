"""The table of `tiltyard compare`: two models on the same prompts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.numerals import plural
from tiltyard.report.benchmark_tables import DIGITS
from tiltyard.report.significance import outcomes, p_text, points
from tiltyard.report.text import plain

RATES = ("helpful", "truthful", "harmless")
SETTINGS_SHOWN = 40
ONE_SIDED = 12  # settings of one method alone that are shown, not counted


def print_comparison(found: Mapping[str, Any], console: Console) -> None:
    """Prints what `evaluation.comparison.compare` returned: differences, wins, and the settings that differ."""
    if found["rows"]:
        table = _table("", found, console)
        for row in found["rows"]:
            table.add_row(row["name"], *_cells(row, *_form(row["name"])))
        console.print(table)
    for name in dict.fromkeys(row["benchmark"] for row in found["benchmarks"]):
        table = _table(name, found, console)
        for row in found["benchmarks"]:
            if row["benchmark"] == name:
                table.add_row(Text(plain(row["measure"])), *_cells(row, *DIGITS[row["unit"]]))
        console.print(table)
    for line in lines(found):
        indent = len(line) - len(line.lstrip()) + 2
        how: dict[str, Any] = {"subsequent_indent": " " * indent, "break_long_words": False, "break_on_hyphens": False}
        for part in textwrap.wrap(plain(line), max(40, console.width), **how):
            console.print(part, markup=False, highlight=False, soft_wrap=True)


def _table(name: str, found: Mapping[str, Any], console: Console) -> Table:
    utf = console.encoding.lower().startswith("utf")
    table = Table(box=box.SIMPLE_HEAD if utf else box.ASCII2, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column(Text(plain(name)), overflow="fold", max_width=20)
    for header in (plain(found["first"]), plain(found["second"]), "difference", "95% interval", "adjusted p", "MDE"):
        table.add_column(Text(header), justify="right", no_wrap=True)
    return table


def _form(name: str) -> tuple[int, int]:
    """(factor, decimals) of a measurement of prompts."""
    return DIGITS["share"] if name in RATES else (1, 1) if name in ("length", "kl") else DIGITS["score"]


def _cells(row: Mapping[str, Any], scale: int, digits: int) -> Iterator[str]:
    rate, form = scale == 100, f".{digits}f"

    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{scale * value:{sign}{form}}{'%' if rate and not sign else ''}"

    yield number(row["first"])
    yield number(row["second"])
    yield number(row["difference"], "+")
    yield "" if row["low"] is None else f"{number(row['low'], '+')} to {number(row['high'], '+')}"
    yield "" if row["q"] is None else p_text(row["q"])
    yield "" if row["mde"] is None else f"{scale * row['mde']:{form}}"


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines below the table."""
    items = {row["benchmark"]: row["n"] for row in reversed(found["benchmarks"])}
    sets = [plural(found["prompts"], "prompt")] if found["prompts"] else []
    sets += [f"{plural(n, 'item')} of {name}" for name, n in reversed(items.items())]
    yield (
        f"{', '.join(sets)}, paired; adjusted p: of all rows together (Benjamini-Hochberg); MDE: the smallest "
        "difference that this set shows (80% power)"
    )
    better = {row["measure"]: row["better"] for row in found["benchmarks"] if row["better"]}
    if lower := [name for name, which in better.items() if which == "lower"]:
        yield f"lower is better: {', '.join(lower)}"
    wins = found["wins"]
    if wins is not None:
        line = f"{found['second']} wins {wins['win_rate']:.0%} against {found['first']} by {wins['by']}"
        if wins["low"] is not None:
            line += f" ({wins['low']:.0%} to {wins['high']:.0%})"
        line += f": {outcomes(wins['wins'], wins['ties'], wins['losses'])}"
        line += f"; p = {p_text(wins['win_rate_p'])}" if wins.get("win_rate_p") is not None else ""
        mde = wins.get("win_rate_mde")
        yield line + (f"; this set shows a difference of {points(mde)} from 50%" if mde is not None else "")
    yield from found["left_out"]
    yield from _setting_lines(found)


def _setting_lines(found: Mapping[str, Any]) -> Iterator[str]:
    differ, of_one = found["settings"], found["of_one"]
    names = zip((found["first"], found["second"]), found["stages"], strict=True)
    if unknown := " and ".join(dict.fromkeys(name for name, stage in names if stage is None)):
        verb = "were" if " and " in unknown else "was"
        yield f"how {unknown} {verb} made cannot be compared: no stage that is still there trained it"
    if differ or found["compared"]:
        yield "settings that differ:" if differ else "all settings are the same"
    for stage, key, first, second in differ[:SETTINGS_SHOWN]:
        yield f"  {stage}.{key}: {_value(first)} | {_value(second)}"
    if len(differ) > SETTINGS_SHOWN:
        yield f"  and {len(differ) - SETTINGS_SHOWN:,} more: --json lists all"
    if 0 < len(of_one) <= ONE_SIDED:
        yield "settings that only one of the methods has:"
        yield from (f"  {stage}.{key}: {_value(first)} | {_value(second)}" for stage, key, first, second in of_one)
    elif of_one:
        counts = [sum(row[place] is not None for row in of_one) for place in (2, 3)]
        each = ", ".join(f"{n:,} of {stage}" for stage, n in zip(found["stages"], counts, strict=True))
        yield f"settings that only one of the methods has: {each} (--json)"


def _value(value: Any) -> str:
    text = "(none)" if value is None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."

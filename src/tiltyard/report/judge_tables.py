"""The table of judges beside people, and the lines below it: who is useless, which biases fired, corrected rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.files import jsonable
from tiltyard.report.text import plain

_EXPLAINED = {
    "position": "position: the response shown first wins {first}",
    "length": "length: it prefers the longer response {longer_excess} more often than people",
    "self-preference": "self-preference: it prefers its own response {own_excess} more often than people",
}
_LEGEND = (
    "agree: with the majority of people, a tie counts half; over longest: agreement minus that of the longer response; "
    "longer, first: share preferred; apart: the two orders prefer different responses; repeat: same verdict when asked "
    "again; own: own response preferred more often than by people; price and seconds of 1,000 pairs. "
    "Intervals of 95% resample prompts."
)


def print_calibration(result: Mapping[str, Any], console: Console) -> None:
    """Prints agreement and price of each judge, of people and of the three annotators that cost nothing, then biases.

    Two tables of at most 100 columns: all of it in one would fold at twice that.
    """
    free = [name for name in ("longest", "first", "random") if name in result["rows"]]
    judges = [name for name in result["rows"] if name not in free]
    agreement, seconds = result["people"]["agreement"], result["people"]["seconds"]
    people = ["people (one and the others)", _share(agreement), "", "", "", "", _number(seconds, 0)]
    rows = {name: _agreement_cells(result["rows"][name]) for name in result["rows"]}
    table = _table("judge", "agree %", "over longest", "kappa", "none", "price", "seconds")
    _fill(table, judges, rows, free, people if agreement["n"] else None)
    console.print(table)
    rows = {name: _bias_cells(result["rows"][name]) for name in result["rows"]}
    table = _table("judge", "longer %", "first %", "apart %", "repeat %", "own")
    _fill(table, judges, rows, [name for name in free if any(rows[name])], None)
    console.print(table)
    console.print(Text(_LEGEND, style="dim"))


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(first, overflow="fold", min_width=8, max_width=36)
    for header in others:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _fill(
    table: Table,
    judges: Sequence[str],
    rows: Mapping[str, Sequence[str]],
    free: Sequence[str],
    people: Sequence[str] | None,
) -> None:
    for name in judges:
        table.add_row(Text(plain(name)), *rows[name])
    if people is not None:
        table.add_row(*people)
    for name in free:
        table.add_row(Text(name, style="dim"), *rows[name])


def calibration_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for each judge, each bias that fired, and the corrected rates beside the raw ones."""
    if result.get("order_drawn"):
        yield "the data has the better response first in every pair, so the order of `first` was drawn"
    for name, row in result["rows"].items():
        if name in ("longest", "first", "random"):
            continue
        gain = _points(row["gain"])
        if row["useless"]:
            yield (
                f"{name} is USELESS on these pairs: it is not shown to agree with people more often than the longer "
                f"response does ({gain} points), and than a coin"
            )
        else:
            yield f"{name} agrees with people more often than the longer response does ({gain} points)"
        for bias in row["biases"]:
            shown = {"first": _share(row["first"]), "longer_excess": _points(row["longer_excess"])}
            yield f"  {name} has a bias of {_EXPLAINED[bias].format(**shown, own_excess=_points(row['own_excess']))}"
    for name, policies in result["corrected"].items():
        for policy, methods in policies.items():
            yield from corrected_lines(name, policy, methods)


def corrected_lines(judge: str, policy: str, methods: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yields the judge's own rate, people's own, and each corrected one."""
    for k, (method, found) in enumerate(methods.items()):
        if k == 0:
            people = _share(found["people"])
            yield f"{policy} is preferred, {judge}: raw {_share(found['judge'])}, people alone {people}"
        named = {"ppi": "prediction-powered", "rogan_gladen": "Rogan-Gladen"}[method]
        why = f": {found['reason']}" if found["reason"] else ""
        own = " (people's own)" if found["method"] == "people" else ""
        yield f"  corrected, {named}{own}: {_share(found['estimate'])}{why}"


def json_ready(value: Any) -> Any:
    """Named tuples as mappings and NaN as null, for the files of a stage."""
    if hasattr(value, "_asdict"):
        return json_ready(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return jsonable(value)


def _agreement_cells(row: Mapping[str, Any]) -> list[str]:
    missing = f"{row['missing']:,}" if row["missing"] else ""
    prices = [_number(row["price"], 4), _number(row["seconds"], 0)]
    return [_share(row["agreement"]), _points(row["gain"]), _number(row["kappa"]["value"], 3), missing, *prices]


def _bias_cells(row: Mapping[str, Any]) -> list[str]:
    shares = [_share(row[key], 0) for key in ("longer", "first", "disagree", "repeat")]
    return [*shares, _points(row["own_excess"], 0)]


def _share(estimate: Mapping[str, Any], digits: int = 1) -> str:
    """A share in per cent with its interval; empty where it is unknown."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None or not estimate["n"]:
        return ""
    return f"{100 * value:.{digits}f}" + ("" if low is None else f" [{100 * low:.{digits}f}, {100 * high:.{digits}f}]")


def _points(estimate: Mapping[str, Any], digits: int = 1) -> str:
    """A difference of shares in points with its interval."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None or not estimate["n"]:
        return ""
    ends = "" if low is None else f" [{100 * low:+.{digits}f}, {100 * high:+.{digits}f}]"
    return f"{100 * value:+.{digits}f}{ends}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"

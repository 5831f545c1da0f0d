"""The table of judges beside people, and the lines below it: who is useless, which biases fired, corrected rates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
    """Prints a row for each judge, then people and the three annotators that cost nothing."""
    headers = (
        "agree %",
        "over longest",
        "kappa",
        "longer",
        "first",
        "apart",
        "repeat",
        "own",
        "none",
        "price",
        "seconds",
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("judge", overflow="fold", min_width=8, max_width=36)
    for header in headers:
        table.add_column(header, justify="right")
    people = result["people"]
    free = [name for name in ("longest", "first", "random") if name in result["rows"]]
    judges = [name for name in result["rows"] if name not in free]
    for name in judges:
        table.add_row(Text(plain(name)), *_cells(result["rows"][name]))
    agreement = people["agreement"]
    if agreement["n"]:
        cells = [_share(agreement), *[""] * 9, _number(people["seconds"], 0)]
        table.add_row(Text("people (one against the others)"), *cells)
    for name in free:
        table.add_row(Text(name, style="dim"), *_cells(result["rows"][name]))
    console.print(table)
    console.print(Text(_LEGEND, style="dim"))


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


def _cells(row: Mapping[str, Any]) -> list[str]:
    shares = [_share(row[key]) for key in ("longer", "first", "disagree", "repeat")]
    missing = f"{row['missing']:,}" if row["missing"] else ""
    kappa = row["kappa"]["value"]
    own = _points(row["own_excess"])
    prices = [_number(row["price"], 4), _number(row["seconds"], 0)]
    return [_share(row["agreement"]), _points(row["gain"]), _number(kappa, 3), *shares, own, missing, *prices]


def _share(estimate: Mapping[str, Any]) -> str:
    """A share in per cent with its interval; empty where it is unknown."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None or not estimate["n"]:
        return ""
    return f"{100 * value:.1f}" + ("" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def _points(estimate: Mapping[str, Any]) -> str:
    """A difference of shares in points with its interval."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None or not estimate["n"]:
        return ""
    return f"{100 * value:+.1f}" + ("" if low is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"

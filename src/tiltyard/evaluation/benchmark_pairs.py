"""Two models of any evaluations on the benchmark files that both were measured on: paired differences by item.

Reads what an evaluation keeps: each item's values in `benchmarks.jsonl`, what they are in `summary.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tiltyard.errors import DataError
from tiltyard.evaluation.benchmarks import WORDS, Column, Measure, item_difference
from tiltyard.evaluation.outcomes import json_difference
from tiltyard.stats.paired import Difference

T = TypeVar("T")

BENCHMARKS = "benchmarks.jsonl"
Identity = tuple[str, int]  # an item's content, and which one of equal ones it is


@dataclass
class Measured:
    """One benchmark as one model was measured on it.

    Attributes:
        how: form, kind and options of the file that change what is asked. measures: by name.
        values: {measure: {item: value}}. keys: the cluster of each item. weights: of items that do not count alike.
    """

    how: Mapping[str, Any]
    measures: Mapping[str, Measure]
    values: dict[str, dict[Identity, float]] = field(default_factory=dict)
    keys: dict[Identity, str] = field(default_factory=dict)
    weights: dict[Identity, float] = field(default_factory=dict)


class Pair(NamedTuple):
    """A measure of both models over the items that both could be measured on."""

    benchmark: str
    measure: Measure
    first: float
    second: float
    difference: Difference

    def to_dict(self) -> dict[str, Any]:
        """The pair as JSON-ready values."""
        facts: dict[str, Any] = {"benchmark": self.benchmark, "measure": self.measure.name.strip()}
        facts |= {"unit": self.measure.unit, "better": self.measure.better, "first": self.first, "second": self.second}
        found = json_difference(self.difference)
        return {**facts, "difference": found.pop("value"), **found}


def read_measured(
    folder: Path, summary: Mapping[str, Any], settings: Mapping[str, Any], model: str
) -> dict[str, Measured]:
    """Reads what an evaluation measured of a model on benchmark files, by the benchmark's name.

    Args:
        folder: of the stage. summary: its `summary.json`. settings: of the evaluation.

    Raises:
        DataError: a line that is no item, with its `file:line`.
    """
    found: dict[str, Measured] = {}
    for one in (summary.get("evaluation") or {}).get("benchmarks") or []:
        figures = one.get("figures") or []
        measures = {
            str(f["measure"]).strip(): Measure(f["measure"], f["unit"], f["better"], f["means"]) for f in figures
        }
        how = {"form": one.get("form"), "kind": one.get("kind"), **_options(settings, str(one.get("name")))}
        found[str(one.get("name"))] = Measured(how, measures)
    path, seen = folder / BENCHMARKS, dict[tuple[str, str], int]()
    for row in evaluated_lines(path, "item of a benchmark", _item) if found and path.exists() else ():
        if row["model"] != model or row["benchmark"] not in found:
            continue
        of = found[row["benchmark"]]
        content = str(row.get("content") or row["key"])
        which = seen[row["benchmark"], content] = seen.get((row["benchmark"], content), 0) + 1
        item: Identity = (content, which)
        of.keys[item] = str(row["key"])
        if "weight" in row:
            of.weights[item] = float(row["weight"])
        for name in of.measures:
            if name in row:
                of.values.setdefault(name, {})[item] = float(row[name])
    return {name: of for name, of in found.items() if of.values}


def _options(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Options of a benchmark that change what is asked, not which items of the file."""
    sources = settings.get("benchmarks")
    source = sources.get(name) if isinstance(sources, Mapping) else None
    options = source if isinstance(source, Mapping) else {}
    return {"asked": options.get("form") or "auto", "prefix": options.get("prefix") or ""}


def evaluated_lines(path: Path, what: str, read: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Reads the lines of a file that an evaluation wrote.

    Args:
        what: one of its lines, for the error. read: makes it of a row; what it raises for one that it is not.

    Raises:
        DataError: a line that is none, with its `file:line`.
    """
    with path.open(encoding="utf-8") as file:
        for at, line in enumerate(file, 1):
            try:
                found = read(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise DataError(
                    f"this is no {what}",
                    where=f"{path}:{at}",
                    got=line.strip()[:80],
                    expected="a line as `tiltyard eval` writes it",
                    fix="run the evaluation again",
                ) from error
            yield found


def _item(row: dict[str, Any]) -> dict[str, Any]:
    if not {"benchmark", "model", "key"} <= row.keys():
        raise ValueError
    return row


def pairs_of(
    first: Mapping[str, Measured],
    second: Mapping[str, Measured],
    *,
    same_scorers: bool = True,
    rounds: int = 1000,
    seed: int = 0,
) -> tuple[list[Pair], list[str]]:
    """Computes the paired differences, second less first, of every measure of benchmarks of one name.

    Items are matched by their content. Where a benchmark has items that only one model was measured on, those in
    common are compared.

    Args:
        same_scorers: the rewards, monitors and judges of both evaluations are the same; else only refusals by words
            are compared of sampled responses.

    Returns:
        The pairs, and sentences about what cannot be compared.
    """
    found: list[Pair] = []
    notes: list[str] = []
    for name in dict.fromkeys([*first, *second]):
        if name not in first or name not in second:
            notes.append(f"{name}: only one of the two was measured on it")
            continue
        one, other = first[name], second[name]
        if one.how != other.how:
            differ = [
                f"{key} {one.how[key] or '(none)'} | {other.how[key] or '(none)'}"
                for key in one.how
                if one.how[key] != other.how.get(key)
            ]
            notes.append(f"{name}: asked in different ways ({', '.join(differ)})")
            continue
        names = [m for m in one.measures if m in one.values and m in other.values]
        if not same_scorers and one.how["kind"] == "prompts":
            names = [m for m in names if m in WORDS]
            notes.append(f"{name}: the two evaluations have other scorers, so only refusals by words are compared")
        if one.how["kind"] == "text" and not (one.weights and other.weights):
            notes.append(
                f"{name}: an evaluation of an older version did not keep the sizes of the documents; run it again"
            )
            continue
        made = [pair for m in names if (pair := _pair(name, m, one, other, rounds, seed)) is not None]
        found += made
        notes += _apart(name, one, other, made)
    return found, notes


def _pair(name: str, measure: str, one: Measured, other: Measured, rounds: int, seed: int) -> Pair | None:
    items = [item for item in one.values[measure] if item in other.values[measure]]
    if not items:
        return None
    places = tuple(range(len(items)))
    weights = tuple(one.weights.get(item, 1.0) for item in items)
    values = [tuple(of.values[measure][item] for item in items) for of in (one, other)]
    columns = [Column(one.measures[measure], places, some, weights) for some in values]
    keys = [one.keys[item] for item in items]
    difference = item_difference(columns[1], columns[0], keys=keys, rounds=rounds, seed=seed)
    before, after = (sum(v * w for v, w in zip(some, weights, strict=True)) / sum(weights) for some in values)
    return None if difference is None else Pair(name, one.measures[measure], before, after, difference)


def _apart(name: str, one: Measured, other: Measured, made: Sequence[Pair]) -> Iterator[str]:
    own = [{item for of in some.values.values() for item in of} for some in (one, other)]
    common = own[0] & own[1]
    if not made:
        yield f"{name}: no item in common"
    elif len(common) < len(own[0] | own[1]):
        yield f"{name}: only the {len(common):,} items in common are compared, of {len(own[0]):,} and {len(own[1]):,}"

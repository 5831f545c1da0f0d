"""Studies: one recipe under several seeds, as `tiltyard study` left them (`runs/NAME/RECIPE.json`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiltyard.report.html.reading import Source, estimate_of, number, rounded, text_of
from tiltyard.report.html.results import COLUMNS
from tiltyard.report.study_tables import spread

AT = re.compile(r"(?P<family>.+) at (?P<level>\S+=\S+)")
MOST = 16  # metrics of a table
TITLES = {key: (title, unit) for key, title, unit, *_ in COLUMNS} | {
    "accuracy": ("Agrees with labels", "share"),
    "longer_wins": ("Longer agrees", "share"),
    "picks_longer": ("Prefers the longer", "share"),
    "flips": ("Order flips", "share"),
    "icc": ("ICC", ""),
}


def studies(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Every study of the runs: {title, run, seeds, tables: [{title, at, columns, rows, spread}]}."""
    found = []
    for source in sources:
        for path in sorted(source.folder.glob("[!.]*.json")):
            if path.name == "summary.json":
                continue
            none: dict[str, Any] = {}
            made = source.attempt(path.name, none, _study, source, path)
            if made:
                found.append(made)
    return found


def _study(source: Source, path: Path) -> dict[str, Any]:
    body = json.loads(path.read_bytes())
    if not isinstance(body, Mapping) or not {"recipe", "seeds", "tables"} <= body.keys():
        return {}
    seeds = len(body["seeds"])
    tables = [table for name, rows in body["tables"].items() for table in _tables(str(name), rows, seeds)]
    title = text_of(f"{source.name}: {body['recipe']}")
    return {"title": title, "run": text_of(source.name), "seeds": seeds, "tables": tables}


def _tables(name: str, models: Mapping[str, Any], seeds: int) -> Iterator[dict[str, Any]]:
    """The models as they were trained, and those of each `--at` in a table of their own."""
    parts: dict[str, dict[str, Any]] = {"": {}}
    for model, row in models.items():
        at = AT.fullmatch(model)
        parts.setdefault(at["level"] if at else "", {})[at["family"] if at else model] = row
    for level, rows in parts.items():
        if rows:
            keys = list(dict.fromkeys(key for row in rows.values() for key in row))[:MOST]
            yield {
                "title": text_of(name),
                "at": text_of(level.replace("=", " = ")),
                "columns": [_column(key) for key in keys],
                "rows": [_row(model, row, keys, seeds) for model, row in rows.items()],
                "spread": text_of(spread(rows)) if not level else "",
            }


def _column(key: str) -> dict[str, Any]:
    title, unit = TITLES.get(key, (key.replace("_", " "), ""))
    return {"key": text_of(key), "title": text_of(title), "unit": unit}


def _row(model: str, row: Mapping[str, Any], keys: Sequence[str], seeds: int) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for key in keys:
        facts = row.get(key)
        cell = estimate_of(facts) if isinstance(facts, Mapping) else None
        if cell is None or not isinstance(facts, Mapping):
            continue
        values = [rounded(value) for value in facts.get("values") or [] if number(value) is not None]
        cells[text_of(key)] = cell | {"values": values, "d": estimate_of(facts.get("difference"))}
    fewest = min((cell["n"] for cell in cells.values() if "n" in cell), default=seeds)
    return {"model": text_of(model), "cells": cells, "seeds": fewest}

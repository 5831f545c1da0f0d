"""Benchmark files of evaluations: every measure of every model with its interval, and where a difference is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.files import read_json
from tiltyard.report.html.reading import Source, estimate_of, number, rounded, text_of

SUBSETS = 40  # rows of subsets of one benchmark


def benchmarks(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """[{title, items, chance, notes, measures, rows, subsets}] of the benchmarks in every `summary.json`.

    `rows`: one a model, with a cell for each measure; `subsets`: the same for parts of the items.
    """
    found = []
    for source in sources:
        for name, reader in source.stages.items():
            body = read_json(reader.folder / "summary.json") or {}
            facts = body.get("evaluation")
            listed = facts.get("benchmarks") if isinstance(facts, Mapping) else None
            for one in listed if isinstance(listed, list) else ():
                none: dict[str, Any] = {}
                table = source.attempt(f"{name}/summary.json", none, _table, one)
                if table:
                    found.append({"title": text_of(f"{one.get('name')} ({source.label(name)})"), **table})
    return found


def _table(one: Mapping[str, Any]) -> dict[str, Any]:
    figures = [figure for figure in one["figures"] if isinstance(figure, Mapping)]
    measures = {str(f["measure"]): f for f in figures}
    parts = dict.fromkeys((str(f.get("subset") or ""), str(f["model"])) for f in figures)
    rows = [
        {"subset": text_of(subset), "model": text_of(model), "cells": _cells(figures, subset, model)}
        for subset, model in parts
    ]
    return {
        "kind": text_of(one.get("kind")),
        "items": rounded(one.get("items")),
        "chance": rounded(one.get("chance")),
        "notes": [text_of(note, 300) for note in one.get("notes") or []],
        "measures": [
            {
                "key": text_of(key),
                "title": text_of(key.strip()),
                "unit": text_of(f.get("unit")),
                "better": text_of(f.get("better")),
            }
            for key, f in measures.items()
        ],
        "rows": [row for row in rows if not row["subset"]],
        "subsets": [row for row in rows if row["subset"]][:SUBSETS],
    }


def _cells(figures: Sequence[Mapping[str, Any]], subset: str, model: str) -> dict[str, Any]:
    own = [f for f in figures if str(f.get("subset") or "") == subset and str(f["model"]) == model]
    return {
        text_of(f["measure"]): {**cell, "verdict": _verdict(f)} for f in own if (cell := estimate_of(f)) is not None
    }


def _verdict(figure: Mapping[str, Any]) -> str:
    """better or worse than the baseline where the adjusted p-value shows a difference; "" otherwise."""
    difference = figure.get("difference")
    if not isinstance(difference, Mapping) or not figure.get("better"):
        return ""
    q, value = number(difference.get("q")), number(difference.get("value"))
    if q is None or value is None or q >= 0.05:
        return ""
    return "better" if (value > 0) == (figure["better"] == "higher") else "worse"

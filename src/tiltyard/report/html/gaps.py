"""Distances of models to the optimum pi*, as `tiltyard gap` measured them: a table, and the frontier's picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.files import read_json
from tiltyard.report.html.along import along_of
from tiltyard.report.html.reading import Source, estimate_of, number, rounded, text_of

COLUMNS = (  # key of the file, title, what it is
    ("reward", "Reward", "mean reward of a response"),
    ("kl", "KL to the prior", "how far the model went from the prior, nats a response"),
    (
        "gap",
        "KL to the optimum",
        "how far it still is from pi*, the best model for this reward and this KL; nats a response",
    ),
    ("reverse", "KL from the optimum", "large where the model never writes what pi* writes, nats a response"),
    ("tv", "Total variation", "from pi*: 0 for the same distribution, 1 for nothing in common"),
    ("entropy", "Entropy", "of whole responses, nats"),
)
FACTS = (  # key, title, unit
    ("unique", "different responses to a prompt", "share"),
    ("distinct_2", "distinct-2", "share"),
    ("self_bleu", "self-BLEU", ""),
    ("cut", "cut at the limit", "share"),
)


def gaps(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Every `gap.json`: {title, note, beta, columns, facts, rows, curve, best, refusals}, and `along_of`."""
    found = []
    for source in sources:
        for name, reader in source.stages.items():
            path = reader.folder / "gap.json"
            if not path.exists():
                continue
            body = read_json(path)
            settings = reader.config.settings if reader.config is not None else {}
            none: dict[str, Any] = {}
            table = none if body is None else source.attempt(f"{name}/gap.json", none, _table, body, settings)
            if body is None:
                source.notes.append(f"{source.label(name)}/gap.json is damaged and left out.")
            elif table:
                found.append({"title": text_of(source.label(name)), **table})
    return found


def _table(body: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    models = {str(k): v for k, v in body["models"].items() if isinstance(v, Mapping)}
    rows = [_row(name, facts) for name, facts in models.items()]
    return {
        "note": text_of(body.get("conventions"), 600),
        "beta": rounded(settings.get("beta")),
        "columns": [
            {"key": key, "title": title, "about": about}
            for key, title, about in COLUMNS
            if any(row["cells"].get(key) for row in rows)
        ],
        "facts": [{"key": key, "title": title, "unit": unit} for key, title, unit in FACTS],
        "rows": rows,
        "curve": _points(body.get("optimum")),
        "best": _points(body.get("best_of_n")),
        "refusals": [text_of(line, 400) for line in body.get("refusals") or []],
        **along_of(body),
    }


def _row(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    estimates = one if isinstance(one := facts.get("estimates"), Mapping) else {}
    cells = {"reward": estimate_of(facts.get("reward"))}
    cells |= {key: estimate_of(estimates[key]) for key, *_ in COLUMNS if key in estimates}
    support = one if isinstance(one := facts.get("support"), Mapping) else {}
    return {
        "model": text_of(name),
        "refused": bool(facts.get("refused")),
        "cells": {key: cell for key, cell in cells.items() if cell is not None},
        "facts": {key: rounded(facts.get(key)) for key, *_ in FACTS if number(facts.get(key)) is not None},
        "prompts": next((cell["n"] for cell in cells.values() if cell and "n" in cell), None),
        "ess": rounded(support.get("ess")),
    }


def _points(rows: Any) -> list[list[Any]]:
    """[KL, reward, beta or N] of each point."""
    known = [row for row in rows or [] if isinstance(row, Mapping)]
    return [
        [rounded(row.get("kl")), rounded(row.get("reward")), rounded(row.get("at"))]
        for row in known
        if number(row.get("kl")) is not None and number(row.get("reward")) is not None
    ]

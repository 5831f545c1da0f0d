"""Alarms that stages raised while they trained: `alarms.jsonl`, one line an alarm, {step, kind, text}."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiltyard.report.html.reading import Source, json_lines, text_of
from tiltyard.runs import read_alarms

MOST = 200  # of all stages together
TEXT = 400  # characters of one


def alarms(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """[{stage, step, kind, text}] in the order of the stages; damaged lines are noted and left out."""
    found: list[dict[str, Any]] = []
    for source in sources:
        for name, reader in source.stages.items():
            path = reader.folder / "alarms.jsonl"
            if path.exists():
                none = list[dict[str, Any]]()
                found += source.attempt(f"{name}/alarms.jsonl", none, _read, source, name)
    return found[:MOST]


def _read(source: Source, name: str) -> list[dict[str, Any]]:
    path = source.stages[name].folder / "alarms.jsonl"
    rows = read_alarms(path)
    if bad := sum(1 for _ in json_lines(path)) - len(rows):
        source.notes.append(f"{source.label(name)}/alarms.jsonl: {bad:,} damaged lines are left out.")
    return [
        {
            "stage": text_of(source.label(name)),
            "step": row["step"],
            "kind": text_of(row.get("kind"), 80),
            "text": text_of(row["text"], TEXT).rstrip("."),
        }
        for row in rows
    ]

"""Alarms that stages raised while they trained: `alarms.jsonl`, one line an alarm, {step, kind, text}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.numerals import plural
from tiltyard.report.html.reading import Source, json_lines, rounded, text_of
from tiltyard.runs import read_alarms

MOST = 200  # of all stages together
SAMPLES = 3  # responses of one
SHOWN = 40  # of which some responses are in the page
TEXT = 400  # characters of one, of a prompt and of a response


def alarms(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """[{stage, step, kind, text, samples}] in the order of the stages; damaged lines are noted and left out.

    `samples`: [{p, t, s}], prompt, response and reward of some responses of that step, of the first alarms.
    """
    found: list[dict[str, Any]] = []
    for source in sources:
        for name, reader in source.stages.items():
            path = reader.folder / "alarms.jsonl"
            if path.exists():
                none = list[dict[str, Any]]()
                found += source.attempt(f"{name}/alarms.jsonl", none, _read, source, name)
    for one in found[SHOWN:]:
        one["samples"] = []
    return found[:MOST]


def _read(source: Source, name: str) -> list[dict[str, Any]]:
    path = source.stages[name].folder / "alarms.jsonl"
    rows = read_alarms(path)
    if bad := sum(1 for _ in json_lines(path)) - len(rows):
        source.notes.append(f"{source.label(name)}/alarms.jsonl: {plural(bad, 'damaged line')} left out.")
    return [
        {
            "stage": text_of(source.label(name)),
            "step": row["step"],
            "kind": text_of(row.get("kind"), 80),
            "text": text_of(row["text"], TEXT).rstrip("."),
            "samples": [_sample(one) for one in row.get("samples") or [] if isinstance(one, Mapping)][:SAMPLES],
        }
        for row in rows
    ]


def _sample(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "p": text_of(one.get("prompt"), TEXT),
        "t": text_of(one.get("response"), TEXT),
        "s": rounded(one.get("score")),
    }

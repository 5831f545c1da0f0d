"""Reward against KL over training: the path of every stage that samples at each step, with gold where it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.report.html.reading import Source, json_lines, number, rounded, text_of

POINTS = 10  # of one path: single steps are too noisy to be read


def frontier(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """[{stage, step, kl, proxy, gold}] with columns of equal length; values are means of neighbouring steps."""
    found = []
    for source in sources:
        for name, reader in source.stages.items():
            path = reader.folder / "metrics.jsonl"
            if not path.exists():
                continue
            rows = [row for row, _ in json_lines(path) if row is not None]
            points = [point for row in rows if (point := _point(row)) is not None]
            if len(points) > 1:
                columns = _columns(points)
                found.append({"stage": text_of(source.label(name)), **columns})
    return found


def _point(row: Mapping[str, Any]) -> tuple[float, float, float, float | None] | None:
    """(step, KL, proxy, gold) of a step; None where KL or reward were not measured."""
    kl = number(row.get("kl_exact"))
    kl = number(row.get("kl")) if kl is None else kl
    step, score = number(row.get("step")), number(row.get("score"))
    return None if step is None or kl is None or score is None else (step, kl, score, number(row.get("reward/gold")))


def _columns(points: Sequence[tuple[float, float, float, float | None]]) -> dict[str, list[Any]]:
    width = -(-len(points) // POINTS)
    columns: dict[str, list[Any]] = {"step": [], "kl": [], "proxy": [], "gold": []}
    for start in range(0, len(points), width):
        part = points[start : start + width]
        for key, values in zip(columns, zip(*part, strict=True), strict=True):
            known = [v for v in values if v is not None]
            columns[key].append(rounded(sum(known) / len(known)) if known else None)
    if not any(value is not None for value in columns["gold"]):
        del columns["gold"]
    return columns

"""A judge's win rate corrected by people who labelled a part of the pairs, for the stage `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tiltyard.evaluation.judged import JUDGE
from tiltyard.evaluation.people import PairTable, corrected_rates
from tiltyard.report.judge_tables import corrected_lines, json_ready
from tiltyard.stages.base import StageContext
from tiltyard.stages.people_labels import labels_of

Rates = Mapping[str, Mapping[str, Any]]


def by_people(context: StageContext, people: str, table: PairTable) -> Rates:
    """Returns the corrected rates of the first response of each pair that the judge compared, JSON-ready, by method."""
    other = 0
    for group, _ in labels_of(context, people):
        if len(group.responses) == 2 and table.holds(group):
            table.add_people(group)
        else:
            other += 1
    labelled = sum(bool(pair.votes) for pair in table.pairs.values())
    if labelled < 2:
        found = (
            f"{labelled} of {len(table.pairs):,} pairs that are compared here; {other:,} of its labels are of others"
        )
        context.report("people", [f"no corrected win rate: {people} has labels of {found}"])
        return {}
    rates: Rates = json_ready(next(iter(corrected_rates(list(table.pairs.values()), JUDGE).values()), {}))
    return rates


def corrected_win_rates(corrected: Mapping[str, Rates], baseline: str) -> Iterator[str]:
    """Yields the lines about each model's corrected win rate."""
    for name, methods in corrected.items():
        yield from corrected_lines("the judge", f"{name} against {baseline}", methods)

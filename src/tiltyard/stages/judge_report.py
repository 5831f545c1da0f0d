"""Counts of a stage that queries judges, its result and its lines for the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from tiltyard.feedback import Usage
from tiltyard.feedback.scorers import counted
from tiltyard.numerals import plural
from tiltyard.stages.judge_items import given_ranks
from tiltyard.stages.judge_panel import Panel, has_verdict
from tiltyard.types import Group, Preference, ranks_of


@dataclass
class JudgeProgress:
    """Items that are done, and sums over them for the result."""

    pairs: int = 0
    labels: int = 0
    ties: int = 0
    cut: int = 0
    confidence: float = 0.0
    known: int = 0
    agreed: float = 0.0
    both: int = 0
    same: int = 0
    first: int = 0
    lists: int = 0
    opposed: float = 0.0
    causes: dict[str, int] = field(default_factory=dict)
    judges: dict[str, dict[str, str]] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=lambda: asdict(Usage()))


def count(progress: JudgeProgress, block: Sequence[Group], final: Sequence[Preference], panel: Panel) -> None:
    """Adds a block to the sums."""
    progress.pairs += len(block)
    progress.cut += sum(r.finish == "length" for g in block for r in g.responses)
    for group, one in zip(block, final, strict=True):
        if not has_verdict(one):
            cause = str(one.meta.get("cause") or "unreadable")
            progress.causes[cause] = progress.causes.get(cause, 0) + 1
            continue
        ranks = ranks_of(one) or ()
        progress.labels += 1
        progress.ties += len(ranks) > 1 and len(set(ranks)) == 1
        progress.confidence += max(one.shares) if one.shares is not None else 0.0
        if (opposed := one.meta.get("disagreement")) is not None:
            progress.lists, progress.opposed = progress.lists + 1, progress.opposed + opposed
        _agreement(progress, given_ranks(group), ranks)
    for member in panel.members:
        progress.judges[member.identity.name] = member.identity.facts()
        counts = member.take_positions()
        progress.both += counts.pairs
        progress.same += counts.same
        progress.first += counts.first
    progress.usage = asdict(Usage(**progress.usage) + panel.take_usage())  # type: ignore[arg-type]


def _agreement(progress: JudgeProgress, given: Sequence[int] | None, ranks: Sequence[int]) -> None:
    """Counts the pairs of responses that the data prefers, and those that the judge puts in that order."""
    if given is None or len(given) != len(ranks):
        return
    for i, j in combinations(range(len(ranks)), 2):
        if given[i] != given[j]:
            progress.known += 1
            tied = ranks[i] == ranks[j]
            progress.agreed += 0.5 if tied else float((given[i] < given[j]) == (ranks[i] < ranks[j]))


def result_of(progress: JudgeProgress, panel: Panel) -> dict[str, Any]:
    """The result of the stage: counts, shares, who judged, and what it cost."""
    result: dict[str, Any] = {
        "pairs": progress.pairs,
        "labels": progress.labels,
        "missing": progress.pairs - progress.labels,
        "missing_causes": dict(sorted(progress.causes.items())),
        "ties": progress.ties,
        "cut_answers": progress.cut,
    }
    if panel.members[0].settings.ask == "pair":
        result["confidence"] = progress.confidence / max(1, progress.labels)
    if progress.both:
        result["same_position"] = progress.same / progress.both
        result["same_position_first"] = progress.first / progress.both
    if progress.lists:
        result["order_disagreement"] = progress.opposed / progress.lists
    if progress.known:
        result["agreement"] = progress.agreed / progress.known
        result["agreement_pairs"] = progress.known
    result["judges"] = list(progress.judges.values())
    called = {"calls": "judge_calls", "cost": "judge_cost"}  # as in the results of training
    return result | {called.get(key, key): value for key, value in progress.usage.items()}


def lines_of(result: Mapping[str, Any], noun: str) -> list[str]:
    """Formats the result for the console."""
    missing = f"{result['missing']:,} {noun} without a verdict"
    missing += f": {counted(result['missing_causes'])}" if result["missing"] else ""
    confidence = f", mean confidence {result['confidence']:.3f}" if "confidence" in result else ""
    lines = [f"{plural(result['labels'], 'label')}{confidence}, {missing}"]
    if result["soft"] and result["hard"]:
        lines.append(
            f"{result['soft']:,} verdicts are from log-probabilities and {result['hard']:,} from words, whose p is 0 or"
            " 1: their confidences are not comparable"
        )
    elif result["hard"]:
        lines.append(
            f"the server returned no log-probabilities: {result['hard']:,} verdicts are from words, p is 0 or 1"
        )
    if "same_position" in result:
        lines.append(f"the same position preferred in both orders: {result['same_position']:.1%}")
    if "order_disagreement" in result:
        lines.append(f"pairs that the two orders of a list put apart: {result['order_disagreement']:.1%}")
    if "agreement" in result:
        lines.append(f"agreement with the labels given: {result['agreement']:.1%} of {result['agreement_pairs']:,}")
    repeated = f", {result['retries']:,} repeated" if result["retries"] else ""
    cached = f"{result['cached']:,} from the cache"
    lines.append(f"{result['judge_calls']:,} queries{repeated}, cost {result['judge_cost']:.4f}, {cached}")
    snapshots: dict[tuple[str, str], set[str]] = {}
    for one in result["judges"]:
        snapshots.setdefault((one["model"], one["digest"]), set()).add(one["snapshot"])
    for (model, _), found in snapshots.items():
        if len(found) > 1:
            lines.append(f"{model} changed while it judged ({', '.join(sorted(found))}): these are two judges")
    if result["unmetered"]:
        lines.append(f"{result['unmetered']:,} replies came without token counts (usage): what they cost is unknown")
    return lines

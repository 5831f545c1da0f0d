"""Stability of a reward model: its scores before and after changes of wording, spelling and the form of a prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tiltyard.data.perturb import PROMPT, RESPONSE
from tiltyard.evaluation.scored_pairs import prompt_key
from tiltyard.stats.icc import icc_ci
from tiltyard.stats.intervals import Estimate, mean_ci, rate_ci
from tiltyard.types import Group, ranks_of

Scores = Sequence[Sequence[float]]  # of each group's responses


@dataclass(frozen=True)
class Stability:
    """The stability of scores under one kind of change.

    Args:
        icc: ICC(1) of the scores of one answer; 1: they are equal, 0: they differ as those of different answers.
        flips: share of pairs of answers of different rank whose order changes (ties in score half); of wordings: share
            of pairs of wordings that are ordered otherwise than the means of their answers.
        accuracy: share of the pairs whose order is the labels', after the change.
        shift: mean change of the score, in standard deviations of the scores; None for wordings.
    """

    name: str
    icc: Estimate
    flips: Estimate
    accuracy: Estimate
    shift: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Figures as JSON-ready values, with their intervals."""
        found: dict[str, Any] = {}
        for key in ("icc", "flips", "accuracy", "shift"):
            estimate: Estimate | None = getattr(self, key)
            if estimate is not None:
                found |= {key: estimate.value, f"{key}_ci": [estimate.low, estimate.high]}
        return found | {"pairs": self.flips.n}


def perturbed(groups: Sequence[Group], name: str) -> list[Group]:
    """The groups with one kind of change (`data.perturb`) in their texts; their ids are those of the texts before."""
    if name in PROMPT:
        return [_with_prompt(group, PROMPT[name]) for group in groups]
    change = RESPONSE[name]
    return [replace(g, responses=tuple(replace(r, text=change(r.text)) for r in g.responses)) for g in groups]


def _with_prompt(group: Group, change: Callable[[str], str]) -> Group:
    prompt = group.prompt
    if prompt.messages is None:
        return replace(group, prompt=replace(prompt, text=change(prompt.text or "")))
    last = prompt.messages[-1]._replace(content=change(prompt.messages[-1].content))
    return replace(group, prompt=replace(prompt, messages=(*prompt.messages[:-1], last)))


def stability(name: str, groups: Sequence[Group], before: Scores, after: Scores, *, seed: int = 0) -> Stability:
    """Compares the scores of the same responses before and after a change; intervals are over prompts."""
    measured, keys, flips, right, pair_keys, shifts = [], [], [], [], [], []
    flat = [score for row in before for score in row]
    spread = _deviation(flat) or 1.0
    for group, old, new in zip(groups, before, after, strict=True):
        key, ranks = prompt_key(group), ranks_of(group.preference) or ()
        for a, b in zip(old, new, strict=True):
            measured.append((a, b))
            keys.append(key)
            shifts.append((b - a) / spread)
        for i, j in product(range(len(ranks)), repeat=2):
            if ranks[i] < ranks[j]:
                flips.append(_differs(old[i] - old[j], new[i] - new[j]))
                right.append(_share(new[i] - new[j]))
                pair_keys.append(key)
    how: dict[str, Any] = {"seed": seed}
    return Stability(
        name,
        icc_ci(measured, keys, **how),
        rate_ci(flips, pair_keys, **how),
        rate_ci(right, pair_keys, **how),
        mean_ci(shifts, keys, **how),
    )


def wordings(groups: Sequence[Group], scores: Scores, *, seed: int = 0) -> Stability | None:
    """Compares the scores of responses of equal rank, which are wordings of one answer; None where there are none."""
    measured, keys, flips, right, pair_keys = [], [], [], [], []
    for group, row in zip(groups, scores, strict=True):
        answers: dict[int, list[float]] = defaultdict(list)
        for rank, score in zip(ranks_of(group.preference) or (), row, strict=False):
            answers[rank].append(score)
        key = prompt_key(group)
        if all(len(one) < 2 for one in answers.values()):
            continue
        for one in answers.values():
            measured.append(one)
            keys.append(key)
        for better, worse in product(sorted(answers), repeat=2):
            if better < worse:
                means = [sum(answers[rank]) / len(answers[rank]) for rank in (better, worse)]
                for a, b in product(answers[better], answers[worse]):
                    flips.append(_differs(means[0] - means[1], a - b))
                    right.append(_share(a - b))
                    pair_keys.append(key)
    if not flips:
        return None
    how: dict[str, Any] = {"seed": seed}
    flipped, agreed = (rate_ci(values, pair_keys, **how) for values in (flips, right))
    return Stability("wordings", icc_ci(measured, keys, **how), flipped, agreed, None)


def _share(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _differs(old: float, new: float) -> float:
    """1 where two differences have opposite signs, 1/2 where one of them is 0."""
    return abs(_share(old) - _share(new))


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return float((sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5)

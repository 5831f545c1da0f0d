"""Newer policies against older ones: by the labels of their responses, and on the embedded world by the gold score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from tiltyard.stats.intervals import Estimate, rate_ci
from tiltyard.stats.win_rates import win_rate
from tiltyard.types import Group, Response, prompt_digest, ranks_of, response_id
from tiltyard.world.gold import gold
from tiltyard.world.reward import is_world_prompt


@dataclass(frozen=True)
class Versions:
    """A newer policy against an older one on the same prompts; a tie is half a win.

    `labels`: how often annotators preferred the newer one, over their judgements; None where none preferred either.
    `gold`: the same by the gold score, over the labelled pairs; None outside the embedded world. `agreement`: share of
    the judgements with a preference in which the gold score, where it differs, prefers the same response. Intervals
    resample prompts. `both_bad`: judgements that prefer neither, which are no part of `labels`.
    """

    new: str
    old: str
    labels: Estimate | None
    gold: Estimate | None
    agreement: Estimate | None
    both_bad: int

    def lines(self) -> Iterator[str]:
        """Yields sentences with the rates."""
        if self.labels is None:
            yield f"{self.new} against {self.old}: no judgement prefers either ({self.both_bad:,} times both are bad)"
            return
        bad = f"; both bad {self.both_bad:,} times" if self.both_bad else ""
        yield f"{self.new} against {self.old}: preferred in {_share(self.labels)} of {self.labels.n:,} labels{bad}"
        if self.gold is not None:
            yield f"{self.new} against {self.old}: by the gold score {_share(self.gold)} of {self.gold.n:,} pairs"
        if self.agreement is not None:
            yield f"labels agree with the gold score in {_share(self.agreement)} of {self.agreement.n:,}"

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        values: dict[str, Any] = {"new": self.new, "old": self.old, "both_bad": self.both_bad}
        for name in ("labels", "gold", "agreement"):
            found: Estimate | None = getattr(self, name)
            values[name] = None if found is None else {k: _finite(v) for k, v in found._asdict().items()}
        return values


def compared(groups: Iterable[Group], order: Sequence[str], *, seed: int = 0) -> list[Versions]:
    """Compares policies on judged groups.

    Args:
        groups: one opinion each; `response.meta["policy"]` names who wrote each response.
        order: the policies, the oldest first; pairs of others are left out.
    """
    judged = list(groups)
    found = []
    for old, new in combinations(order, 2):
        pairs = [pair for group in judged for pair in _pairs(group, new, old)]
        if pairs:
            found.append(_compared(pairs, new, old, seed))
    return found


Pair = tuple[Group, Response, Response, float | None]  # the newer response, the older one, 1 where the newer one won


def _pairs(group: Group, new: str, old: str) -> Iterator[Pair]:
    ranks = ranks_of(group.preference)
    for i, one in enumerate(group.responses):
        for j, two in enumerate(group.responses):
            if (one.meta.get("policy"), two.meta.get("policy")) == (new, old):
                won = None if ranks is None else 0.5 if ranks[i] == ranks[j] else float(ranks[i] < ranks[j])
                yield group, one, two, won


def _compared(pairs: Sequence[Pair], new: str, old: str, seed: int) -> Versions:
    decided = [(group, one, two, won) for group, one, two, won in pairs if won is not None]
    labels = rate_ci([won for *_, won in decided], _prompts(decided), seed=seed) if decided else None
    once = {(prompt_digest(g.prompt), response_id(a), response_id(b)): (g, a, b, won) for g, a, b, won in pairs}
    known = all(is_world_prompt(group.prompt) for group, *_ in pairs)
    gold_rate = agreement = None
    if known:
        unique = list(once.values())
        gold_rate = win_rate(
            [_gold(g, a) for g, a, _, _ in unique], [_gold(g, b) for g, _, b, _ in unique], _prompts(unique)
        )
        clear = [(g, a, b, won) for g, a, b, won in decided if won != 0.5 and _gold(g, a) != _gold(g, b)]
        same = [float((_gold(g, a) > _gold(g, b)) == (won == 1)) for g, a, b, won in clear]
        agreement = rate_ci(same, _prompts(clear), seed=seed) if clear else None
    return Versions(new, old, labels, gold_rate, agreement, len(pairs) - len(decided))


def _prompts(pairs: Iterable[Pair]) -> list[str]:
    return [prompt_digest(group.prompt) for group, *_ in pairs]


def _gold(group: Group, response: Response) -> float:
    return gold(group.prompt.meta, response.text).total


def _share(rate: Estimate) -> str:
    if math.isnan(rate.low):
        return f"{rate.value:.1%}"
    return f"{rate.value:.1%} (95% interval {rate.low:.1%} to {rate.high:.1%})"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Evaluated responses under rewards of any kind, and under a judge that compares them with those of a baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tiltyard.evaluation.people import GivenVerdict, PairTable
from tiltyard.evaluation.policies import EvaluatedResponse
from tiltyard.feedback.scorers import ParseFailures, counted
from tiltyard.feedback.verdicts import Judge, Verdict
from tiltyard.numerals import plural
from tiltyard.scoring.base import Scorer, checked_scores, matched_groups, matched_responses
from tiltyard.types import Group, Response, prompt_digest

JUDGE = "judge"  # its name in a table of pairs
Values = list[list[float | None]]  # one a response of each group; None: the scorer abstained


@dataclass(frozen=True)
class NamedReward:
    """A reward that is measured.

    Attributes:
        weight: its factor in the sum; 0 for one that is measured besides.
        is_rate: it is 0 or 1 for each response, so its mean is a share.
    """

    name: str
    scorer: Scorer
    weight: float = 1.0
    is_rate: bool = False


@dataclass(frozen=True)
class Judged:
    """Counts of a judge's verdicts on one model's responses against the baseline's.

    Attributes:
        pairs: all of them; `missing` of them have no verdict, `causes` says why.
        both_orders: pairs with verdicts in both orders; in `disagree` of them the same position was preferred in both.
    """

    pairs: int = 0
    missing: int = 0
    both_orders: int = 0
    disagree: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        missing = f", {self.missing:,} without a verdict" + (f" ({counted(self.causes)})" if self.causes else "")
        orders = f"; the two orders disagree in {self.disagree:,} of {self.both_orders:,}" if self.both_orders else ""
        return f"{plural(self.pairs, 'pair')}{missing if self.missing else ''}{orders}"


def values_of(scorer: Scorer, groups: Sequence[Group]) -> Values:
    """The scorer's value of every response of every group, None where it abstained."""
    values: Values = [[None] * len(group.responses) for group in groups]
    scored = checked_scores(scorer, groups)
    for index, group in zip(matched_groups(groups, scored), scored, strict=True):
        places = matched_responses(groups[index].responses, group.responses)
        for place, score in zip(places, group.scores or (), strict=True):
            values[index][place] = score
    return values


def total_of(rewards: Sequence[NamedReward], values: Mapping[str, Values], groups: Sequence[Group]) -> Values:
    """The weighted sum of the rewards of a weight; None where one of them abstained, or none has a weight."""
    parts = [(reward.weight, values[reward.name]) for reward in rewards if reward.weight]
    totals: Values = []
    for i, group in enumerate(groups):
        rows = [[(weight, some[i][k]) for weight, some in parts] for k in range(len(group.responses))]
        totals.append([_sum(row) for row in rows])
    return totals


def _sum(row: Sequence[tuple[float, float | None]]) -> float | None:
    known = [weight * value for weight, value in row if value is not None]
    return sum(known) if known and len(known) == len(row) else None


def compared(
    judge: Judge,
    groups: Sequence[Group],
    baseline: Sequence[Group],
    responses: Sequence[EvaluatedResponse],
    failures: ParseFailures,
    table: PairTable | None = None,
) -> tuple[list[EvaluatedResponse], Judged]:
    """The responses with the judge's probability that each is better than the baseline's, and the counts.

    Args:
        judge: usually `Debiased`, which asks in both orders.
        groups: of the model, in the order of `responses`. baseline: of the baseline; the k-th response to a prompt is
            compared with the k-th. What has no counterpart there (another tokenizer drops other prompts) has no pair.
        failures: stops a run whose judge has no verdict on too many pairs.
        table: gets every pair with the verdict, under the name `judge`.
    """
    others: dict[str, list[Group]] = {}
    for group in reversed(baseline):
        others.setdefault(prompt_digest(group.prompt), []).append(group)
    pairs: dict[int, Group] = {}
    place = 0
    for group in groups:
        same = others.get(prompt_digest(group.prompt))
        opposed = same.pop().responses if same else ()
        for k, one in enumerate(group.responses):
            if k < len(opposed):
                both = (Response(text=r.text, meta=r.meta) for r in (one, opposed[k]))
                pairs[place + k] = Group(group.prompt, tuple(both), origin=group.origin)
        place += len(group.responses)
    verdicts = dict(zip(pairs, judge(list(pairs.values())), strict=True))
    failures.add(list(verdicts.values()))
    if table is not None:
        for i, pair in pairs.items():
            table.add_verdict(pair, JUDGE, GivenVerdict(verdicts[i].p, verdicts[i].orders))
    missing = [v for v in verdicts.values() if v.p is None]
    orders = [v.same_position for v in verdicts.values() if v.same_position is not None]
    causes: dict[str, int] = dict(Counter(v.cause or "unreadable" for v in missing))
    counts = Judged(len(verdicts), len(missing), len(orders), sum(orders), causes)
    alone = Verdict(None, "the baseline has no response to this prompt")
    named = [(response, verdicts.get(i, alone)) for i, response in enumerate(responses)]
    return [replace(r, win=v.p, no_verdict=v.reason if v.p is None else "") for r, v in named], counts

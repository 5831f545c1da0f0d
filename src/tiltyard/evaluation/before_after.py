"""A model before and after training on the same held-out data: lines of a table, each with the change and its interval.

Every interval is a 95% bootstrap over prompts, of a change that of the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from tiltyard.batch.batch import Batch
from tiltyard.batch.compare import compare_with_ref
from tiltyard.data.keys import quality_of
from tiltyard.evaluation.scored_pairs import prompt_key, scored_pairs
from tiltyard.losses.kl import sum_per_response
from tiltyard.models.language import LanguageModel
from tiltyard.stats.intervals import Estimate, mean_ci, rate_ci
from tiltyard.stats.length_control import length_controlled_win_rate
from tiltyard.stats.win_rates import outcomes_of
from tiltyard.types import Group

Unit = Literal["share", "nats", "tokens", "score", "bits"]
Clusters = Sequence[Hashable]


@dataclass(frozen=True)
class Line:
    """One measurement. None: not measured, or the same by definition.

    `change` is the paired difference after - before. `higher`: the direction that is better; "" where neither is.
    `means` says in a sentence what the number is.
    """

    name: str
    unit: Unit
    before: Estimate | None
    after: Estimate | None
    change: Estimate | None
    means: str
    higher: Literal["better", "worse", ""] = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the line as JSON-ready values: estimates as {value, low, high, n}."""
        row = asdict(self)
        for key in ("before", "after", "change"):
            value = getattr(self, key)
            row[key] = None if value is None else value._asdict()
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Line:
        """The line that `to_dict` gave."""
        estimates: dict[str, Estimate | None] = dict.fromkeys(("before", "after", "change"))
        for key in estimates:
            if row[key] is not None:  # JSON has no NaN
                numbers: dict[str, Any] = {
                    name: math.nan if value is None else value for name, value in row[key].items()
                }
                estimates[key] = Estimate(**numbers)
        return cls(**{**row, **estimates})


def paired(
    name: str,
    unit: Unit,
    before: Sequence[float],
    after: Sequence[float],
    clusters: Clusters,
    means: str,
    higher: Literal["better", "worse", ""] = "",
) -> Line:
    """Returns a line of two paired columns of numbers, one an answer or a pair."""
    interval = rate_ci if unit == "share" else mean_ci
    difference = [b - a for a, b in zip(before, after, strict=True)]
    return Line(
        name,
        unit,
        interval(before, clusters),
        interval(after, clusters),
        mean_ci(difference, clusters),
        means,
        higher,
    )


def alone(
    name: str,
    unit: Unit,
    after: Sequence[float],
    clusters: Clusters,
    means: str,
    *,
    start: float | None = None,
    higher: Literal["better", "worse", ""] = "",
) -> Line:
    """Returns a line that compares the trained model with the start; `start`: the number of the start by definition."""
    interval = rate_ci if unit == "share" else mean_ci
    before = None if start is None else _at(start, clusters)
    return Line(name, unit, before, interval(after, clusters), None, means, higher)


def _at(value: float, clusters: Clusters) -> Estimate:
    """A number that holds by definition."""
    return Estimate(value, value, value, len(clusters))


# ---------------------------------------------------------------------------------------------- held-out rows


@torch.no_grad()
def each_logp(model: LanguageModel, groups: Sequence[Group], budget: int) -> Iterator[list[tuple[float, int]]]:
    """Yields, group by group, (summed log-prob in nats, tokens with a loss) of every response."""
    model.module.eval()
    for part in Batch.stream(groups, model.device, budget):
        forest = part.forest
        logp_B = sum_per_response(model.logp_R(forest)[0].double(), forest.response_R, forest.B).tolist()
        values = list(zip(logp_B, forest.count_B.tolist(), strict=True))
        for group in part.groups:
            yield [(logp, int(count)) for logp, count in values[: len(group.responses)]]
            values = values[len(group.responses) :]


Logps = Sequence[Sequence[tuple[float, int]]]


def likelihood_lines(groups: Sequence[Group], before: Logps, after: Logps) -> list[Line]:
    """Returns the held-out loss of demonstrations."""
    return [_loss(groups, before, after, [0] * len(groups), "the held-out answers")]


def preference_lines(groups: Sequence[Group], before: Logps, after: Logps) -> list[Line]:
    """Returns lines about held-out comparisons: the implicit reward's accuracy, the likelihoods', the loss.

    The implicit reward of a response is log pi_after - log pi_before (Rafailov et al. 2023, eq. 5, without beta).
    """
    ratios = [[b - a for (a, _), (b, _) in zip(old, new, strict=True)] for old, new in zip(before, after, strict=True)]
    found = [pair.swapped() if pair.q < 0.5 else pair for pair in scored_pairs(groups, ratios)]
    pairs = [pair for pair in found if pair.q != 0.5]
    if not pairs:
        return []
    keys = [pair.prompt for pair in pairs]
    right = outcomes_of([p.chosen for p in pairs], [p.rejected for p in pairs]).tolist()
    margins = [pair.chosen - pair.rejected for pair in pairs]
    longer = outcomes_of([p.chosen_tokens for p in pairs], [p.rejected_tokens for p in pairs])
    lines = [
        alone(
            "prefers the better answer",
            "share",
            right,
            keys,
            "held-out pairs whose better answer gained more log-prob (the implicit reward); 50%: by chance",
            start=0.5,
            higher="better",
        ),
        alone("  by how much", "nats", margins, keys, "mean gain of the better answer over the other", start=0.0),
        Line(
            "  the longer is better",
            "share",
            None,
            rate_ci(longer, keys),
            None,
            "the same pairs judged by length alone: what a preference for length would get right",
        ),
        _likelihood(groups, before, after),
    ]
    best = [_best(group) for group in groups]
    return [*lines, _loss(groups, before, after, best, "the better held-out answers")]


def labelled_lines(groups: Sequence[Group], before: Logps, after: Logps) -> list[Line]:
    """Returns lines about held-out responses labelled good or bad."""
    right, keys, kinds = [], [], []
    for group, old, new in zip(groups, before, after, strict=True):
        labels = (group.preference.labels if group.preference else None) or ()
        for good, (a, _), (b, _) in zip(labels, old, new, strict=True):
            right.append(float((b > a) == bool(good)) if a != b else 0.5)
            keys.append(prompt_key(group))
            kinds.append(bool(good))
    if not right:
        return []
    means = "held-out answers whose log-prob rose where the label is good and fell where it is bad; 50%: by chance"
    lines = [alone("moves with the label", "share", right, keys, means, start=0.5, higher="better")]
    first = {i: labels.index(True) for i, labels in enumerate(map(_labels, groups)) if True in labels}
    if first:
        kept, was, now = [groups[i] for i in first], [before[i] for i in first], [after[i] for i in first]
        lines.append(_loss(kept, was, now, list(first.values()), "the good held-out answers"))
    return lines


def _labels(group: Group) -> Sequence[bool]:
    return (group.preference.labels if group.preference else None) or ()


def _best(group: Group) -> int:
    """The position of the best response of a comparison."""
    quality = quality_of(group) or (0.0,) * len(group.responses)
    return max(range(len(quality)), key=lambda i: quality[i])


def _likelihood(groups: Sequence[Group], before: Logps, after: Logps) -> Line:
    sides, keys = [], []
    for logps in (before, after):
        average = [[logp / max(1, count) for logp, count in one] for one in logps]
        pairs = [pair.swapped() if pair.q < 0.5 else pair for pair in scored_pairs(groups, average)]
        pairs = [pair for pair in pairs if pair.q != 0.5]
        sides.append(outcomes_of([p.chosen for p in pairs], [p.rejected for p in pairs]).tolist())
        keys = [pair.prompt for pair in pairs]
    means = "held-out pairs whose better answer has the higher log-prob a token"
    return paired("  likelier a token", "share", sides[0], sides[1], keys, means, "better")


def _loss(groups: Sequence[Group], before: Logps, after: Logps, index: Sequence[int], of: str) -> Line:
    columns = [
        [-one[i][0] / max(1, one[i][1]) for one, i in zip(logps, index, strict=True)] for logps in (before, after)
    ]
    keys = [prompt_key(group) for group in groups]
    return paired("held-out loss", "nats", columns[0], columns[1], keys, f"mean nats a token of {of}", "worse")


# ---------------------------------------------------------------------------------------------- sampled answers


def answer_lines(before: Sequence[Group], after: Sequence[Group]) -> list[Line]:
    """Returns lines about the length of both models' answers to the same prompts."""
    keys = [prompt_key(group) for group in before for _ in group.responses]
    columns = [[r for group in groups for r in group.responses] for groups in (before, after)]
    lengths = [[float(len(r.ids)) for r in column] for column in columns]
    cut = [[float(r.finish == "length") for r in column] for column in columns]
    lines = [paired("answer's length", "tokens", lengths[0], lengths[1], keys, "mean tokens of an answer")]
    if any(cut[0]) or any(cut[1]):
        lines.append(paired("  cut at the limit", "share", cut[0], cut[1], keys, "answers that reached max_tokens"))
    longer = outcomes_of(lengths[1], lengths[0]).tolist()
    lines.append(
        alone("  longer than before", "share", longer, keys, "answers that are the longer one of the two", start=0.5)
    )
    return lines


def score_lines(before: Sequence[Group], after: Sequence[Group], by: str) -> list[Line]:
    """Returns the win rate and the mean score of scored answers to the same prompts; ties are half a win.

    Args:
        by: what gave the scores, e.g. "the reward model".
    """
    keys, columns, differences = _scores(before, after)
    if not keys:
        return []
    values = {x for column in columns for x in column}
    wins = outcomes_of(columns[1], columns[0]).tolist()
    means = f"answers that {by} scores higher"
    lines = [alone("wins against before", "share", wins, keys, means, start=0.5, higher="better")]
    controlled = length_controlled_win_rate(wins, differences, keys)
    if any(differences) and not math.isnan(controlled.value):
        means = "the same at equal length, by a logistic regression (Dubois et al. 2024)"
        lines.append(Line("  at equal length", "share", _at(0.5, keys), controlled, None, means, "better"))
    if values <= {0.0, 1.0}:
        means = f"answers that pass {by}"
        return [*lines, paired("pass rate", "share", columns[0], columns[1], keys, means, "better")]
    return [*lines, paired("mean score", "score", columns[0], columns[1], keys, f"by {by}", "better")]


def verdict_line(judged: Sequence[Group], by: str) -> Line | None:
    """Returns the win rate of groups of (before, after) that a judge of pairs has ranked or scored."""
    wins, keys = [], []
    for group in judged:
        ranks = group.preference.ranks if group.preference is not None else None
        values = group.scores if ranks is None else tuple(-float(rank) for rank in ranks)
        if values is not None and len(values) == 2:
            wins.append(float(outcomes_of([values[1]], [values[0]])[0]))
            keys.append(prompt_key(group))
    if not wins:
        return None
    means = f"pairs of answers in which {by} prefers the later one"
    return alone("wins against before", "share", wins, keys, means, start=0.5, higher="better")


def _scores(before: Sequence[Group], after: Sequence[Group]) -> tuple[list[Hashable], list[list[float]], list[float]]:
    """(prompts, scores of both models, differences of length) of the answers that both have a score for."""
    known = {prompt_key(group): group for group in after}
    keys: list[Hashable] = []
    columns: list[list[float]] = [[], []]
    differences: list[float] = []
    for group in before:
        other = known.get(prompt_key(group))
        if other is None or group.scores is None or other.scores is None:
            continue
        count = min(len(group.scores), len(other.scores))
        columns[0] += group.scores[:count]
        columns[1] += other.scores[:count]
        pairs = zip(group.responses[:count], other.responses[:count], strict=True)
        differences += [float(len(new.ids) - len(old.ids)) for old, new in pairs]
        keys += [prompt_key(group)] * count
    return keys, columns, differences


def kl_line(
    model: LanguageModel,
    ref: LanguageModel,
    groups: Sequence[Group],
    budget: int,
    progress: Callable[[Sequence[Batch]], Iterator[Batch]],
) -> Line:
    """Returns the KL from the start along the trained model's own answers, exact over the vocabulary at each token."""
    values: list[float] = []
    keys = [prompt_key(group) for group in groups for _ in group.responses]
    for part in progress(list(Batch.stream(groups, model.device, budget))):
        forest = part.forest
        kl_R = compare_with_ref(model, ref, forest).kl_R
        values += sum_per_response(kl_R.double(), forest.response_R, forest.B).tolist()
    means = "KL(after || before) an answer, exact at each token, along the trained model's answers"
    return alone("KL from before", "nats", values, keys, means, start=0.0)

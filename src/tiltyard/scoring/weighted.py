"""The weighted sum of several scorers, each part logged by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tiltyard.batch.batch import Metrics, summed
from tiltyard.errors import ConfigError
from tiltyard.models.backbone import Backbone
from tiltyard.scoring.base import (
    Cost,
    Scale,
    Scorer,
    checked_scores,
    highest_score,
    matched_groups,
    matched_responses,
    score_sum,
    scorer_metrics,
    scores_together,
    whole_models,
)
from tiltyard.types import Group, Preference, Prompt


class WeightedScorer:
    """The weighted sum of several scorers.

    A response that one part leaves out is left out of the sum. A group to which a part gives no scores but ranks (a
    pairwise judge without a verdict: all ranks 1) has no scores in the sum either; a part that gives neither is an
    error.

    Args:
        parts: (weight, scorer); their names must differ, each is logged as `reward/NAME`.
        name: of the sum.

    Raises:
        ConfigError: no part, or two parts of one name.
    """

    def __init__(self, parts: Sequence[tuple[float, Scorer]], name: str = "reward"):
        if not parts:
            raise ConfigError("a weighted sum needs at least one scorer", where="WeightedScorer")
        names = [scorer.name for _, scorer in parts]
        if len(set(names)) < len(names):
            raise ConfigError("two parts of a weighted sum have one name", where="WeightedScorer", got=names)
        self.parts, self.name = list(parts), name
        self._sums: dict[str, tuple[float, float]] = {}

    @property
    def scale(self) -> Scale:
        """Comparable where all parts are, moving where one is."""
        scales = [scorer.scale for _, scorer in self.parts]
        return Scale(all(s.comparable for s in scales), any(s.moving for s in scales))

    @property
    def together(self) -> bool:
        """True if every process calls some part together with the others, see `scores_together`."""
        return any(scores_together(scorer) for _, scorer in self.parts)

    @property
    def whole_models(self) -> tuple[Backbone, ...]:
        """The models that some part needs whole."""
        return tuple(model for _, scorer in self.parts for model in whole_models(scorer))

    @property
    def highest(self) -> float | None:
        """The sum of the parts' highest scores; None where a part declares none or has a weight below 0."""
        found = [highest_score(scorer) if weight >= 0 else None for weight, scorer in self.parts]
        known = [weight * most for (weight, _), most in zip(self.parts, found, strict=True) if most is not None]
        return sum(known) if len(known) == len(self.parts) else None

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the weighted sums, without the responses that some part left out.

        Raises:
            ScoringError: a part gave a group neither scores nor ranks.
        """
        totals = [dict.fromkeys(range(len(g.responses)), 0.0) for g in groups]
        missing: set[int] = set()  # groups that a part left out
        open_groups: set[int] = set()  # groups that a part gave no scores but ranks
        for weight, scorer in self.parts:
            scored = checked_scores(scorer, groups)
            indices = matched_groups(groups, scored)
            missing |= set(range(len(groups))) - set(indices)
            for index, group in zip(indices, scored, strict=True):
                if group.scores is None:
                    open_groups.add(index)
                    continue
                places = matched_responses(groups[index].responses, group.responses)
                values = dict(zip(places, group.scores, strict=True))
                totals[index] = {k: x + weight * values[k] for k, x in totals[index].items() if k in values}
            before = self._sums.get(scorer.name, (0.0, 0.0))
            total, count = score_sum(scored)
            self._sums[scorer.name] = (before[0] + total, before[1] + count)
        return [
            _without_scores(group) if i in open_groups else _with_scores(group, totals[i])
            for i, group in enumerate(groups)
            if i not in missing and (totals[i] or not group.responses)
        ]

    def take_cost(self) -> Cost:
        """The cost of all parts since the last call."""
        return sum((scorer.take_cost() for _, scorer in self.parts), Cost())

    def take_metrics(self) -> Metrics:
        """`reward/NAME` of each part over the responses that it scored since the last call, and the parts' own."""
        sums, self._sums = self._sums, {}
        names = [scorer.name for _, scorer in self.parts]
        means = {f"reward/{name}": sums.get(name, (0.0, 0.0)) for name in names}
        return summed([means, *(scorer_metrics(scorer) for _, scorer in self.parts)])

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Lets every part that checks prompts do so."""
        for _, scorer in self.parts:
            check_prompts(scorer, prompts)


def check_prompts(scorer: object, prompts: Sequence[Prompt]) -> None:
    """Lets the scorer refuse prompts that it cannot score, before anything is sampled."""
    check = getattr(scorer, "check_prompts", None)
    if check is not None:
        check(prompts)


def _without_scores(group: Group) -> Group:
    return replace(group, scores=None, preference=Preference(ranks=(1,) * len(group.responses)))


def _with_scores(group: Group, totals: dict[int, float]) -> Group:
    responses = tuple(group.responses[k] for k in totals)
    return replace(group, responses=responses, scores=tuple(totals.values()), preference=None)

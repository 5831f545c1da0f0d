"""Reward models from comparisons: Bradley-Terry pairs, K-wise rankings, Plackett-Luce; margins, noise and centring."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import ConfigError, DataError
from tiltyard.inputs import Rankings, RewardModel
from tiltyard.losses.labels import Noise
from tiltyard.losses.reward import accuracy_G, best_loss_G, kwise_loss_G, listwise_loss_G, pairs_G
from tiltyard.methods.base import method
from tiltyard.methods.direct import require_rankings
from tiltyard.training.algorithm import Algorithm, Forward, Item, Mean, Models, Source
from tiltyard.training.prepare import column, sum_count
from tiltyard.types import Group, ranks_of, shares_of

Form = Literal["pairs", "listwise", "best"]


@dataclass(frozen=True)
class RankingLoss:
    """The loss of one ranking, whole: over its pairs, over its order, or over who is best."""

    form: Form = "pairs"
    noise: float = 0.0
    noise_kind: Noise = "conservative"
    margins: bool = False
    centre: float = 0.0
    item: ClassVar[Item] = "G"

    @property
    def needs(self) -> tuple[str, ...]:
        grades = ("grade_B",) if self.margins else ()
        return ("model_score_B", "rank_B", "order_B", "share_B", "soft_G", "ranked_G", *grades)

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        forest, score_B = batch.forest, forward.model_score_B
        where = (forest.group_B, forest.G)
        if self.form == "pairs":
            loss_G = kwise_loss_G(
                score_B,
                batch["order_B"],
                *where,
                share_B=batch["share_B"],
                soft_G=batch["soft_G"],
                noise=self.noise,
                noise_kind=self.noise_kind,
                grade_B=batch["grade_B"] if self.margins else None,
                centre=self.centre,
            )
        elif self.form == "listwise":
            loss_G = listwise_loss_G(score_B, batch["rank_B"], *where)
        else:
            loss_G = best_loss_G(score_B, best_share_B(batch), *where)
        # groups whose soft labels are equal are in the loss, and have no order to measure accuracy by
        sided_G = pairs_G(batch["rank_B"], *where) > 0
        metrics: Metrics = {"accuracy": sum_count(accuracy_G(score_B.detach(), batch["rank_B"], *where)[sided_G])}
        metrics["model_score"] = (float(score_B.detach().sum()), float(forest.B))
        return loss_G, metrics


def best_share_B(batch: Batch) -> Tensor:
    """Each response's share in being the best of its group: the soft label, or equal parts for those ranked first."""
    rank_B, group_B = batch["rank_B"].double(), batch.forest.group_B
    least_G = torch.full((batch.forest.G,), torch.inf).to(rank_B).scatter_reduce(0, group_B, rank_B, "amin")
    first_B = (rank_B == least_G[group_B]).double()
    many_G = torch.zeros(batch.forest.G).to(first_B).index_add(0, group_B, first_B)
    return torch.where(batch["soft_G"][group_B] > 0, batch["share_B"], first_B / many_G[group_B])


@dataclass(frozen=True)
class RankingLabels:
    """Selects the pairs of a ranking that count in the loss.

    Columns: `ranked_G` (1 for groups with at least one untied pair; the others are left out of the mean and counted as
    `tied_groups`), `order_B` (ranks; in groups with soft labels every response has its own, so that each pair counts,
    equal shares too), `share_B` and `soft_G` (1 where the group has soft labels).
    """

    needs: ClassVar[tuple[str, ...]] = ("rank_B",)
    writes: ClassVar[tuple[str, ...]] = ("ranked_G", "order_B", "share_B", "soft_G")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        batch["rank_B"]  # raises if there are no ranks
        order: list[float] = []
        share: list[float] = []
        soft = []
        for group in batch.groups:
            shares = shares_of(group.preference)
            order += ranks_of(group.preference) or () if shares is None else range(1, len(group.responses) + 1)
            share += shares or [0.0] * len(group.responses)
            soft.append(float(shares is not None))
        order_B = column([float(x) for x in order], batch)
        kept_G = (pairs_G(order_B, batch.forest.group_B, batch.forest.G) > 0).double()
        return batch.with_columns(
            {"tied_groups": sum_count(1 - kept_G)},
            ranked_G=kept_G,
            order_B=order_B,
            share_B=column(share, batch),
            soft_G=column(soft, batch),
        )


@dataclass(frozen=True)
class Margins:
    """`grade_B`: numbers whose difference is the margin of a pair (Llama 2's m(rating), methods 1.4).

    Args:
        source: `scores` for the responses' scores; any other name is a field of the row, a number or one of `levels`,
            which is then the margin of the preferred over the other response of a pair.
        levels: numbers for the texts of that field, e.g. `{"significantly": 1, "slightly": 0.33}`.
        scale: multiplies both.

    Raises:
        DataError: a row without scores, without the field, with an unknown level, or a field beside a ranking.
    """

    source: str
    levels: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ("rank_B",)
    writes: ClassVar[tuple[str, ...]] = ("grade_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        grades = [self.scale * grade for group in batch.groups for grade in self._grades(group)]
        return batch.with_columns(grade_B=column(grades, batch))

    def check(self, group: Group) -> None:
        """Checks that the row has a margin, before the first step."""
        self._grades(group)

    def _grades(self, group: Group) -> tuple[float, ...]:
        if self.source == "scores":
            if group.scores is None:
                raise self._missing(group, "no scores", "give 'scores' (numbers), or set margin to a field of the rows")
            if not all(map(math.isfinite, group.scores)):
                raise self._missing(group, f"scores {group.scores}", "give finite numbers")
            return group.scores
        value = group.prompt.meta.get(self.source)
        margin = self.levels.get(value) if isinstance(value, str) else value
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= sys.float_info.max:
            fix = "add it to margin_levels" if isinstance(value, str) else f"give '{self.source}' as a number >= 0"
            raise self._missing(group, f"{self.source} = {value!r}", fix)
        if len(group.responses) != 2:
            raise self._missing(group, f"{len(group.responses)} responses", "use margin=scores for rankings")
        first, second = ranks_of(group.preference) or (1, 1)
        return (float(margin), 0.0) if first <= second else (0.0, float(margin))

    def _missing(self, group: Group, got: str, fix: str) -> DataError:
        where = group.origin or group.prompt.id
        return DataError(
            "the row has no margin", where=where, got=got, expected=f"a margin from '{self.source}'", fix=fix
        )


@method(
    "reward",
    source=Rankings(),
    roles=(RewardModel(),),
    name="reward",
    defaults={"lr": 1e-4, "prompts_per_step": 32, "epochs": 1.0},
    defaults_from="one epoch and whole rankings as elements: InstructGPT; lr: Tiltyard, for small models "
    "(InstructGPT 9e-6)",
    formula="pairs: mean over untied pairs of -log sigmoid(r_i - r_j - m) + centre (r_i + r_j)^2\n"
    "listwise: -sum_k (r_(k) - logsumexp of r_(k), r_(k+1), ...);  best: -log softmax(r)_best",
    oracle="r_true + const for Bradley-Terry or Plackett-Luce labels; at equal scores the gradient at rank i is "
    "(2i-1-K)/(K(K-1)); margins break calibration; centring with K >= 3 shrinks differences",
    paper="Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), eq. 1; Plackett 1975; Touvron et al. 2023 (margins)",
    pitfalls="One epoch: more overfits. Ties are left out. Accuracy on noisy labels has a ceiling of E max(p, 1-p).",
)
def reward_model(
    source: Source,
    *,
    form: Form = "pairs",
    noise: Annotated[float, Field(ge=0, lt=0.5)] = 0.0,
    noise_kind: Noise = "conservative",
    margin: str = "",
    margin_scale: Annotated[float, Field(gt=0)] = 1.0,
    margin_levels: Mapping[str, float] | None = None,
    centre: Annotated[float, Field(ge=0)] = 0.0,
) -> Algorithm:
    """A scalar r(x, y) such that sigmoid(r_i - r_j) is the probability that i is preferred to j.

    All pairs of one ranking are one element of the batch, averaged over its untied pairs; K=2 is Bradley-Terry.
    Rankings without any untied pair are left out of the mean and counted (`tied_groups`).

    Args:
        source: `Offline` over groups with ranks (1 is best).
        form: `pairs` (K-wise), `listwise` (Plackett-Luce: the whole order), or `best` (who comes first).
            [pairs: Ouyang et al. 2022]
        noise: probability that a label is flipped; for pairs. [0: Ouyang et al. 2022]
        noise_kind: `conservative` smooths the labels, `robust` corrects the loss for them. [Tiltyard: the milder]
        margin: source of the margin by which the preferred response is better: `scores` (their difference) or a field
            of the rows; empty: no margins. [none: Ouyang et al. 2022; margins: Touvron et al. 2023]
        margin_scale: multiplies margins. [1: Touvron et al. 2023]
        margin_levels: what words in that field mean, e.g. significantly: 1, better: 0.67, slightly: 0.33, unsure: 0.
            [none: give your scale's; the example is Touvron et al. 2023, table 27, small]
        centre: weight of (r_i + r_j)^2, which keeps rewards near 0. [0: off; 0.01 is Eisenstein et al. 2023's as TRL
            advises]
    """
    if form != "pairs" and (noise or margin or centre):
        raise ConfigError(
            "noise, margin and centre are of the loss over pairs",
            where="reward.form",
            got=f"form={form} with noise={noise}, margin={margin!r}, centre={centre}",
            fix="set form=pairs, or leave the others out",
        )
    grades = (Margins(margin, margin_levels or {}, margin_scale),) if margin else ()
    loss = RankingLoss(form, noise, noise_kind, bool(margin), centre)
    prepare = (RankingLabels(), *grades)
    return Algorithm("reward", require_rankings(source, "reward"), loss, ("reward",), prepare, Mean("ranked_G"))

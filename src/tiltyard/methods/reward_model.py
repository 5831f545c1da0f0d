"""Reward models from comparisons: Bradley-Terry pairs, K-wise rankings, Plackett-Luce; margins, noise and centring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import ConfigError
from tiltyard.losses.labels import Noise
from tiltyard.losses.reward import accuracy_G, best_loss_G, kwise_loss_G, listwise_loss_G, pairs_G
from tiltyard.methods.base import method
from tiltyard.methods.direct import rankings_of
from tiltyard.training.algorithm import Algorithm, Forward, Mean, Source
from tiltyard.training.labels import Margins, RankingLabels
from tiltyard.training.prepare import total

Form = Literal["pairs", "listwise", "best"]


@dataclass(frozen=True)
class RankingLoss:
    """The loss of one ranking, whole: over its pairs, over its order, or over who is best."""

    form: Form = "pairs"
    noise: float = 0.0
    noise_kind: Noise = "conservative"
    margins: bool = False
    centre: float = 0.0
    item: Literal["R", "B", "G"] = "G"

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
        # soft labels may be equal: such a group is learnt from, and has no right order to be measured by
        sided_G = pairs_G(batch["rank_B"], *where) > 0
        metrics: Metrics = {"accuracy": total(accuracy_G(score_B.detach(), batch["rank_B"], *where)[sided_G])}
        metrics["model_score"] = (float(score_B.detach().sum()), float(forest.B))
        return loss_G, metrics


def best_share_B(batch: Batch) -> Tensor:
    """Each response's share in being the best of its group: the soft label, or equal parts for those ranked first."""
    rank_B, group_B = batch["rank_B"].double(), batch.forest.group_B
    least_G = torch.full((batch.forest.G,), torch.inf).to(rank_B).scatter_reduce(0, group_B, rank_B, "amin")
    first_B = (rank_B == least_G[group_B]).double()
    many_G = torch.zeros(batch.forest.G).to(first_B).index_add(0, group_B, first_B)
    return torch.where(batch["soft_G"][group_B] > 0, batch["share_B"], first_B / many_G[group_B])


@method(
    "reward",
    "comparisons",
    name="reward",
    trains=("reward",),
    defaults={"lr": 1e-4, "batch": 32, "epochs": 1.0},
    tuned="one epoch and whole rankings as elements: InstructGPT; lr: Tiltyard, for small models (InstructGPT 9e-6)",
    formula="pairs: mean over untied pairs of -log sigmoid(r_i - r_j - m) + centre (r_i + r_j)^2\n"
    "listwise: -sum_k (r_(k) - logsumexp of r_(k), r_(k+1), ...);  best: -log softmax(r)_best",
    oracle="r_true + const for Bradley-Terry or Plackett-Luce labels; at equal scores the gradient at rank i is "
    "(2i-1-K)/(K(K-1)); margins break calibration; centring with K >= 3 shrinks differences",
    paper="Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), eq. 1; Plackett 1975; Touvron et al. 2023 (margins)",
    watch="One epoch: more overfits. Ties are left out. Accuracy on noisy labels has a ceiling of E max(p, 1-p).",
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
        margin: how much better the preferred answer is said to be: `scores` (their difference) or a field of the rows;
            empty: no margins. [none: Ouyang et al. 2022; margins: Touvron et al. 2023]
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
    return Algorithm("reward", rankings_of(source, "reward"), loss, ("reward",), prepare, Mean("ranked_G"))

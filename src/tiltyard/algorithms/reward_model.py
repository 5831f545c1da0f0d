"""Reward models from comparisons: Bradley-Terry pairs and InstructGPT's K-wise rankings are one loss."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tiltyard.algorithms.base import method
from tiltyard.losses.reward import accuracy_G, kwise_loss_G
from tiltyard.training.algorithm import Algorithm, Forward, Mean, Source
from tiltyard.training.batch import Batch, Metrics
from tiltyard.training.prepare import Ranked


class Kwise:
    """Mean over a group's untied pairs of -log sigmoid(r_better - r_worse)."""

    needs: tuple[str, ...] = ("model_score_B", "rank_B", "ranked_G")
    item: Literal["R", "B", "G"] = "G"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        forest, score_B = batch.forest, forward.model_score_B
        loss_G = kwise_loss_G(score_B, batch["rank_B"], forest.group_B, forest.G)
        right_G = accuracy_G(score_B.detach(), batch["rank_B"], forest.group_B, forest.G) * batch["ranked_G"]
        kept = float(batch["ranked_G"].sum())
        metrics: Metrics = {"accuracy": (float(right_G.sum()), kept)}
        metrics["model_score"] = (float(score_B.detach().sum()), float(forest.B))
        return loss_G, metrics


@method(
    "reward",
    "comparisons",
    name="reward",
    trains=("reward",),
    defaults={"lr": 1e-4, "batch": 32, "epochs": 1.0},
    paper="Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), eq. 1",
    watch="One epoch: more overfits. Ties are left out. Accuracy on noisy labels has a ceiling of E max(p, 1-p).",
)
def reward_model(source: Source) -> Algorithm:
    """A scalar r(x, y) such that sigmoid(r_i - r_j) is the probability that i is preferred to j.

    All pairs of one ranking are one element of the batch, averaged over its untied pairs; K=2 is Bradley-Terry.
    Rankings without any untied pair are left out of the mean and counted (`tied_groups`).

    Args:
        source: `Offline` over groups with ranks (1 is best).
    """
    return Algorithm("reward", source, Kwise(), ("reward",), (Ranked(),), Mean("ranked_G"))

"""RRHF: rank responses by their averaged log-probability, plus SFT on the best one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.inputs import Rankings
from tiltyard.losses.preference import rank_hinge_G
from tiltyard.losses.reward import accuracy_G, pairs_G
from tiltyard.methods.base import method
from tiltyard.methods.direct import require_rankings
from tiltyard.training.algorithm import Algorithm, Forward, Item, Source
from tiltyard.training.prepare import sum_count


@dataclass(frozen=True)
class RankAndImitate:
    """Sum over untied pairs of max(0, p_worse - p_better), p = log pi / |y|^length_penalty, and -log pi(best)."""

    rank_weight: float
    sft_weight: float
    length_penalty: float
    needs: ClassVar[tuple[str, ...]] = ("logp_R", "rank_B")
    item: ClassVar[Item] = "G"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        forest, logp_B, rank_B = batch.forest, forward.logp_B, batch["rank_B"]
        p_B = logp_B / forest.count_B.to(logp_B.dtype) ** self.length_penalty
        rank_G = rank_hinge_G(p_B, rank_B, forest.group_B, forest.G)
        least_G = torch.full((forest.G,), torch.inf).to(rank_B).scatter_reduce(0, forest.group_B, rank_B, "amin")
        best_B = (rank_B == least_G[forest.group_B]).to(logp_B.dtype)
        shared_G = torch.zeros(forest.G).to(logp_B).index_add(0, forest.group_B, best_B)
        nll_G = -torch.zeros(forest.G).to(logp_B).index_add(0, forest.group_B, best_B * logp_B) / shared_G
        metrics: Metrics = {
            "rank_loss": sum_count(rank_G.detach()),
            "best_nll": sum_count(nll_G.detach()),
        }
        kept_G = pairs_G(rank_B, forest.group_B, forest.G) > 0
        metrics["accuracy"] = sum_count(accuracy_G(p_B.detach(), rank_B, forest.group_B, forest.G)[kept_G])
        return self.rank_weight * rank_G + self.sft_weight * nll_G, metrics


@method(
    "offline",
    source=Rankings(),
    defaults={"lr": 2e-5, "prompts_per_step": 64, "epochs": 3.0, "warmup": 0.03},
    defaults_from="Yuan et al. 2023",
    formula="sum over r_i < r_j of max(0, p_i - p_j) - log pi(y_best),  p = log pi(y)/|y|",
    oracle="r = (1, .2, .8), p = (-.8, -.5, -.9): rank loss 0.70; zero exactly where the averaged log-probs are in "
    "the right order; only the order of rewards matters; nothing anchors it: the optimum is all mass on the best",
    paper="Yuan et al. 2023 (RRHF), eq. 3-4",
    pitfalls="Without an anchor it ends in memorising the best responses: stop early, watch KL. The published code "
    "averages over the padded row instead of the response (its mask is overwritten in place); here it is the formula.",
)
def rrhf(
    source: Source,
    *,
    rank_weight: Annotated[float, Field(ge=0)] = 1.0,
    sft_weight: Annotated[float, Field(ge=0)] = 1.0,
    length_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Rank responses to align: averaged log-probs in the order of the rewards, and likelihood of the best response.

    Groups may hold any number of responses. Ties make no pair; several best ones share the likelihood term.

    Args:
        source: `Offline` over rankings.
        rank_weight: of the ranking loss. [1: Yuan et al. 2023, train.sh]
        sft_weight: of the best response's negative log-likelihood (summed over tokens). [1: Yuan et al. 2023, eq. 4]
        length_penalty: log-probs are divided by |y| to this power. [1: Yuan et al. 2023, eq. 2]
    """
    return Algorithm("rrhf", require_rankings(source, "rrhf"), RankAndImitate(rank_weight, sft_weight, length_penalty))

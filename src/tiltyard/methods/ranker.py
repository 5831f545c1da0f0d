"""A pairwise ranker: a model that reads a prompt with two responses and predicts which is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.data.pairwise_prompt import PAIRS, encode_pairwise
from tiltyard.errors import DataError
from tiltyard.inputs import Rankings, RewardModel
from tiltyard.methods.base import method
from tiltyard.training.algorithm import Algorithm, Forward, Item, Mean, Models, Source
from tiltyard.types import Group, shares_of


@dataclass(frozen=True)
class Comparisons:
    """`preferred_G`: the probability that the response shown first in the first order is the better one; `weight_G`.

    The weight is 1 / (comparisons that the row gave), so that a row weighs the same whatever its K.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("preferred_G", "weight_G")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        preferred, weight = [], []
        for group in batch.groups:
            preferred.append((shares_of(group.preference) or (1.0,))[0])
            weight.append(1.0 / self._pairs(group))
        preferred_G, weight_G = torch.tensor([preferred, weight], dtype=torch.float64, device=batch.forest.device)
        return batch.with_columns(preferred_G=preferred_G, weight_G=weight_G)

    def check(self, group: Group) -> None:
        """Checks that the group is a comparison in both orders."""
        self._pairs(group)

    def _pairs(self, group: Group) -> int:
        pairs = group.responses[0].meta.get(PAIRS)
        if not pairs or len(group.responses) != 2:
            raise DataError(
                "a ranker learns from two orders of two responses",
                where=group.origin or group.prompt.id,
                got=f"{len(group.responses)} responses",
                expected="comparisons made by data.pairwise_prompt.encode_pairwise",
            )
        return int(pairs)


@dataclass(frozen=True)
class RankerLoss:
    """Cross-entropy of sigmoid(d), d = s(y1|y2) - s(y2|y1), and the raw scores' bias by position.

    `position_bias` is the mean of (s(y1|y2) + s(y2|y1)) / 2, the part of s that does not depend on which response
    comes first; `position_flips` the share of comparisons in which one order alone, read by its sign, would be
    contradicted by the other. Both cancel in the verdict; they measure the cost of reading one order only.
    """

    needs: ClassVar[tuple[str, ...]] = ("model_score_B", "preferred_G", "weight_G")
    item: ClassVar[Item] = "G"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        score_G2 = forward.model_score_B.reshape(-1, 2)
        d_G, p_G = score_G2[:, 0] - score_G2[:, 1], batch["preferred_G"]
        loss_G = -p_G * logsigmoid(d_G) - (1 - p_G) * logsigmoid(-d_G)
        sides_G = torch.sign(d_G.detach()) * torch.sign(p_G - 0.5)
        sure, groups = float((p_G != 0.5).sum()), float(batch.forest.G)
        raw_G2 = score_G2.detach()
        metrics: Metrics = {
            "accuracy": (float(((sides_G + 1) / 2)[p_G != 0.5].sum()), sure),  # equal scores count one half
            "position_bias": (float(raw_G2.mean(1).sum()), groups),
            "position_flips": (float((raw_G2.prod(1) > 0).sum()), groups),
        }
        return loss_G, metrics


@method(
    "reward",
    source=Rankings(encode=encode_pairwise),
    roles=(RewardModel(pairwise=True),),
    defaults={"lr": 1e-4, "prompts_per_step": 32, "epochs": 1.0},
    defaults_from="lr and prompts_per_step as for the reward model; SLiC-HF trains its T5 ranker at lr 1e-3, "
    "prompts_per_step 128",
    formula="-log sigmoid(s(x; y_w | y_l) - s(x; y_l | y_w)), averaged over the pairs of a row, then over rows",
    oracle="logit rho = r(x, y1) - r(x, y2) for Bradley-Terry labels; loss ln 2 at the start; rho(1,2) + rho(2,1) = 1",
    paper="Zhao et al. 2023 (SLiC-HF); Liu et al. 2023 (RSO), sec. 3.1",
    pitfalls="Two responses must fit max_length with their prompt. Accuracy has the ceiling of the labels' noise. "
    "Preferences that go in circles are learnt as they are, and a tournament's winner then depends on its draw.",
)
def ranker(source: Source) -> Algorithm:
    """Predicts which of two responses is better: sigmoid(s(x; y1 | y2) - s(x; y2 | y1)), the same in either order.

    Each untied pair of a ranking is one group, so `prompts_per_step` counts pairs. A row of K responses gives up to
    K(K-1)/2 of
    them, each weighed by one over their number: rows count alike, which is what InstructGPT's mean over a prompt's
    pairs is for. They are not kept in one step as there, because each pair is a text of its own that is read once an
    epoch, where a reward model would read each response K-1 times. Soft labels are the target of the cross-entropy.

    Args:
        source: `Offline` over the comparisons that `data.pairwise_prompt.encode_pairwise` makes of ranked groups.
    """
    return Algorithm("ranker", source, RankerLoss(), ("reward",), (Comparisons(),), Mean("weight_G"))

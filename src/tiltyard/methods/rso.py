"""RSO: pairs from (an estimate of) the optimal policy, by statistical rejection sampling of the SFT model's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from tiltyard.errors import ConfigError
from tiltyard.losses.preference import Hinge, Logistic
from tiltyard.methods.base import method
from tiltyard.methods.direct import PairLoss
from tiltyard.training.algorithm import Algorithm, Mean
from tiltyard.training.prepare import PairLabels, RefLogp
from tiltyard.training.rounds import Rounds
from tiltyard.training.select import by_scores, first_round, rejection, tournament
from tiltyard.types import Group


@dataclass(frozen=True)
class RejectThenRank:
    """Statistical rejection sampling of each prompt's candidates, then pairs among the accepted."""

    sampling: Literal["rso", "sft"]
    beta: float
    accepted: int
    key: Literal["index", "text"]
    ranking: Literal["first_round", "tournament"]

    def __call__(self, groups: list[Group], generator: torch.Generator) -> Sequence[Group]:
        # beta = inf accepts all: the SFT model's answers as they come
        beta = self.beta if self.sampling == "rso" else float("inf")
        kept = [g for g in rejection(groups, beta, self.accepted, generator, key=self.key) if len(g.responses) > 1]
        pair_up = first_round if self.ranking == "first_round" else tournament
        return pair_up(kept, by_scores, generator)


@method(
    "online",
    "prompts",
    frozen=("ref", "reward"),
    samples="per iteration",
    judged="per iteration",
    defaults={"lr": 1e-5, "batch": 32, "n": 64, "temperature": 0.7},
    tuned="Liu et al. 2023",
    formula="sigmoid_norm: -log sigmoid(gamma h);  hinge_norm: max(0, 1 - gamma h), h of log pi/ref; hinge: of log pi\n"
    "pairs among answers accepted with probability exp((r - highest left)/beta)",
    oracle="accepted answers follow pi0 exp(r/beta)/Z as n grows; with Bernoulli labels the "
    "fit is pi0 exp(r/gamma)/Z whatever the law of the pairs; hard labels have no finite optimum",
    paper="Liu et al. 2023 (RSO), algorithm 1",
    watch="Keep accepted at n/8 or below: accepting all says nothing. Equal texts are one under key=text, as in the "
    "paper's code. gamma, not beta, is the strength of the pull to the reference.",
)
def rso(
    source: Rounds,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.5,
    gamma: Annotated[float, Field(gt=0)] = 0.05,
    loss: Literal["sigmoid_norm", "hinge_norm", "hinge"] = "sigmoid_norm",
    accepted: Annotated[int, Field(ge=2)] = 8,
    ranking: Literal["first_round", "tournament"] = "first_round",
    sampling: Literal["rso", "sft"] = "rso",
    key: Literal["index", "text"] = "index",
) -> Algorithm:
    """Statistical rejection sampling optimisation: preference pairs as if drawn from the optimal policy, then a fit.

    The paper's three data choices: `direct` is the method dpo (beta = gamma) or slic on people's pairs; sft-sample-rank
    is sampling=sft; rso-sample-rank is sampling=rso.

    Args:
        source: `Rounds` over prompts; one round is the paper's.
        beta: temperature of the rejection sampling; 0 takes the best, large takes everything. [0.5: Liu et al. 2023]
        gamma: strength of the pull to the reference in the loss. [0.05: Liu et al. 2023]
        loss: `sigmoid_norm` (DPO's), `hinge_norm` (on log-ratios) or `hinge` (on log-probs, SLiC without its
            regulariser). [sigmoid_norm: Liu et al. 2023]
        accepted: answers kept of the n candidates of a prompt. [8: Liu et al. 2023]
        ranking: disjoint pairs, or a tournament. [first_round: Liu et al. 2023]
        sampling: `rso`, or `sft` which keeps the first answers as they come. [rso: Liu et al. 2023]
        key: candidates told apart by `index`, or by `text` as in the paper's code. [index: Tiltyard, the exact law]
    """
    if accepted > source.n:
        raise ConfigError(
            "more answers are to be accepted than sampled",
            where="rso.accepted",
            got=accepted,
            expected=f"n = {source.n} at most",
        )
    losses = {
        "sigmoid_norm": PairLoss(Logistic(gamma), "log_ratio", gamma),
        "hinge_norm": PairLoss(Hinge(1.0, gamma), "log_ratio", gamma),
        "hinge": PairLoss(Hinge(1.0, gamma), "logp", gamma),
    }
    return Algorithm(
        "rso",
        replace(source, select=RejectThenRank(sampling, beta, accepted, key, ranking)),
        losses[loss],
        prepare=(PairLabels("rso"), RefLogp()),
        reduce=Mean("kept_G"),
    )

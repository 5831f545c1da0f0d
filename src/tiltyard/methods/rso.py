"""RSO: pairs from (an estimate of) the optimal policy, by rejection sampling of the SFT model's responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from tiltyard.errors import ConfigError
from tiltyard.inputs import Policy, Prompts, Reference, Reward
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

    sample_from: Literal["rso", "sft"]
    beta: float
    accepted: int
    key: Literal["index", "text"]
    ranking: Literal["first_round", "tournament"]

    def __call__(self, groups: list[Group], generator: torch.Generator) -> Sequence[Group]:
        # beta = inf accepts all: the SFT model's responses as they come
        beta = self.beta if self.sample_from == "rso" else float("inf")
        several = [g for g in rejection(groups, beta, self.accepted, generator, key=self.key) if len(g.responses) > 1]
        pair_up = first_round if self.ranking == "first_round" else tournament
        return pair_up(several, by_scores, generator)


@method(
    "online",
    source=Prompts(every="round"),
    roles=(Policy(), Reference(), Reward()),
    defaults={"lr": 1e-5, "prompts_per_step": 32, "samples_per_prompt": 64, "temperature": 0.7},
    defaults_from="Liu et al. 2023",
    formula="sigmoid_norm: -log sigmoid(beta h);  hinge_norm: max(0, 1 - beta h), h of log pi/ref; hinge: of log "
    "pi\n"
    "pairs among responses accepted with probability exp((r - highest left)/rejection_beta)",
    oracle="accepted responses follow pi0 exp(r/rejection_beta)/Z as n grows; with Bernoulli labels the fit is pi0 "
    "exp(r/beta)/Z whatever the distribution of the pairs; hard labels have no finite optimum",
    paper="Liu et al. 2023 (RSO), algorithm 1",
    pitfalls="Keep accepted at n/8 or below: accepting all says nothing. Equal texts are one under key=text, as in "
    "the paper's code. beta (the paper's gamma) and not rejection_beta (its beta) is the pull to the reference.",
)
def rso(
    source: Rounds,
    *,
    rejection_beta: Annotated[float, Field(ge=0)] = 0.5,
    beta: Annotated[float, Field(gt=0)] = 0.05,
    loss: Literal["sigmoid_norm", "hinge_norm", "hinge"] = "sigmoid_norm",
    accepted: Annotated[int, Field(ge=2)] = 8,
    ranking: Literal["first_round", "tournament"] = "first_round",
    sample_from: Literal["rso", "sft"] = "rso",
    key: Literal["index", "text"] = "index",
) -> Algorithm:
    """Statistical rejection sampling optimisation: preference pairs as if drawn from the optimal policy, then a fit.

    The paper's three data choices: `direct` is the method dpo at the same beta or slic on people's pairs;
    sft-sample-rank is sample_from=sft; rso-sample-rank is sample_from=rso.

    Args:
        source: `Rounds` over prompts; one round is the paper's.
        rejection_beta: temperature of the rejection sampling (the paper's beta); 0 takes the best, large takes
            everything. [0.5: Liu et al. 2023]
        beta: strength of the pull to the reference in the loss (the paper's gamma). [0.05: Liu et al. 2023]
        loss: `sigmoid_norm` (DPO's), `hinge_norm` (on log-ratios) or `hinge` (on log-probs, SLiC without its
            regulariser). [sigmoid_norm: Liu et al. 2023]
        accepted: responses kept of the n candidates of a prompt. [8: Liu et al. 2023]
        ranking: disjoint pairs, or a tournament. [first_round: Liu et al. 2023]
        sample_from: `rso`, or `sft` which keeps the first responses as they come. [rso: Liu et al. 2023]
        key: candidates told apart by `index`, or by `text` as in the paper's code. [index: Tiltyard, the exact
            distribution]
    """
    if accepted > source.samples_per_prompt:
        raise ConfigError(
            "more responses are to be accepted than sampled",
            where="rso.accepted",
            got=accepted,
            expected=f"samples_per_prompt = {source.samples_per_prompt} at most",
        )
    losses = {
        "sigmoid_norm": PairLoss(Logistic(beta), "log_ratio", beta),
        "hinge_norm": PairLoss(Hinge(1.0, beta), "log_ratio", beta),
        "hinge": PairLoss(Hinge(1.0, beta), "logp", beta),
    }
    return Algorithm(
        "rso",
        replace(source, select=RejectThenRank(sample_from, rejection_beta, accepted, key, ranking)),
        losses[loss],
        prepare=(PairLabels("rso"), RefLogp()),
        reduce=Mean("kept_G"),
    )

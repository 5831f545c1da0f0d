"""Iterative DPO: rounds of sample, judge, best against worst, and DPO on the pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.losses.preference import Hinge, Logistic, MarginLoss, Squared
from tiltyard.methods.base import method
from tiltyard.methods.direct import PairLoss
from tiltyard.training.algorithm import Algorithm, Mean
from tiltyard.training.prepare import PairLabels, RefLogp
from tiltyard.training.rounds import Rounds, renew_ref
from tiltyard.training.select import best_worst

RefUpdate = Literal["fixed", "previous"]
Direct = Literal["dpo", "ipo", "hinge"]


def direct_loss(loss: Direct, beta: float) -> PairLoss:
    """DPO's, IPO's (summed log-ratios, tau = beta) or the reference-normalised hinge (margin 1/beta)."""
    losses: dict[Direct, MarginLoss] = {"dpo": Logistic(beta), "ipo": Squared(beta), "hinge": Hinge(1.0, beta)}
    return PairLoss(losses[loss], "log_ratio", beta)


@method(
    "online",
    source=Prompts(every="round"),
    roles=(Policy(), Reference(), Reward()),
    defaults={"lr": 5e-7, "prompts_per_step": 64, "samples_per_prompt": 4},
    defaults_from="DPO's reference code (lr); samples_per_prompt and temperature: Yuan et al. 2024",
    formula="-log sigmoid(beta h) on the best against the worst of n responses of the policy as the round began,\n"
    "h = log pi/ref(best) - log pi/ref(worst);  ref: the start (fixed) or the round's own beginning (previous)",
    oracle="with exact rounds and Bernoulli labels: ref fixed gives pi0 exp(r/beta)/Z in every round; ref previous "
    "gives pi0 exp(t r/beta) after t rounds and collapses onto the best response",
    paper="Xu et al. 2023 (Some things are more cringe than others); Yuan et al. 2024",
    pitfalls="With ref_update=previous the pull to the start is gone: KL to it grows with every round, and so does "
    "length where the judge likes length. Prompts whose responses all score alike are left out (tied_scores).",
)
def iterative_dpo(
    source: Rounds,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    loss: Direct = "dpo",
    ref_update: RefUpdate = "fixed",
) -> Algorithm:
    """Iterative DPO: each round the policy's own best and worst responses, by the reward model, become the pairs.

    Args:
        source: `Rounds` over prompts.
        beta: strength of the pull to the reference. [0.1: Rafailov et al. 2023]
        loss: `dpo`, `ipo` (tau = beta, summed) or `hinge` (RSO's hinge-norm, gamma = beta). [dpo: Xu et al. 2023]
        ref_update: `fixed` keeps the start as reference; `previous` takes the policy as each round begins.
            [fixed: Tiltyard, because the papers leave it open and only this has pi* as its optimum]
    """
    begin = (renew_ref,) if ref_update == "previous" else ()
    return Algorithm(
        "iterative_dpo",
        replace(source, select=best_worst, begin=begin),
        direct_loss(loss, beta),
        prepare=(PairLabels("iterative_dpo"), RefLogp()),
        reduce=Mean("kept_G"),
        mutable_models=("ref",) if begin else (),
    )

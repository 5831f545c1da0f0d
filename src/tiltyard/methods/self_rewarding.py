"""Self-rewarding language models: in each round the policy judges its own responses and trains on the verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.inputs import Policy, PolicyAsJudge, Prompts, Reference
from tiltyard.methods.base import method
from tiltyard.methods.iterative import direct_loss
from tiltyard.training.algorithm import Algorithm, Mean, Models
from tiltyard.training.prepare import PairLabels, RefLogp, sum_count
from tiltyard.training.rounds import Rounds, renew_ref
from tiltyard.training.select import best_worst


def pair_lengths(models: Models, batch: Batch, step: int) -> Metrics:  # noqa: ARG001 - a hook's arguments
    """Tokens of the preferred responses and of the others, and their difference: the judge's preference for length."""
    share_G2, count_G2 = batch["share_B"].view(-1, 2), batch.forest.count_B.double().view(-1, 2)
    sided_G = share_G2[:, 0] != share_G2[:, 1]
    first_G = (share_G2[:, 0] > share_G2[:, 1])[sided_G]
    one_G, two_G = count_G2[sided_G].unbind(1)
    chosen_G, rejected_G = torch.where(first_G, one_G, two_G), torch.where(first_G, two_G, one_G)
    return {
        "chosen_length": sum_count(chosen_G),
        "rejected_length": sum_count(rejected_G),
        "length_gap": sum_count(chosen_G - rejected_G),
    }


@method(
    "online",
    source=Prompts(every="round"),
    roles=(Policy(), Reference(renewed=True), PolicyAsJudge()),
    rests_on_labels=False,
    defaults={
        "lr": 1e-6,
        "prompts_per_step": 16,
        "samples_per_prompt": 4,
        "temperature": 0.7,
        "top_p": 0.9,
        "iterations": 2,
        "dropout": 0.1,
    },
    defaults_from="Yuan et al. 2024",
    formula="-log sigmoid(beta h) on the best against the worst of n own responses by the policy's own points,\n"
    "h = log pi/pi_t(best) - log pi/pi_t(worst);  pi_t: the policy as the round began, also judge and reference",
    oracle="with exact rounds and a judge whose verdicts are Bernoulli in r: pi0 exp(t r/beta) after t rounds, which "
    "collapses onto the judge's favourite; a judge that scores everything alike leaves nothing to learn from",
    paper="Yuan et al. 2024 (Self-Rewarding Language Models)",
    pitfalls="Nothing outside the model says whether its verdicts are right. Length is the known failure (1,092 to "
    "2,552 characters in three rounds of the paper): length_gap shows what the judge pays for it. A model must be "
    "able to judge first: teach it with judge_skill. Responses without a readable score are dropped.",
)
def self_rewarding(source: Rounds, *, beta: Annotated[float, Field(gt=0)] = 0.1) -> Algorithm:
    """Self-rewarding: each round the policy scores its own responses, and learns the best against the worst by DPO.

    Args:
        source: `Rounds` over prompts, whose scorer is the policy itself.
        beta: strength of the pull to the policy as the round began. [0.1: Yuan et al. 2024]
    """
    return Algorithm(
        "self_rewarding",
        replace(source, select=best_worst, begin=(renew_ref,)),
        direct_loss("dpo", beta),
        prepare=(PairLabels("self_rewarding"), RefLogp()),
        reduce=Mean("kept_G"),
        after=(pair_lengths,),
        mutable_models=("ref",),
    )

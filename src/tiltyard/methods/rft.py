"""Rejection-sampling fine-tuning: imitate the best of n responses, from the base model, over a growing pool."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.methods.base import method
from tiltyard.methods.sft import Nll
from tiltyard.training.algorithm import Algorithm
from tiltyard.training.rounds import Rounds, restart_from_ref
from tiltyard.training.select import best


@method(
    "online",
    source=Prompts(every="round"),
    roles=(Policy(), Reference(optional=True), Reward()),
    defaults={"lr": 2e-5, "prompts_per_step": 64, "samples_per_prompt": 8},
    defaults_from="Touvron et al. 2023, section 3.1 (lr, prompts_per_step); samples_per_prompt: Tiltyard",
    formula="-log pi(y*) a token,  y* = argmax of r over n responses of the policy as the round began",
    oracle="the distribution of best-of-n of the sampling policy; best-of-m of best-of-n is best-of-nm",
    paper="Touvron et al. 2023 (Llama 2), section 3.2.3",
    pitfalls="Learning from the last round alone forgets skills (the paper saw it): pool=all. What the reward model "
    "likes wrongly is imitated too: n is the dial of over-optimisation, log n - (n-1)/n nats a round.",
)
def rft(
    source: Rounds,
    *,
    pool: Literal["all", "last"] = "all",
    restart: bool = True,
) -> Algorithm:
    """Rejection-sampling fine-tuning: in each round SFT on the best of n responses to every prompt.

    Args:
        source: `Rounds` over prompts.
        pool: the best response so far of every prompt over all rounds, or of the last round alone.
            [all: Touvron et al. 2023, after V3]
        restart: each round trains the starting model anew, with the newest policy's responses.
            [true: Touvron et al. 2023]
    """
    begin = (restart_from_ref,) if restart else ()
    return Algorithm(
        "rft",
        replace(source, select=best, keep=pool, begin=begin),
        Nll(),
        reset_optimizer_every=source.every if restart else 0,
    )

"""Dr. GRPO: GRPO without its two divisors, so that neither length nor difficulty weighs a response."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.methods.base import method
from tiltyard.methods.grpo import grpo
from tiltyard.training.algorithm import Algorithm
from tiltyard.training.source import Online


@method(
    "rl",
    source=Prompts(),
    roles=(Policy(), Reference(optional=True), Reward()),
    defaults={
        "lr": 1e-6,
        "prompts_per_step": 128,
        "samples_per_prompt": 8,
        "steps": 200,
        "schedule": "constant",
        "save_every": 20,
    },
    defaults_from="lr, prompts_per_step, samples_per_prompt: Liu et al. 2025, released code; schedule, steps, "
    "save_every: Tiltyard, as in ppo",
    formula="A_i = R_i - mean R of the group\n"
    "L = sum over tokens of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)), divided by responses times max_tokens",
    oracle="its gradient is (n - 1) / n times the policy gradient of E[r], divided by max_tokens; without an anchor "
    "all mass ends on the best response",
    paper="Liu et al. 2025 (Understanding R1-Zero-like training)",
    pitfalls="Nothing ties the policy to the reference: a learnt reward is over-optimised. The step's size follows "
    "the scale of the rewards.",
)
def dr_grpo(
    source: Online,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.0,
    clip: Annotated[float, Field(gt=0)] = 0.2,
    ppo_epochs: Annotated[int, Field(gt=0)] = 1,
    minibatches: Annotated[int, Field(gt=0)] = 1,
) -> Algorithm:
    """Dr. GRPO: clipped policy gradients against the group's mean reward, unbiased by length and difficulty.

    It is `grpo` with beta=0, scale=none and aggregate=constant.

    Args:
        source: `Online` with samples_per_prompt >= 2; responses are sampled without truncation.
        beta: coefficient of the pull toward the reference. [0: Liu et al. 2025]
        clip: the ratio's range is 1 - clip to 1 + clip. [0.2: Liu et al. 2025]
        ppo_epochs: passes over each step's responses. [1: Liu et al. 2025]
        minibatches: optimiser steps a pass. [1: Liu et al. 2025]
    """
    algorithm = grpo(
        source,
        beta=beta,
        scale="none",
        aggregate="constant",
        clip_low=clip,
        clip_high=clip,
        ppo_epochs=ppo_epochs,
        minibatches=minibatches,
    )
    return replace(algorithm, name="dr_grpo")

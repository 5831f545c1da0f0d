"""DAPO: GRPO without a KL term, with a higher upper clip, dynamic sampling, and length punished softly."""

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
        "prompts_per_step": 512,
        "samples_per_prompt": 16,
        "steps": 200,
        "schedule": "constant",
        "warmup": 20,
        "weight_decay": 0.1,
        "save_every": 20,
    },
    defaults_from="lr, prompts_per_step, samples_per_prompt, warmup: Yu et al. 2025, section 4.1; weight_decay: Yu "
    "et al. 2025, released configuration; schedule, steps, save_every: Tiltyard, as in ppo",
    formula="A_i = (R_i - mean R of the group) / (its standard deviation + 0.0001), groups with equal rewards left "
    "out\n"
    "L = mean over all tokens of max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high))",
    oracle="rewards 0 and 1: it ascends 2 arcsin sqrt(p), p the chance of a 1; without an anchor all mass ends on "
    "the best response",
    paper="Yu et al. 2025 (DAPO)",
    pitfalls="Nothing ties the policy to the reference: a learnt reward is over-optimised. Dynamic sampling costs "
    "the prompts that it drops (dropped_groups).",
)
def dapo(
    source: Online,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.0,
    clip_low: Annotated[float, Field(gt=0)] = 0.2,
    clip_high: Annotated[float, Field(gt=0)] = 0.28,
    dynamic_sampling: Annotated[int, Field(ge=0)] = 8,
    overlong: Annotated[int, Field(ge=0)] | None = None,
    ppo_epochs: Annotated[int, Field(gt=0)] = 1,
    minibatches: Annotated[int, Field(gt=0)] = 1,
) -> Algorithm:
    """DAPO: clipped policy gradients averaged over tokens, on groups whose rewards differ.

    It is `grpo` with beta=0, aggregate=token, clip_high=0.28, dynamic sampling and a soft length penalty.

    Args:
        source: `Online` with samples_per_prompt >= 2; responses are sampled without truncation.
        beta: coefficient of the pull toward the reference. [0: Yu et al. 2025, section 2.3]
        clip_low: the ratio's lower bound is 1 - clip_low. [0.2: Yu et al. 2025]
        clip_high: its upper bound is 1 + clip_high. [0.28: Yu et al. 2025]
        dynamic_sampling: batches of prompts sampled at most to fill a step with groups whose scores differ; 0 keeps
            every group. [8: Tiltyard; the paper sets no limit]
        overlong: tokens before max_tokens over which the reward falls by up to 1; null: a fifth of max_tokens.
            [null: Yu et al. 2025, 4,096 of 20,480]
        ppo_epochs: passes over each step's responses. [1: Yu et al. 2025]
        minibatches: optimiser steps a pass. [1: Tiltyard; Yu et al. 2025 have 16]
    """
    soft = source.settings.max_tokens // 5 if overlong is None else overlong
    algorithm = grpo(
        source,
        beta=beta,
        aggregate="token",
        clip_low=clip_low,
        clip_high=clip_high,
        ppo_epochs=ppo_epochs,
        minibatches=minibatches,
        dynamic_sampling=dynamic_sampling,
        overlong=soft,
    )
    return replace(algorithm, name="dapo")

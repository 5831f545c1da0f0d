"""REINFORCE++: PPO's clipped loss without a critic, its advantages normalised over the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from tiltyard.batch.batch import Batch
from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.losses.advantages import MissingEos, gae_R, group_advantages_B
from tiltyard.losses.kl import FixedKL, sum_per_response
from tiltyard.methods.base import method
from tiltyard.methods.policy_gradient import (
    ClippedPolicy,
    old_logp,
    require_enough_prompts,
    require_several_samples,
    require_untruncated_sampling,
)
from tiltyard.training.algorithm import Algorithm, Models, Prepare
from tiltyard.training.prepare import (
    GroupAdvantages,
    ResponseRewards,
    TokenRewards,
    WhitenAdvantages,
    require_several_responses,
)
from tiltyard.training.source import Online


@dataclass(frozen=True)
class RewardsToGo:
    """`advantage_R`: the sum of the token rewards from this token on; no critic, no discount (methods 2.11)."""

    needs: ClassVar[tuple[str, ...]] = ("reward_R",)
    writes: ClassVar[tuple[str, ...]] = ("advantage_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, reward_R = batch.forest, batch["reward_R"]
        zero_R = torch.zeros_like(reward_R)
        advantage_R, _ = gae_R(reward_R, zero_R, forest.offset_B, forest.count_B, 1.0, 1.0)
        return batch.with_columns(advantage_R=advantage_R)


@dataclass(frozen=True)
class GroupBaseline:
    """`advantage_R` minus the mean over its group of the responses' whole rewards (REINFORCE++-baseline)."""

    needs: ClassVar[tuple[str, ...]] = ("reward_R", "advantage_R")
    writes: ClassVar[tuple[str, ...]] = ("advantage_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        require_several_responses(batch)
        forest = batch.forest
        reward_B = sum_per_response(batch["reward_R"], forest.response_R, forest.B).double()
        centred_B = group_advantages_B(reward_B, forest.group_B, "mean")
        baseline_R = (reward_B - centred_B)[forest.response_R]
        advantage_R = batch["advantage_R"]
        return batch.with_columns(advantage_R=advantage_R - baseline_R.to(advantage_R.dtype))


@method(
    "rl",
    source=Prompts(),
    roles=(Policy(), Reference(optional=True), Reward()),
    defaults={"lr": 1e-6, "prompts_per_step": 64, "steps": 200, "schedule": "constant", "save_every": 20},
    defaults_from="Tiltyard: lr as in rloo and grpo, prompts_per_step, schedule, steps and save_every as in ppo",
    formula="r_t = -beta (log pi_old - log ref)(y_t) + [t is the last] r(x, y);  A_t = sum of r_s, s >= t [- the "
    "group's mean reward], then mean 0 and variance 1 over all tokens of the step\n"
    "L = mean over tokens of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip))",
    oracle="PPO with V = 0, lam = 1 and whitening, number for number; pi* = ref exp(r / beta) / Z up to the "
    "whitening; at beta = 0 the same for r and a r + c, a > 0",
    paper="Hu et al. 2025 (REINFORCE++)",
    pitfalls="Normalising divides by a deviation that shrinks as the policy settles, so late noise is blown up. "
    "Needs large batches, since the batch is the baseline.",
)
def reinforce_pp(
    source: Online,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.01,
    group_baseline: bool = False,
    ppo_epochs: Annotated[int, Field(gt=0)] = 1,
    minibatches: Annotated[int, Field(gt=0)] = 1,
    clip: Annotated[float, Field(gt=0)] = 0.2,
    missing_eos: MissingEos = "subtract",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Clipped policy gradients without a critic: advantages are rewards-to-go, normalised over the batch.

    With beta = 0 the reference only shows the KL (`show_kl`).

    Args:
        source: `Online`; responses are sampled without truncation.
        beta: coefficient of the per-token log-ratio in the reward. [0.01: Tiltyard; the sheet of methods gives none]
        group_baseline: the mean reward of a prompt's responses is subtracted before the normalisation; needs n >= 2.
            [false: Hu et al. 2025; true is their baseline variant]
        ppo_epochs: passes over each step's rollouts. [1: Tiltyard; on-policy]
        minibatches: optimiser steps a pass. [1: Tiltyard; on-policy]
        clip: the ratio's range is 1 - clip to 1 + clip. [0.2: Schulman et al. 2017, table 1]
        missing_eos: what happens to the score of a response that was cut, see ppo. [subtract: Tiltyard; as in ppo]
        missing_eos_penalty: a size, >= 0. [1.0: Tiltyard; as in ppo]
    """
    require_untruncated_sampling(source, "reinforce_pp")
    require_enough_prompts(source, "reinforce_pp", minibatches)
    if group_baseline:
        require_several_samples(source, "reinforce_pp")
    temperature = source.settings.temperature
    if beta > 0:
        rewards: tuple[Prepare, ...] = (
            TokenRewards(FixedKL(beta), missing_eos, missing_eos_penalty),
            RewardsToGo(),
            *((GroupBaseline(),) if group_baseline else ()),
        )
    else:  # every token's reward to go is the score
        rewards = (
            ResponseRewards(0.0, missing_eos, missing_eos_penalty),
            GroupAdvantages("mean" if group_baseline else "none"),
        )
    return Algorithm(
        "reinforce_pp",
        source,
        ClippedPolicy(clip, clip),
        prepare=(old_logp(source, against_ref=beta > 0), *rewards, WhitenAdvantages()),
        epochs=ppo_epochs,
        minibatches=minibatches,
        temperature=temperature,
    )

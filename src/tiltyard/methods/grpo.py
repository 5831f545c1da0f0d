"""GRPO, which Dr. GRPO and DAPO are variants of: clipped policy gradients against the other responses of a group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tiltyard.batch.batch import Batch
from tiltyard.errors import ConfigError
from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.losses.advantages import MissingEos, overlong_B
from tiltyard.methods.base import method
from tiltyard.methods.policy_gradient import (
    Aggregate,
    ClippedPolicy,
    KlForm,
    aggregated,
    old_logp,
    require_enough_prompts,
    require_several_samples,
    require_untruncated_sampling,
)
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.prepare import AdvantageScale, GroupAdvantages, ResponseRewards, sum_count
from tiltyard.training.source import Online


@dataclass(frozen=True)
class Overlong:
    """`reward_B` lowered by DAPO's length penalty over the last `soft` of the `longest` tokens a response may have."""

    longest: int
    soft: int
    needs: ClassVar[tuple[str, ...]] = ("reward_B",)
    writes: ClassVar[tuple[str, ...]] = ("reward_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        extra_B = overlong_B(batch.forest.count_B, self.longest, self.soft)
        return batch.with_columns({"overlong": sum_count(extra_B)}, reward_B=batch["reward_B"] + extra_B)


@dataclass(frozen=True)
class EndedOnly:
    """`kept_B`, `kept_R`: 1 for responses that ended by themselves, 0 for truncated ones, which get no gradient."""

    needs: ClassVar[tuple[str, ...]] = ("stopped_B",)
    writes: ClassVar[tuple[str, ...]] = ("kept_B", "kept_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        kept_B = batch["stopped_B"].double()
        return batch.with_columns(kept_B=kept_B, kept_R=kept_B[batch.forest.response_R])


@method(
    "rl",
    source=Prompts(),
    roles=(Policy(), Reference(optional=True), Reward()),
    defaults={
        "lr": 1e-6,
        "prompts_per_step": 16,
        "samples_per_prompt": 8,
        "steps": 200,
        "schedule": "constant",
        "save_every": 20,
    },
    defaults_from="lr, prompts_per_step (1024 responses in groups of 64): Shao et al. 2024 (DeepSeekMath); "
    "samples_per_prompt: Liu et al. 2025, released code; schedule, steps, save_every: Tiltyard, as in ppo",
    formula="A_i = (R_i - mean R of the group) / (its standard deviation + scale_eps)\n"
    "L = mean over responses of the mean over tokens of max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)) + "
    "beta k3(pi, ref)",
    oracle="unscaled, many responses: with loss_k3 beta ref / (nu - r), nu such that it sums to 1; with reward_k1 pi*. "
    "Scaled, rewards 0 and 1, beta = 0: it ascends 2 arcsin sqrt(p), p the chance of a 1",
    paper="Shao et al. 2024 (DeepSeekMath); Liu et al. 2025 (Dr. GRPO); Yu et al. 2025 (DAPO)",
    pitfalls="The policy loss starts at 0 whatever it teaches. Groups whose responses all score alike teach nothing: "
    "look at tied_scores (dropped_groups under dynamic sampling). Dividing by the deviation favours prompts that are "
    "nearly always or nearly never solved.",
)
def grpo(
    source: Online,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.04,
    kl_form: KlForm = "loss_k3",
    scale: AdvantageScale = "group",
    scale_eps: Annotated[float, Field(ge=0)] = 1e-4,
    ddof: Literal[0, 1] = 1,
    aggregate: Aggregate = "sequence",
    clip_low: Annotated[float, Field(gt=0)] = 0.2,
    clip_high: Annotated[float, Field(gt=0)] = 0.2,
    ppo_epochs: Annotated[int, Field(gt=0)] = 1,
    minibatches: Annotated[int, Field(gt=0)] = 1,
    entropy: Annotated[float, Field(ge=0)] = 0.0,
    dynamic_sampling: Annotated[int, Field(ge=0)] = 0,
    overlong: Annotated[int, Field(ge=0)] = 0,
    mask_truncated: bool = False,
    missing_eos: MissingEos = "none",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Clipped policy gradients without a critic: a response's advantage is its reward against its group's.

    With beta = 0 the reference only shows the KL (`show_kl`). Dr. GRPO is beta=0 scale=none aggregate=constant. DAPO is
    beta=0 aggregate=token clip_high=0.28 dynamic_sampling=8 (draws; the paper sets no limit) and overlong = a fifth of
    max_tokens.

    Args:
        source: `Online` with samples_per_prompt >= 2; responses are sampled without truncation.
        beta: coefficient of the pull toward the reference. [0.04: Shao et al. 2024]
        kl_form: where the KL enters. `loss_k3`: as a loss its gradient is that of KL(ref || pi), the FORWARD one, at
            each prefix. `loss_k2`: that of KL(pi || ref) at each prefix, blind to what a token does to later ones.
            `reward_k1`: in the reward, the gradient of the responses' KL(pi || ref), divided by the deviation like the
            rest of it. After the first update of a step the losses are off-policy and no longer exact. [loss_k3: Shao
            et al. 2024]
        scale: divide advantages by the deviation of the group's rewards, of the batch's, or not. [group: Shao et al.
            2024]
        scale_eps: is added to the deviation. [0.0001: TRL]
        ddof: the deviation divides by n - ddof. [1: TRL; the paper does not say]
        aggregate: a mean over all tokens of the batch, over responses of the mean over their tokens, or the sum over
            tokens divided by responses times max_tokens. [sequence: Shao et al. 2024]
        clip_low: the ratio's lower bound is 1 - clip_low. [0.2: Yu et al. 2025]
        clip_high: its upper bound is 1 + clip_high. [0.2: Schulman et al. 2017; DAPO has 0.28]
        ppo_epochs: passes over each step's rollouts. [1: Shao et al. 2024]
        minibatches: optimiser steps a pass. [1: Shao et al. 2024; DeepSeek-R1 has 16]
        entropy: weight of an entropy bonus. [0: Shao et al. 2024]
        dynamic_sampling: groups whose scores are all equal are dropped and other prompts are drawn, a batch at a time,
            at most so often in all; 0 keeps every group. [0: Shao et al. 2024]
        overlong: tokens before max_tokens over which the reward falls by up to 1. [0: Shao et al. 2024; DAPO has a
            fifth]
        mask_truncated: truncated responses count in the baseline and get no gradient. [false: Shao et al. 2024]
        missing_eos: what happens to the score of a response that was cut, see ppo. [none: Shao et al. 2024]
        missing_eos_penalty: a size, >= 0. [1.0: Tiltyard; as in ppo]
    """
    require_untruncated_sampling(source, "grpo")
    require_enough_prompts(source, "grpo", minibatches)
    require_several_samples(source, "grpo")
    sampling = source.settings
    if overlong > sampling.max_tokens:
        raise ConfigError(
            "length is punished over more tokens than a response may have",
            where="grpo.overlong",
            got=overlong,
            expected=f"at most max_tokens = {sampling.max_tokens}",
        )
    clipped = ClippedPolicy(clip_low, clip_high, beta, kl_form, entropy)
    loss, reduce = aggregated(clipped, aggregate, sampling.max_tokens, mask_truncated)
    in_reward = beta if kl_form == "reward_k1" else 0.0
    prepare = (
        old_logp(source, against_ref=beta > 0),
        ResponseRewards(in_reward, missing_eos, missing_eos_penalty),
        *((Overlong(sampling.max_tokens, overlong),) if overlong else ()),
        GroupAdvantages("mean", scale, ddof, scale_eps),
        *((EndedOnly(),) if mask_truncated else ()),
    )
    return Algorithm(
        name="grpo",
        source=replace(source, tries=dynamic_sampling) if dynamic_sampling else source,
        loss=loss,
        prepare=prepare,
        reduce=reduce,
        epochs=ppo_epochs,
        minibatches=minibatches,
        temperature=sampling.temperature,
    )

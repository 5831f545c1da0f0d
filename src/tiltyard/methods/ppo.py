"""PPO with a token-level KL penalty in the reward: RLHF as InstructGPT and Ziegler et al. define it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError
from tiltyard.inputs import CORPUS, Policy, Prompts, Reference, Reward, Value
from tiltyard.losses.advantages import MissingEos, mean_var, moments, whiten
from tiltyard.losses.kl import kl_controller
from tiltyard.losses.policy import ppo_clip_R, value_clip_R
from tiltyard.methods.base import method
from tiltyard.methods.policy_gradient import (
    old_logp,
    require_enough_prompts,
    require_untruncated_sampling,
    weighted_R,
)
from tiltyard.methods.sft import Nll
from tiltyard.training.algorithm import Algorithm, AuxLoss, Forward, Item, Models, Source
from tiltyard.training.hooks import UpdateKL
from tiltyard.training.prepare import (
    Gae,
    TokenRewards,
    Values,
    WhitenAdvantages,
    sum_count,
)
from tiltyard.training.source import Online


@dataclass(frozen=True)
class ClippedPolicyAndValue:
    """max(-A ratio, -A clip(ratio)) + vf_coef * clipped value loss, on every response token."""

    clip: float
    value_clip: float
    vf_coef: float
    needs: ClassVar[tuple[str, ...]] = ("logp_R", "value_R", "old_logp_R", "advantage_R", "return_R", "old_value_R")
    item: ClassVar[Item] = "R"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        policy = ppo_clip_R(forward.logp_R, batch["old_logp_R"], batch["advantage_R"], self.clip)
        policy_R = weighted_R(policy.loss_R, batch)
        value_R = value_clip_R(forward.value_R, batch["old_value_R"], batch["return_R"], self.value_clip)
        metrics: Metrics = {
            "policy_loss": sum_count(policy_R.detach()),
            "value_loss": sum_count(value_R.detach()),
            "ratio": sum_count(policy.ratio_R),
            "clipped": sum_count(policy.clipped_R.double()),
        }
        return policy_R + self.vf_coef * value_R, metrics


@dataclass(frozen=True)
class WhitenRewards:
    """`reward_R` divided by its standard deviation over the step; the mean is kept (methods 2.4)."""

    needs: ClassVar[tuple[str, ...]] = ("reward_R",)
    writes: ClassVar[tuple[str, ...]] = ("reward_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        mean, var = mean_var(*processes.sum_all(torch.stack(moments(batch["reward_R"]))))
        return batch.with_columns(reward_R=whiten(batch["reward_R"], mean, var, shift_mean=False))


@method(
    "rl",
    source=Prompts(),
    roles=(Policy(), Value(), Reference(optional=True), Reward()),
    aux_data=CORPUS,
    defaults={"lr": 1e-5, "prompts_per_step": 64, "steps": 200, "schedule": "constant", "save_every": 20},
    defaults_from="lr (as run), prompts_per_step: Ziegler et al. 2019, reference code; schedule, steps: Touvron et "
    "al. 2023 (Llama 2); save_every: Tiltyard, steps are long",
    formula="r_t = -beta (log pi_old - log ref)(y_t) + [t is the last] r(x, y);  A, G = GAE(r_t, V_old)\n"
    "L = mean over tokens of max(-A ratio, -A clip(ratio, 1 - clip, 1 + clip)) + vf_coef/2 max((V - G)^2, (V' - "
    "G)^2), V' = V kept within value_clip of V_old",
    oracle="pi* = ref exp(r / beta) / Z: there r - beta log(pi / ref) is the same for every response. With ptx and a "
    "corpus of distribution D over the same responses, r - beta log(pi / ref) + ptx D / pi is.",
    paper="Schulman et al. 2017; Ziegler et al. 2019; Ouyang et al. 2022",
    pitfalls="Reward that rises while responses get worse (look at samples), KL running away, texts that never end.",
)
def ppo(
    source: Online,
    corpus: Source | None = None,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.05,
    kl_target: Annotated[float, Field(gt=0)] | None = None,
    kl_horizon: Annotated[float, Field(gt=0)] = 10_000,
    ppo_epochs: Annotated[int, Field(gt=0)] = 4,
    minibatches: Annotated[int, Field(gt=0)] = 1,
    clip: Annotated[float, Field(gt=0)] = 0.2,
    value_clip: Annotated[float, Field(gt=0)] = 0.2,
    vf_coef: Annotated[float, Field(ge=0)] = 0.1,
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0,
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95,
    missing_eos: MissingEos = "subtract",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
    whiten_advantages: bool = True,
    whiten_rewards: bool = False,
    ptx: Annotated[float, Field(ge=0)] = 0.0,
) -> Algorithm:
    """Maximises E[r] - beta * KL(pi || ref) by clipped policy gradients with a learned value baseline.

    Its exact optimum is pi* = ref * exp(r / beta) / Z. With ptx above 0 it is PPO-ptx: every update adds ptx times the
    gradient of the mean log-likelihood of pretraining texts, against forgetting.

    Args:
        source: `Online`; responses are sampled without truncation (no top-p, no top-k), so that log-probs are its own.
        corpus: `Offline` over texts, for ptx.
        beta: coefficient of the per-token log-ratio in the reward; the first value if kl_target is set.
            [0.05: Tiltyard; papers use 0.005 to 0.2]
        kl_target: nats a response; adapts beta toward it (Ziegler et al. 2019). None keeps beta fixed.
            [null: Tiltyard; the optimum stays known]
        kl_horizon: responses over which an adaptive beta may change by a factor of about 1.2.
            [10000: Ziegler et al. 2019, reference code]
        ppo_epochs: passes over each step's rollouts. [4: Ziegler et al. 2019, reference code]
        minibatches: optimiser steps a pass. [1: Ziegler et al. 2019, reference code]
        clip: the ratio's range is 1 - clip to 1 + clip. [0.2: Schulman et al. 2017, table 1]
        value_clip: how far a value may change from its old estimate within a step.
            [0.2: Ziegler et al. 2019, reference code]
        vf_coef: weight of the value loss. [0.1: Ziegler et al. 2019, reference code]
        gamma: discount a token. [1.0: Ziegler et al. 2019, reference code]
        lam: GAE's lambda. [0.95: Ziegler et al. 2019, reference code]
        missing_eos: what happens to the score of a response that was cut: replace it by the negative penalty,
            subtract the penalty, subtract it times the standard deviation of the scores of the step (spread: the same
            on the scale of every reward), or none. [subtract: TRL's missing_eos_penalty]
        missing_eos_penalty: a size, >= 0; under spread in standard deviations. A size of many of them is all that is
            learnt, which the first step says. [1.0: commands of TRL's documentation; docs/lab.md has measurements]
        whiten_advantages: mean 0 and variance 1 over the step's tokens.
            [true: Ziegler et al. 2019, reference code, over a minibatch]
        whiten_rewards: divide token rewards by their standard deviation, keeping the mean.
            [false: Tiltyard; beta keeps its meaning]
        ptx: weight of the texts' negative log-likelihood, a mean over tokens. InstructGPT's 27.8 belongs to the sums
            and means of its own code; choose by ptx_grad_ratio, the term's gradient norm over PPO's own.
            [0: Tiltyard; plain PPO]
    """
    temperature = source.settings.temperature
    require_untruncated_sampling(source, "ppo")
    require_enough_prompts(source, "ppo", minibatches)
    if ptx > 0 and corpus is None:
        raise ConfigError(
            "the pretraining term has no texts",
            where="ppo.corpus",
            got=f"ptx={ptx:g} without a corpus",
            expected="texts of the kind that the model was pretrained on",
            fix="set corpus=FILE, or ptx=0 for plain PPO",
        )
    controller = kl_controller(beta, kl_target, kl_horizon)
    prepare = (
        old_logp(source, against_ref=beta > 0),
        Values(),
        TokenRewards(controller, missing_eos, missing_eos_penalty),
        *((WhitenRewards(),) if whiten_rewards else ()),
        Gae(gamma, lam),
        *((WhitenAdvantages(),) if whiten_advantages else ()),
    )
    return Algorithm(
        name="ppo",
        source=source,
        loss=ClippedPolicyAndValue(clip, value_clip, vf_coef),
        trains=("policy", "value"),
        prepare=prepare,
        epochs=ppo_epochs,
        minibatches=minibatches,
        after=(UpdateKL(controller),) if beta > 0 else (),
        aux_losses=(AuxLoss("ptx", corpus, Nll(), ptx),) if corpus is not None and ptx > 0 else (),
        temperature=temperature,
    )

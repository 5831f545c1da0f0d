"""REINFORCE with a learned value baseline, the reward being one number a response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from tiltyard.batch.batch import Batch
from tiltyard.errors import ConfigError
from tiltyard.inputs import Policy, Prompts, Reference, Reward, Value
from tiltyard.losses.advantages import MissingEos
from tiltyard.methods.base import method
from tiltyard.methods.policy_gradient import (
    ActorCritic,
    old_logp,
    require_fresh_responses,
    require_untruncated_sampling,
)
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.prepare import ResponseRewards, Values
from tiltyard.training.prepare.advantages import value_metrics
from tiltyard.training.source import Online


@dataclass(frozen=True)
class ResponseReturns:
    """`return_R`: the whole response's reward at each of its tokens; `advantage_R`: that minus the value estimate."""

    needs: ClassVar[tuple[str, ...]] = ("reward_B", "old_value_R")
    writes: ClassVar[tuple[str, ...]] = ("advantage_R", "return_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        value_R = batch["old_value_R"]
        return_R = batch["reward_B"][batch.forest.response_R].to(value_R.dtype)
        metrics = value_metrics(value_R, return_R)
        return batch.with_columns(metrics, advantage_R=return_R - value_R, return_R=return_R)


@method(
    "rl",
    source=Prompts(),
    roles=(Policy(), Value(), Reference(optional=True), Reward()),
    defaults={"lr": 1e-5, "prompts_per_step": 128, "steps": 200, "schedule": "constant", "save_every": 20},
    defaults_from="lr, prompts_per_step: Lee et al. 2023 (RLAIF); schedule, steps, save_every: Tiltyard, as in ppo",
    formula="R = r(x, y) - beta log pi(y)/ref(y), or with mix_kl: (1 - beta) r - beta log pi(y)/ref(y)\n"
    "L = mean over tokens of -(R - V_t) log pi(y_t) + value_coef (V_t - R)^2, with R - V_t held constant in the "
    "first term",
    oracle="pi* = ref exp(r / beta) / Z; with mix_kl the coefficient is beta / (1 - beta): 0.05263 for 0.05",
    paper="Williams 1992; Lee et al. 2023 (RLAIF), appendix on modified REINFORCE",
    pitfalls="The KL of tokens that are already written is part of every token's return: the same mean gradient as "
    "a2c, with more variance in long responses.",
)
def reinforce(
    source: Online,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.05,
    mix_kl: bool = False,
    value_coef: Annotated[float, Field(ge=0)] = 1.0,
    missing_eos: MissingEos = "subtract",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Maximises E[r] - beta * KL(pi || ref): every token earns its whole response's reward less the value.

    Args:
        source: `Online`; responses are sampled without truncation.
        beta: coefficient of the response's summed log-ratio in its reward. [0.05: Lee et al. 2023]
        mix_kl: RLAIF's objective (1 - beta) E[r] - beta KL; beta is then below 1. [false: Tiltyard; beta means the
            same as in other methods]
        value_coef: weight of the squared value error. [1.0: Lee et al. 2023; two losses are simply added]
        missing_eos: what happens to the score of a response that was cut, see ppo. [subtract: Tiltyard; as in ppo]
        missing_eos_penalty: a size, >= 0. [1.0: Tiltyard; as in ppo]
    """
    require_untruncated_sampling(source, "reinforce")
    require_fresh_responses(source, "reinforce", unless_weighted=True)
    if mix_kl and beta >= 1:
        raise ConfigError(
            "a mixed objective gives the reward the weight 1 - beta",
            where="reinforce.beta",
            got=beta,
            expected="below 1",
            fix="set mix_kl=false to keep this beta",
        )
    temperature = source.settings.temperature
    return Algorithm(
        "reinforce",
        source,
        ActorCritic(value_coef),
        trains=("policy", "value"),
        prepare=(
            old_logp(source, against_ref=beta > 0),
            Values(),
            ResponseRewards(beta, missing_eos, missing_eos_penalty, score_weight=1 - beta if mix_kl else 1.0),
            ResponseReturns(),
        ),
        temperature=temperature,
    )

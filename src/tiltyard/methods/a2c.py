"""A2C: one plain policy-gradient step a batch, with a learned value baseline."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tiltyard.inputs import Policy, Prompts, Reference, Reward, Value
from tiltyard.losses.advantages import MissingEos
from tiltyard.losses.kl import FixedKL
from tiltyard.methods.base import method
from tiltyard.methods.policy_gradient import (
    ActorCritic,
    old_logp,
    require_fresh_responses,
    require_untruncated_sampling,
)
from tiltyard.training.algorithm import Algorithm
from tiltyard.training.prepare import Gae, TokenRewards, Values
from tiltyard.training.source import Online


@method(
    "rl",
    source=Prompts(),
    roles=(Policy(), Value(), Reference(optional=True), Reward()),
    defaults={"lr": 1e-5, "prompts_per_step": 64, "steps": 200, "schedule": "constant", "save_every": 20},
    defaults_from="Tiltyard: as in ppo (the papers of the family give no rates)",
    formula="r_t = -beta (log pi - log ref)(y_t) + [t is the last] r(x, y);  G_t = sum of r_s, s >= t\n"
    "L = mean over tokens of -(G - V) log pi(y_t) + value_coef (V - G)^2 - entropy H, with G - V held constant in "
    "the first term",
    oracle="pi* = ref exp(r / beta) / Z where entropy = 0; its gradient is that of PPO's first update with lam = 1",
    paper="Mnih et al. 2016; for language models Menick et al. 2022 (GopherCite)",
    pitfalls="One update a batch of responses: slower than PPO for each. Advantages are not whitened, so lr depends "
    "on the scale of the rewards.",
)
def a2c(
    source: Online,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.05,
    value_coef: Annotated[float, Field(ge=0)] = 0.05,
    entropy: Annotated[float, Field(ge=0)] = 0.0,
    missing_eos: MissingEos = "subtract",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Maximises E[r] - beta * KL(pi || ref) by one policy-gradient step a batch: no ratio, no clip.

    Args:
        source: `Online`; responses are sampled without truncation.
        beta: coefficient of the per-token log-ratio in the reward. [0.05: Tiltyard; as in ppo]
        value_coef: weight of the squared value error. [0.05: Tiltyard; ppo's 0.1 times the half in its value loss]
        entropy: weight of the entropy bonus. With it the optimum is no longer pi*. [0: Tiltyard; pi* stays the optimum]
        missing_eos: what happens to the score of a response that was cut, see ppo. [subtract: Tiltyard; as in ppo]
        missing_eos_penalty: a size, >= 0. [1.0: Tiltyard; as in ppo]
    """
    require_untruncated_sampling(source, "a2c")
    require_fresh_responses(source, "a2c", unless_weighted=True)
    temperature = source.settings.temperature
    return Algorithm(
        "a2c",
        source,
        ActorCritic(value_coef, entropy),
        trains=("policy", "value"),
        prepare=(
            old_logp(source, against_ref=beta > 0),
            Values(),
            TokenRewards(FixedKL(beta), missing_eos, missing_eos_penalty),
            Gae(1.0, 1.0),
        ),
        temperature=temperature,
    )

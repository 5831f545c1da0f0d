"""DPG: distributional policy gradient, the forward KL to a target, on the policy's own responses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.methods.base import method
from tiltyard.methods.distribution import DEFAULTS, DEFAULTS_FROM, CutRule, MatchingAdvantages, TargetRatios
from tiltyard.methods.policy_gradient import (
    require_fresh_responses,
    require_several_samples,
    require_untruncated_sampling,
)
from tiltyard.methods.rloo import Reinforce
from tiltyard.training.algorithm import Algorithm
from tiltyard.training.prepare import OldLogp, ResponseRewards
from tiltyard.training.source import Online


@method(
    "distribution",
    source=Prompts(),
    roles=(Policy(), Reference(), Reward()),
    defaults=DEFAULTS,
    defaults_from=DEFAULTS_FROM,
    formula="w_i = ref(y_i) exp(r(x, y_i) / beta) / pi(y_i), divided by its mean over the prompt's responses, Z(x)\n"
    "L = mean over responses of -(w_i - 1) log pi(y_i), w held constant: the gradient of KL(p || pi)",
    oracle="p = ref exp(r / beta) / Z; there every w_i is 1 and the gradient is 0 for any n >= 2",
    paper="Parshakova et al. 2019; Korbak et al. 2022 (On RL and distribution matching); per-prompt Z: Korbak et al. "
    "2022 (CDPG)",
    pitfalls="A small beta makes few responses carry all the weight (ess near 1): it learns from them alone. What the "
    "policy never writes has no weight, however much the target likes it: kl_dpg or a larger beta.",
)
def dpg(
    source: Online,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    baseline: bool = True,
    missing_eos: CutRule = "subtract",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Minimises KL(p || pi) to the target p = ref * exp(r / beta) / Z: what the target likes is covered, all of it.

    The target is the optimum of E[r] - beta * KL(pi || ref), so beta means what it means in ppo and rloo; they descend
    the other KL to it. Z is each prompt's own, the mean weight of its responses.

    Args:
        source: `Online` with samples_per_prompt >= 2; responses are sampled without truncation.
        beta: temperature of the target. [0.1: Tiltyard; the scale of the reward decides]
        baseline: subtract 1, the mean weight, from each weight. [true: Korbak et al. 2022, less variance near p]
        missing_eos: what happens to the score of a response that was cut, see ppo. [subtract: Tiltyard; as in ppo]
        missing_eos_penalty: a size, >= 0. [1.0: Tiltyard; as in ppo]
    """
    require_untruncated_sampling(source, "dpg")
    require_fresh_responses(source, "dpg")
    require_several_samples(source, "dpg")
    temperature = source.settings.temperature
    return Algorithm(
        "dpg",
        source,
        Reinforce(),
        prepare=(
            OldLogp(temperature, against_ref=True),
            ResponseRewards(0.0, missing_eos, missing_eos_penalty),
            TargetRatios(beta),
            MatchingAdvantages(baseline),
        ),
        temperature=temperature,
    )

"""f-DPG: any f-divergence to a target, by policy gradients with a pseudo-reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.losses.divergence import Divergence
from tiltyard.methods.base import method
from tiltyard.methods.distribution import DEFAULTS, DEFAULTS_FROM, CutRule, DivergenceAdvantages, TargetRatios
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
    formula="l_i = r(x, y_i) / beta + log ref(y_i) - log pi(y_i) - log Z(x);  R_i = -f'(pi/p): exp(l) forward_kl, l "
    "reverse_kl, sign(l)/2 tv, log(1 + exp(l)) js\n"
    "A_i = R_i - mean of the other responses' R;  L = mean over responses of -A_i log pi(y_i), A held constant",
    oracle="p = ref exp(r / beta) / Z for every divergence; with reverse_kl the gradient is rloo's over beta",
    paper="Go et al. 2023 (f-DPG)",
    pitfalls="All but reverse_kl need Z, which is estimated from the prompt's own responses: samples_per_prompt=8 or "
    "more. tv has a gradient of one size wherever it is, so near the target it wants a falling rate.",
)
def f_dpg(
    source: Online,
    *,
    divergence: Divergence = "js",
    beta: Annotated[float, Field(gt=0)] = 0.1,
    baseline: Literal["leave_one_out", "none"] = "leave_one_out",
    missing_eos: CutRule = "subtract",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Minimises an f-divergence to the target p = ref * exp(r / beta) / Z, by a policy gradient on -f'(pi/p).

    Args:
        source: `Online` with samples_per_prompt >= 2; responses are sampled without truncation.
        divergence: `forward_kl` KL(p || pi), covers all that the target likes; `reverse_kl` KL(pi || p), which rloo and
            ppo descend; `tv`, total variation; `js`, Jensen-Shannon, between the first two. [js: Go et al. 2023, best
            over their tasks]
        beta: temperature of the target. [0.1: Tiltyard; the scale of the reward decides]
        baseline: the mean pseudo-reward of the prompt's other responses, or none. [leave_one_out: Tiltyard; the paper's
            is a running mean over all prompts]
        missing_eos: what happens to the score of a response that was cut, see ppo. [subtract: Tiltyard; as in ppo]
        missing_eos_penalty: a size, >= 0. [1.0: Tiltyard; as in ppo]
    """
    require_untruncated_sampling(source, "f_dpg")
    require_fresh_responses(source, "f_dpg")
    require_several_samples(source, "f_dpg")
    temperature = source.settings.temperature
    return Algorithm(
        "f_dpg",
        source,
        Reinforce(),
        prepare=(
            OldLogp(temperature, against_ref=True),
            ResponseRewards(0.0, missing_eos, missing_eos_penalty),
            TargetRatios(beta),
            DivergenceAdvantages(divergence, baseline),
        ),
        temperature=temperature,
    )

"""RLOO: REINFORCE on whole responses, each measured against the mean of the prompt's other responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.losses.advantages import MissingEos
from tiltyard.losses.kl import sum_per_response
from tiltyard.losses.policy import policy_gradient
from tiltyard.methods.base import method
from tiltyard.methods.policy_gradient import (
    old_logp,
    require_fresh_responses,
    require_several_samples,
    require_untruncated_sampling,
    weighted_R,
)
from tiltyard.training.algorithm import Algorithm, Forward, Item
from tiltyard.training.prepare import GroupAdvantages, ResponseRewards, sum_count
from tiltyard.training.source import Online


@dataclass(frozen=True)
class Reinforce:
    """-A log pi(y) of every whole response, A a constant; log pi(y) is the sum over its tokens."""

    needs: ClassVar[tuple[str, ...]] = ("logp_R", "advantage_B")
    item: ClassVar[Item] = "B"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        logp_B = forward.logp_B
        if "sampler_weight_R" in batch.columns:
            logp_B = sum_per_response(weighted_R(forward.logp_R, batch), batch.forest.response_R, batch.forest.B)
        loss_B = policy_gradient(logp_B, batch["advantage_B"])
        return loss_B, {
            "policy_loss": sum_count(loss_B.detach()),
            "advantage_size": sum_count(batch["advantage_B"].abs()),
        }


@method(
    "rl",
    source=Prompts(),
    roles=(Policy(), Reference(optional=True), Reward()),
    defaults={
        "lr": 1e-6,
        "prompts_per_step": 32,
        "samples_per_prompt": 4,
        "steps": 200,
        "schedule": "constant",
        "save_every": 20,
    },
    defaults_from="lr, samples_per_prompt: Ahmadian et al. 2024 as TRL's documentation quotes them "
    "(samples_per_prompt: 2 and 4); prompts_per_step: Tiltyard (theirs is 512 responses); schedule, steps, save_every: "
    "Tiltyard, as in ppo",
    formula="R_i = r(x, y_i) - beta log pi(y_i)/ref(y_i);  A_i = R_i - mean of the other responses' R\n"
    "L = mean over responses of -A_i log pi(y_i), summed over tokens, A held constant",
    oracle="pi* = ref exp(r / beta) / Z; the gradient is exactly unbiased for any n >= 2, the advantages of a prompt "
    "add up to 0",
    paper="Kool et al. 2019; Ahmadian et al. 2024 (Back to Basics)",
    pitfalls="Log-probs are summed over tokens, so long responses have larger gradients. Two responses alone give a "
    "noisy baseline.",
)
def rloo(
    source: Online,
    *,
    beta: Annotated[float, Field(ge=0)] = 0.03,
    missing_eos: MissingEos = "subtract",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Maximises E[r] - beta * KL(pi || ref) without a critic: the baseline is the mean of the prompt's other responses.

    One update a batch of responses, so that the gradient stays unbiased. With beta = 0 the reference only shows the KL
    (`show_kl`).

    Args:
        source: `Online` with samples_per_prompt >= 2; responses are sampled without truncation.
        beta: coefficient of the response's summed log-ratio in its reward. [0.03: Ahmadian et al. 2024, TRL's
            documentation]
        missing_eos: what happens to the score of a response that was cut, see ppo. [subtract: Tiltyard; as in ppo]
        missing_eos_penalty: a size, >= 0. [1.0: Tiltyard; as in ppo]
    """
    require_untruncated_sampling(source, "rloo")
    require_fresh_responses(source, "rloo", unless_weighted=True)
    require_several_samples(source, "rloo")
    temperature = source.settings.temperature
    return Algorithm(
        "rloo",
        source,
        Reinforce(),
        prepare=(
            old_logp(source, against_ref=beta > 0),
            ResponseRewards(beta, missing_eos, missing_eos_penalty),
            GroupAdvantages("leave_one_out"),
        ),
        temperature=temperature,
    )

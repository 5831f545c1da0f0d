"""Shared by the methods that match a target distribution: ratios of target and policy, and their advantages.

The target is p = ref exp(reward / beta) / Z(x). Z(x) is the mean weight p/q of the prompt's own responses, so at pi = p
all weights are equal, the advantages are exactly 0 and p is the fixed point with any number of responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.losses.advantages import Baseline, group_advantages_B
from tiltyard.losses.divergence import Divergence, group_log_mean_exp, group_mean, group_size, pseudo_reward_B
from tiltyard.losses.kl import sum_per_response
from tiltyard.training.algorithm import Models
from tiltyard.training.prepare import sum_count

CutRule = Literal["replace", "subtract", "none"]  # of a response that was cut: `spread` would move the target
DEFAULTS = {
    "lr": 1.41e-5,
    "prompts_per_step": 32,
    "samples_per_prompt": 8,
    "steps": 200,
    "schedule": "constant",
    "save_every": 20,
}
DEFAULTS_FROM = (
    "lr, schedule: Khalifa et al. 2021 and Go et al. 2023, released code; prompts_per_step, samples_per_prompt: "
    "Tiltyard (theirs are 1024 responses a step); steps, save_every: Tiltyard, as in ppo"
)


@dataclass(frozen=True)
class TargetRatios:
    """`log_weight_B`, log p/q, and `log_ratio_B`, log p/pi, of each response; p is the target, q what was sampled from.

    q is the policy, or with `proposed` the model of `proposed_logp_R`. Z(x) is estimated from the prompt's own
    responses. Metrics, means over prompts, in nats: `log_z`; `gap`, KL(pi || p); `kl_from_target`, KL(p || pi); and
    `ess`, the effective number of a prompt's responses. With few responses log Z, and the gap with it, comes out low:
    `tiltyard gap` measures it properly.
    """

    beta: float = 1.0
    proposed: bool = False
    writes: ClassVar[tuple[str, ...]] = ("log_weight_B", "log_ratio_B")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reward_B", "kl_B", "old_logp_R", *(("proposed_logp_R",) if self.proposed else ()))

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest = batch.forest
        groups = forest.group_B, forest.G
        kl_B = batch["kl_B"].double()
        log_ratio_B = batch["reward_B"].double() / self.beta - kl_B
        log_weight_B = log_ratio_B
        if self.proposed:
            behind_R = batch["old_logp_R"].double() - batch["proposed_logp_R"].double()
            log_weight_B = log_ratio_B + sum_per_response(behind_R, forest.response_R, forest.B)
        log_z_G = group_log_mean_exp(log_weight_B, *groups)
        log_z_B = log_z_G[forest.group_B]
        log_weight_B, log_ratio_B = log_weight_B - log_z_B, log_ratio_B - log_z_B
        weight_B = log_weight_B.exp()
        own_B = _policy_weight_B(log_weight_B - log_ratio_B, *groups)
        metrics: Metrics = {
            "log_z": sum_count(log_z_G),
            "gap": sum_count(group_mean(-own_B * log_ratio_B, *groups)),
            "kl_from_target": sum_count(group_mean(weight_B * log_ratio_B, *groups)),
            "ess": sum_count(group_size(*groups) / group_mean(weight_B**2, *groups)),
        }
        if self.proposed:
            metrics["kl"] = sum_count(group_mean(own_B * kl_B, *groups))
        return batch.with_columns(metrics, log_weight_B=log_weight_B, log_ratio_B=log_ratio_B)


def _policy_weight_B(log_x_B: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """pi/q of each response, of mean 1 in each group; exactly 1 where the policy was sampled from."""
    return (log_x_B - group_log_mean_exp(log_x_B, group_B, groups)[group_B]).exp()


@dataclass(frozen=True)
class MatchingAdvantages:
    """`advantage_B`: p/q - pi/q, each of mean 1 over the prompt's responses (Korbak et al. 2022, section 3.3).

    It estimates E_p grad log pi - E_pi grad log pi, whose second term is 0: the baseline lowers the variance and leaves
    the mean. On the policy's own responses it is p/pi - 1; without the baseline p/q.
    """

    baseline: bool = True
    needs: ClassVar[tuple[str, ...]] = ("log_weight_B", "log_ratio_B")
    writes: ClassVar[tuple[str, ...]] = ("advantage_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, log_weight_B = batch.forest, batch["log_weight_B"]
        advantage_B = log_weight_B.exp()
        if self.baseline:
            behind_B = log_weight_B - batch["log_ratio_B"]
            advantage_B = advantage_B - _policy_weight_B(behind_B, forest.group_B, forest.G)
        return batch.with_columns(advantage_B=advantage_B)


@dataclass(frozen=True)
class DivergenceAdvantages:
    """`advantage_B`: the pseudo-reward -f'(pi/p) of each response against that of the prompt's others.

    `baseline`: the mean of the others (`leave_one_out`), or none.
    """

    divergence: Divergence
    baseline: Baseline = "leave_one_out"
    needs: ClassVar[tuple[str, ...]] = ("log_ratio_B",)
    writes: ClassVar[tuple[str, ...]] = ("advantage_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        reward_B = pseudo_reward_B(batch["log_ratio_B"], self.divergence)
        return batch.with_columns(advantage_B=group_advantages_B(reward_B, batch.forest.group_B, self.baseline))

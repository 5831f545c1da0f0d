"""KL-adaptive DPG: the forward KL to a target, on responses of a proposal that the policy may replace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.inputs import Policy, Prompts, Proposal, Reference, Reward
from tiltyard.losses.divergence import group_mean
from tiltyard.methods.base import method
from tiltyard.methods.distribution import DEFAULTS, DEFAULTS_FROM, CutRule, MatchingAdvantages, TargetRatios
from tiltyard.methods.policy_gradient import (
    require_fresh_responses,
    require_several_samples,
    require_untruncated_sampling,
)
from tiltyard.methods.rloo import Reinforce
from tiltyard.models.adapters import copy_weights_
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.prepare import OldLogp, ResponseRewards, per_microbatch
from tiltyard.training.source import Online

Measure = Literal["kl", "tv"]


@dataclass(frozen=True)
class ProposedLogp:
    """`proposed_logp_R`: log-probs under the proposal, as its sampler recorded them, else from a forward pass."""

    temperature: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("proposed_logp_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:
        if "sampled_logp_R" in batch.columns:
            return batch.with_columns(proposed_logp_R=batch["sampled_logp_R"])
        proposal = models["proposal"]
        logp_R = per_microbatch(
            batch, lambda part: proposal.logp_R(part.forest, temperature=self.temperature)[0], proposal
        )
        return batch.with_columns(proposed_logp_R=logp_R)


@dataclass
class AdaptProposal:
    """Copies the policy into the proposal where it is nearer to the target, decided every `every` steps.

    What is estimated is D(p || pi) - D(p || q) of each prompt, from the same responses; in the KL Z cancels. The policy
    replaces the proposal if the mean over the steps' prompts is below 0 by its standard error, so noise does not.
    Metrics: `nearer`, the mean gain of the last decision in the unit of the divergence; `proposals`, how often it was
    replaced.
    """

    every: int
    measure: Measure = "kl"
    replaced: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of the differences: sum, of squares, count
    needs: ClassVar[tuple[str, ...]] = ("log_weight_B", "log_ratio_B")

    def __call__(self, models: Models, batch: Batch, step: int) -> Metrics:
        difference_G = self.difference_G(batch)
        found = torch.stack([difference_G.sum(), (difference_G**2).sum(), difference_G.new_tensor(batch.forest.G)])
        self.sums = [a + b for a, b in zip(self.sums, processes.sum_all(found).tolist(), strict=True)]
        metrics: Metrics = {}
        if (step + 1) % self.every == 0:
            total, squares, count = self.sums
            mean = total / max(count, 1)
            variance = max(squares / max(count, 1) - mean**2, 0.0) / max(count - 1, 1)
            if mean + math.sqrt(variance) < 0:
                copy_weights_(models["proposal"], models["policy"])
                self.replaced += 1
            self.sums = [0.0, 0.0, 0.0]
            metrics["nearer"] = (-mean, 1.0)
        return {**metrics, "proposals": (float(self.replaced), 1.0)}

    def difference_G(self, batch: Batch) -> Tensor:
        """D(p || pi) - D(p || q) of each prompt, [G]."""
        groups = batch.forest.group_B, batch.forest.G
        log_weight_B, log_ratio_B = batch["log_weight_B"], batch["log_ratio_B"]
        weight_B = log_weight_B.exp()
        if self.measure == "kl":
            return group_mean(weight_B * (log_ratio_B - log_weight_B), *groups)
        own_B = (log_weight_B - log_ratio_B).exp()  # pi/q
        return group_mean((weight_B - own_B).abs() - (weight_B - 1).abs(), *groups) / 2

    def state_dict(self) -> dict[str, list[float]]:
        return {"sums": self.sums, "replaced": [float(self.replaced)]}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.sums, self.replaced = list(state["sums"]), int(state["replaced"][0])


@method(
    "distribution",
    source=Prompts(),
    roles=(Policy(), Proposal(), Reference(), Reward()),
    defaults=DEFAULTS,
    defaults_from=DEFAULTS_FROM,
    formula="y ~ q;  w_i = ref(y_i) exp(r / beta) / q(y_i), u_i = pi(y_i) / q(y_i), each divided by its mean over the "
    "prompt's responses\n"
    "L = mean over responses of -(w_i - u_i) log pi(y_i);  q becomes pi where D(p || pi) < D(p || q)",
    oracle="p = ref exp(r / beta) / Z; D(p || q) never rises",
    paper="Khalifa et al. 2021 (KL-adaptive DPG, algorithm 1); baseline: Korbak et al. 2022; per-prompt Z: Korbak et "
    "al. 2022 (CDPG)",
    pitfalls="A proposal that stays far behind the policy makes u_i heavy-tailed: look at ess and proposals. Sampled "
    "figures (score, length) are the proposal's; kl and kl_exact are the policy's, weighted or on the proposal's "
    "prefixes.",
)
def kl_dpg(
    source: Online,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    adapt_every: Annotated[int, Field(gt=0)] = 16,
    adapt_by: Measure = "kl",
    baseline: bool = True,
    missing_eos: CutRule = "subtract",
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Minimises KL(p || pi) to p = ref * exp(r / beta) / Z on responses of a proposal that only ever comes nearer to p.

    Args:
        source: `Online` with samples_per_prompt >= 2; responses are sampled without truncation.
        beta: temperature of the target. [0.1: Tiltyard; the scale of the reward decides]
        adapt_every: steps between two decisions about the proposal. [16: Khalifa et al. 2021, released code]
        adapt_by: the divergence that decides: `kl`, or `tv`, which single heavy weights move less. [kl: Khalifa et al.
            2021]
        baseline: subtract pi/q from each weight p/q. [true: Korbak et al. 2022, less variance near p]
        missing_eos: what happens to the score of a response that was cut, see ppo. [subtract: Tiltyard; as in ppo]
        missing_eos_penalty: a size, >= 0. [1.0: Tiltyard; as in ppo]
    """
    require_untruncated_sampling(source, "kl_dpg")
    require_fresh_responses(source, "kl_dpg")
    require_several_samples(source, "kl_dpg")
    temperature = source.settings.temperature
    return Algorithm(
        "kl_dpg",
        replace(source, sample_from="proposal"),
        Reinforce(),
        prepare=(
            OldLogp(temperature, against_ref=True, on_policy=False),
            ProposedLogp(temperature),
            ResponseRewards(0.0, missing_eos, missing_eos_penalty),
            TargetRatios(beta, proposed=True),
            MatchingAdvantages(baseline),
        ),
        after=(AdaptProposal(adapt_every, adapt_by),),
        mutable_models=("proposal",),
        temperature=temperature,
    )

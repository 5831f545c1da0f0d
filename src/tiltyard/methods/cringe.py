"""Pairwise cringe: likelihood for the better response, a contrast token by token for the worse, gated by the margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.losses.kl import sum_per_response
from tiltyard.methods.base import method
from tiltyard.methods.direct import pair_metrics
from tiltyard.training.algorithm import Algorithm, Forward, Item, Mean, Models, Need
from tiltyard.training.prepare import PairLabels, sum_count
from tiltyard.training.prepare.columns import concatenated
from tiltyard.training.rounds import Rounds
from tiltyard.training.select import best_worst
from tiltyard.training.source import generator


@dataclass(frozen=True)
class NegativeLogps:
    """`logp_R`, and `negative_logp_R`: log-probs of a negative token at the position of each response token.

    The negative is drawn by `uniform_R` from the softmax over the `top_k` most likely tokens other than the response's.
    Both columns come from one pass of the policy.
    """

    top_k: int
    role: ClassVar[str] = "policy"
    needs: ClassVar[tuple[str, ...]] = ("uniform_R",)
    writes: ClassVar[tuple[str, ...]] = ("logp_R", "negative_logp_R")

    def __call__(self, forward: Forward) -> Mapping[str, Tensor]:
        batch, policy = forward.batch, forward.models["policy"]
        logp_R, negative_R = policy.logp_and_negative_R(batch.forest, self.top_k, batch["uniform_R"])
        return {"logp_R": logp_R, "negative_logp_R": negative_R}


@dataclass(frozen=True)
class PairwiseCringe:
    """gate * (-log pi(y+) a token + alpha * mean over y-'s tokens of softplus(s[y-_t] - s*)), s* a sampled negative."""

    alpha: float
    top_k: int
    gate_margin: float
    gate_temperature: float
    detach_gate: bool
    detach_negative: bool
    item: ClassVar[Item] = "G"

    @property
    def needs(self) -> tuple[Need, ...]:
        return (NegativeLogps(self.top_k), "share_B", "kept_G")

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        forest, logp_R, logp_B = batch.forest, forward.logp_R, forward.logp_B
        share_B = batch["share_B"].to(logp_R.dtype)
        negative_R = forward["negative_logp_R"]
        # the normaliser cancels: log p(label) - log p(negative) is the difference of their logits
        contrast_R = softplus(logp_R - (negative_R.detach() if self.detach_negative else negative_R))
        contrast_B = sum_per_response(contrast_R, forest.response_R, forest.B) / forest.count_B
        nll_B = -logp_B / forest.count_B
        loss_G = (share_B * nll_B + self.alpha * (1 - share_B) * contrast_B).view(-1, 2).sum(1)
        margin_G = ((2 * share_B - 1) * logp_B).view(-1, 2).sum(1)
        gate_G = ((self.gate_margin - margin_G) / self.gate_temperature).sigmoid()
        metrics = pair_metrics(logp_B.detach(), logp_B.detach(), batch)
        metrics |= {"gate": sum_count(gate_G.detach()), "contrast": sum_count(contrast_R.detach())}
        return (gate_G.detach() if self.detach_gate else gate_G) * loss_G, metrics


@dataclass(frozen=True)
class TokenUniforms:
    """`uniform_R`: a uniform number for each response token, from (seed, policy version, group's index in the step)."""

    seed: int = 0
    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("uniform_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:
        forest = batch.forest
        tokens = torch.bincount(forest.group_B, weights=forest.count_B.double(), minlength=forest.G).long().tolist()
        parts = []
        for index, count in zip(batch.index, tokens, strict=True):
            stream = generator(self.seed, 8, models.version, index)
            parts.append(torch.rand(count, generator=stream, dtype=torch.float64))
        return batch.with_columns(uniform_R=concatenated(parts).to(forest.device))


@method(
    "online",
    source=Prompts(every="round"),
    roles=(Policy(), Reference(optional=True), Reward()),
    defaults={"lr": 1e-5, "prompts_per_step": 64, "samples_per_prompt": 4},
    defaults_from="Tiltyard (the paper's values could not be checked)",
    formula="sigmoid((b - M)/tau) * (-log pi(y+)/|y+| + alpha * mean_t softplus(s[y-_t] - s*_t)),\n"
    "M = log pi(y+) - log pi(y-),  s* drawn from the softmax over the k best negatives of the token y-_t",
    oracle="two-token vocabulary: unlikelihood -log(1 - pi(y-_t)) for any k; tau -> 0 is the hard gate 1[M < b]; b "
    "-> inf is binary cringe",
    paper="Xu et al. 2023 (Some things are more cringe than others); Adolphs et al. 2022 (binary cringe)",
    pitfalls="No pull to a reference: the gate is the only brake. Its margin is in summed log-probs, so it closes "
    "early on long responses.",
)
def cringe(
    source: Rounds,
    *,
    alpha: Annotated[float, Field(ge=0)] = 1.0,
    negatives: Annotated[int, Field(gt=0)] = 5,
    gate_margin: float = 0.0,
    gate_temperature: Annotated[float, Field(gt=0)] = 10.0,
    detach_gate: bool = True,
    detach_negative: bool = False,
) -> Algorithm:
    """Pairwise cringe optimisation: binary cringe on the best and the worst response while their margin is small.

    Args:
        source: `Rounds` over prompts.
        alpha: weight of the contrast against the worse response. [1: Adolphs et al. 2022, code]
        negatives: the k most likely other tokens from which a negative is drawn. [5: Tiltyard; the code's default is 1]
        gate_margin: b; the gate is half open where the margin M equals it. [0: Tiltyard, unverified]
        gate_temperature: tau of the gate. [10: Tiltyard, unverified]
        detach_gate: no gradient through the gate. [true: Tiltyard, unverified]
        detach_negative: no gradient through the negative's logit. [false: Adolphs et al. 2022, code]
    """
    return Algorithm(
        "cringe",
        replace(source, select=best_worst),
        PairwiseCringe(alpha, negatives, gate_margin, gate_temperature, detach_gate, detach_negative),
        prepare=(PairLabels("cringe"), TokenUniforms(source.seed)),
        reduce=Mean("kept_G"),
    )

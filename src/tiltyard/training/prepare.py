"""Prepare steps: columns computed once a step, without gradient, before the updates.

Each declares what it reads (`needs`) and what it adds (`writes`); `Algorithm` checks the chain when it is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tiltyard.errors import ConfigError
from tiltyard.losses.advantages import MissingEos, gae_R, mean_var, missing_eos_B, moments, token_rewards_R, whiten
from tiltyard.losses.kl import KLController, k1, k3, sum_per_response
from tiltyard.models import parallel
from tiltyard.training.algorithm import Models
from tiltyard.training.batch import Batch, Metrics
from tiltyard.training.source import generator


@torch.no_grad()
def by_micro(batch: Batch, column: Callable[[Batch], Tensor]) -> Tensor:
    """A column computed micro-batch by micro-batch, so memory is bounded by the batch's token budget."""
    return _cat([column(part) for part in batch.micro()])


def _cat(parts: list[Tensor]) -> Tensor:
    """Joined; of nothing (a process without groups in this step): empty."""
    return torch.cat(parts) if parts else torch.zeros(0)


def total(x: Tensor) -> tuple[float, float]:
    """(sum, count) of a metric."""
    return float(x.sum()), float(x.numel())


@dataclass
class OldLogp:
    """`old_logp_R`: the policy's own log-probs before its updates, and the gap to what the sampler recorded."""

    temperature: float = 1.0
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("old_logp_R", "old_entropy_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:
        both = []

        def column(part: Batch) -> Tensor:
            logp_R, entropy_R = models.get("policy").logp_R(part.forest, temperature=self.temperature, entropy=True)
            both.append(entropy_R)
            return logp_R

        old_R = by_micro(batch, column)
        entropy_R = _cat(both)
        metrics: Metrics = {"entropy": total(entropy_R)}
        if "sampled_logp_R" in batch.columns:
            metrics["sampler_gap"] = total((old_R - batch["sampled_logp_R"]).abs())
        return batch.with_columns(metrics, old_logp_R=old_R, old_entropy_R=entropy_R)


@dataclass
class RefLogp:
    """`ref_logp_R`: the frozen reference's log-probs, from `models.ref_cache` where there is one."""

    temperature: float = 1.0
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("ref_logp_R",)
    reads_ref: bool = True

    def __call__(self, models: Models, batch: Batch) -> Batch:
        if models.ref_cache is not None and self.temperature == 1.0:
            return batch.with_columns(ref_logp_R=models.ref_cache.logp_R(batch.groups).to(batch.forest.device))
        ref = models.get("ref")
        ref_R = by_micro(batch, lambda part: ref.logp_R(part.forest, temperature=self.temperature)[0])
        return batch.with_columns(ref_logp_R=ref_R)


@dataclass
class SamplerGap:
    """How far the policy's own log-probs are from those that its sampler recorded; nothing is written.

    At the temperature of sampling and before the update the two laws are one, so the gap is rounding alone.
    """

    temperature: float = 1.0
    needs: tuple[str, ...] = ("sampled_logp_R",)
    writes: tuple[str, ...] = ()

    def __call__(self, models: Models, batch: Batch) -> Batch:
        policy = models.get("policy")
        own_R = by_micro(batch, lambda part: policy.logp_R(part.forest, temperature=self.temperature)[0])
        return batch.with_columns({"sampler_gap": total((own_R - batch["sampled_logp_R"]).abs())})


@dataclass
class TokenDraws:
    """`draw_R`: one uniform number a response token, from (seed, the policy's version, the group's place) alone."""

    seed: int = 0
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("draw_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:
        forest = batch.forest
        tokens = torch.bincount(forest.group_B, weights=forest.count_B.double(), minlength=forest.G).long().tolist()
        parts = []
        for place, count in zip(batch.index, tokens, strict=True):
            stream = generator(self.seed, 8, models.version, place)
            parts.append(torch.rand(count, generator=stream, dtype=torch.float64))
        return batch.with_columns(draw_R=_cat(parts).to(forest.device))


@dataclass
class Values:
    """`old_value_R`: the value model's estimate before each token, before its updates."""

    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("old_value_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:
        value = models.get("value")
        return batch.with_columns(old_value_R=by_micro(batch, lambda part: value.value_R(part.forest)))


@dataclass
class TokenRewards:
    """`reward_R`: -beta * log-ratio on every token and the score on the last (methods 2.1, 2.6).

    A response that did not end by itself has its score replaced by `-penalty` (`replace`), lowered by it (`subtract`)
    or left alone (`none`).
    """

    kl: KLController
    missing_eos: MissingEos = "subtract"
    penalty: float = 1.0
    needs: tuple[str, ...] = ("old_logp_R", "ref_logp_R", "score_B", "stopped_B")
    writes: tuple[str, ...] = ("reward_R", "kl_B")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, old_R, ref_R = batch.forest, batch["old_logp_R"], batch["ref_logp_R"]
        score_B = missing_eos_B(batch["score_B"], batch["stopped_B"] > 0, self.missing_eos, self.penalty)
        reward_R = token_rewards_R(old_R, ref_R, score_B, forest.offset_B + forest.count_B - 1, self.kl.beta)
        kl_B = sum_per_response(k1(old_R, ref_R), forest.response_R, forest.B)
        k3_B = sum_per_response(k3(old_R, ref_R), forest.response_R, forest.B)
        metrics: Metrics = {
            "kl": total(kl_B),
            "kl_k3": total(k3_B),
            "score": total(batch["score_B"]),
            "score_after_rule": total(score_B),
            "length": total(forest.count_B.double()),
            "truncated": total(1 - batch["stopped_B"]),
        }
        return batch.with_columns(metrics, reward_R=reward_R, kl_B=kl_B)


@dataclass
class Gae:
    """`advantage_R`, `return_R` by generalised advantage estimation."""

    gamma: float = 1.0
    lam: float = 0.95
    needs: tuple[str, ...] = ("reward_R", "old_value_R")
    writes: tuple[str, ...] = ("advantage_R", "return_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, value_R, return_args = batch.forest, batch["old_value_R"], (self.gamma, self.lam)
        start_B, count_B = forest.offset_B, forest.count_B
        advantage_R, return_R = gae_R(batch["reward_R"], value_R, start_B, count_B, *return_args)
        # 1 - Var(return - value) / Var(return): how much of the return the value model foresaw
        metrics: Metrics = {"value": total(value_R), "return": total(return_R)}
        metrics["value_error"] = total((return_R - value_R) ** 2)
        return batch.with_columns(metrics, advantage_R=advantage_R, return_R=return_R)


@dataclass
class WhitenAdvantages:
    """`advantage_R` with mean 0 and variance 1 over all tokens of the step, on all processes together."""

    needs: tuple[str, ...] = ("advantage_R",)
    writes: tuple[str, ...] = ("advantage_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        mean, var = mean_var(*parallel.sum_all(torch.stack(moments(batch["advantage_R"]))))
        return batch.with_columns(advantage_R=whiten(batch["advantage_R"], mean, var))


@dataclass
class WhitenRewards:
    """`reward_R` divided by its standard deviation over the step; the mean is kept (methods 2.4)."""

    needs: tuple[str, ...] = ("reward_R",)
    writes: tuple[str, ...] = ("reward_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        mean, var = mean_var(*parallel.sum_all(torch.stack(moments(batch["reward_R"]))))
        return batch.with_columns(reward_R=whiten(batch["reward_R"], mean, var, shift_mean=False))


@dataclass
class UpdateKL:
    """After a step: moves the KL coefficient by the mean over responses of the summed log-ratio (methods 2.3)."""

    kl: KLController
    needs: tuple[str, ...] = ("kl_B",)

    def __call__(self, models: Models, batch: Batch, step: int) -> Metrics:  # noqa: ARG002
        kl_B = batch["kl_B"].double()
        sums = torch.stack([kl_B.sum(), kl_B.new_tensor(float(batch.forest.B))])
        kl_sum, n = parallel.sum_all(sums).tolist()
        used = self.kl.beta
        self.kl.update(kl_sum / max(n, 1), int(n))
        return {"beta": (used, 1.0)}

    def state_dict(self) -> dict[str, float]:
        return dict(self.kl.state_dict())

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.kl.load_state_dict(state)


@dataclass
class RenewRef:
    """After every `every` steps: the reference becomes the policy as it is then (SPIN's opponent, iterative DPO)."""

    every: int

    def __call__(self, models: Models, batch: Batch, step: int) -> Metrics:  # noqa: ARG002
        if (step + 1) % self.every == 0:
            models.get("ref").module.load_state_dict(models.get("policy").module.state_dict())
        return {"iteration": (float(step // self.every + 1), 1.0)}


def kl_controller(kl: float, target: float | None, horizon: float) -> KLController:
    """A fixed coefficient, or an adaptive one when a target (nats per answer) is given."""
    from tiltyard.losses.kl import AdaptiveKL, FixedKL

    if target is None:
        return FixedKL(kl)
    if kl <= 0:
        raise ConfigError("an adaptive KL coefficient must start above 0", where="kl", got=kl, fix="set kl=0.1")
    return AdaptiveKL(kl, target, horizon)

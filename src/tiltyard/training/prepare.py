"""Prepare steps: columns computed once a step, without gradient, before the updates.

Each declares what it reads (`needs`) and what it adds (`writes`); `Algorithm` checks the chain when it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.batch.compare import Compared, compared
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError
from tiltyard.losses.advantages import MissingEos, gae_R, mean_var, missing_eos_B, moments, token_rewards_R, whiten
from tiltyard.losses.kl import KLController, k1, k3, sum_per_response
from tiltyard.models.adapters import take_over
from tiltyard.models.language import LanguageModel
from tiltyard.training.algorithm import Models
from tiltyard.training.source import generator


@torch.no_grad()
def by_micro(batch: Batch, column: Callable[[Batch], Tensor]) -> Tensor:
    """A column computed micro-batch by micro-batch, so memory is bounded by the batch's token budget."""
    return _cat([column(part) for part in batch.micro()])


@torch.no_grad()
def _columns(batch: Batch, says: Callable[[Batch], Sequence[Tensor]], count: int) -> list[Tensor]:
    """The same for `count` columns that are computed together."""
    parts = [says(part) for part in batch.micro()]
    return [_cat([part[i] for part in parts]) for i in range(count)]


def _read(
    models: Models, batch: Batch, says: Callable[..., Sequence[Tensor]], count: int
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """(`count` columns that `says` makes of the policy's states, what a value head on the same states says).

    States that the sampler has kept are not computed again.
    """
    kept, joint = "sampled_hidden_R" in batch.columns, models.joint()
    if not kept and not joint:
        return _columns(batch, lambda part: says(part.forest), count), {}
    policy = models.get("policy")

    def both(part: Batch) -> Sequence[Tensor]:
        hidden_R = part["sampled_hidden_R"] if kept else policy.hidden_R(part.forest)
        said = says(part.forest, hidden_R=hidden_R)
        return (*said, models.get("value").value_R(part.forest, hidden_R)) if joint else said

    columns = _columns(batch, both, count + joint)
    return columns[:count], {"old_value_R": columns[count]} if joint else {}


def _cat(parts: list[Tensor]) -> Tensor:
    """Joined; of nothing (a process without groups in this step): empty."""
    return torch.cat(parts) if parts else torch.zeros(0)


def total(x: Tensor) -> tuple[float, float]:
    """(sum, count) of a metric."""
    return float(x.sum()), float(x.numel())


@dataclass
class OldLogp:
    """What the policy says of the answers before its updates, and how far it is from the reference.

    The sampler's word is taken for the log-probs, and for the states behind them where it kept them: it computed both
    with the very weights that are trained. `sampler_gap` says how far a forward pass of the trainer is from that word
    (rounding, or something is wrong); where none is made here, the first one of the updates is taken (`fit`).

    Columns: `old_logp_R`, `old_entropy_R`; with `against_ref` also `ref_logp_R` and `kl_B`, the summed k1; where a
    value head reads the policy's own states also `old_value_R`, from the same pass. Shown: `entropy` a token,
    `sampler_gap`, and where there is a reference, wanted for a column or not, the KL to it in nats an answer: `kl` and
    `kl_k3` from the drawn tokens, `kl_exact` summed over the vocabulary at every prefix. All three have the expectation
    KL(pi || ref); the exact one varies less than the log-ratios.

    Args:
        temperature: of both laws, the one that was sampled from.
        against_ref: whether a later step reads the reference.
        ref_temperature: of `ref_logp_R` alone, where the loss has another one; None: the same.
        drawn: whether the answers come from this policy's whole law at `temperature`. Otherwise the gap and what is
            estimated from drawn tokens would mean something else and are not shown.
    """

    temperature: float = 1.0
    against_ref: bool = False
    ref_temperature: float | None = None
    drawn: bool = True
    needs: tuple[str, ...] = ()

    @property
    def reads_ref(self) -> bool:
        return self.against_ref

    @property
    def writes(self) -> tuple[str, ...]:
        return ("old_logp_R", "old_entropy_R", *(("ref_logp_R", "kl_B") if self.against_ref else ()))

    def __call__(self, models: Models, batch: Batch) -> Batch:
        if self.ref_temperature not in (None, self.temperature):
            batch = batch.without("sampled_hidden_R")  # the loss has another law: no pass of its own would show the gap
        if self.against_ref or models.ref is not None:
            return self._against(models.get("ref"), models, batch)
        says = partial(models.get("policy").logp_R, temperature=self.temperature, entropy=True)
        (old_R, entropy_R), values = _read(models, batch, says, 2)
        metrics, old = self._own(batch, old_R, entropy_R)
        return batch.without("sampled_hidden_R").with_columns(metrics, **old, **values)

    def _against(self, ref: LanguageModel, models: Models, batch: Batch) -> Batch:
        forest = batch.forest
        at = self.temperature, self.ref_temperature
        says = partial(compared, models.get("policy"), ref, temperature=at[0], ref_temperature=at[1])
        columns, values = _read(models, batch, says, 5)
        both = Compared(*columns)
        per_answer = partial(sum_per_response, response_R=forest.response_R, responses=forest.B)
        metrics, old = self._own(batch, both.logp_R, both.entropy_R)
        kl_B = per_answer(k1(old["old_logp_R"], both.ref_logp_R))
        metrics |= {"kl_exact": total(per_answer(both.kl_R))}
        if self.drawn:
            ratios = both.logp_R, both.ref_logp_R
            metrics |= {"kl": total(per_answer(k1(*ratios))), "kl_k3": total(per_answer(k3(*ratios)))}
        own = batch.without("sampled_hidden_R")
        return own.with_columns(metrics, **old, **values, ref_logp_R=both.ref_at_R, kl_B=kl_B)

    def _own(self, batch: Batch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Metrics, dict[str, Tensor]]:
        """What is shown of the policy alone, and its columns; `logp_R` is what it says now."""
        metrics: Metrics = {"entropy": total(entropy_R)}
        columns = {"old_logp_R": logp_R, "old_entropy_R": entropy_R}
        if self.drawn and "sampled_logp_R" in batch.columns:
            columns["old_logp_R"] = batch["sampled_logp_R"].to(logp_R.dtype)
            if "sampled_hidden_R" in batch.columns:
                columns["sampler_logp_R"] = columns["old_logp_R"]  # no forward pass has been made: the loop will look
            else:
                metrics["sampler_gap"] = total((logp_R - batch["sampled_logp_R"]).abs())
        return metrics, columns


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
class TokenUniforms:
    """`uniform_R`: one uniform number a response token, from (seed, the policy's version, the group's place) alone."""

    seed: int = 0
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("uniform_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:
        forest = batch.forest
        tokens = torch.bincount(forest.group_B, weights=forest.count_B.double(), minlength=forest.G).long().tolist()
        parts = []
        for place, count in zip(batch.index, tokens, strict=True):
            stream = generator(self.seed, 8, models.version, place)
            parts.append(torch.rand(count, generator=stream, dtype=torch.float64))
        return batch.with_columns(uniform_R=_cat(parts).to(forest.device))


@dataclass
class Values:
    """`old_value_R`: the value model's estimate before each token, before its updates; unless a pass has told."""

    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("old_value_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:
        if "old_value_R" in batch.columns:
            return batch
        value = models.get("value")
        return batch.with_columns(old_value_R=by_micro(batch, lambda part: value.value_R(part.forest)))


@dataclass
class TokenRewards:
    """`reward_R`: -beta * log-ratio on every token and the score on the last (methods 2.1, 2.6).

    A response that did not end by itself has its score replaced by `-penalty` (`replace`), lowered by it (`subtract`)
    or left alone (`none`). Without a KL coefficient no reference is read.
    """

    kl: KLController
    missing_eos: MissingEos = "subtract"
    penalty: float = 1.0
    writes: tuple[str, ...] = ("reward_R",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("old_logp_R", *(("ref_logp_R",) if self.kl.beta > 0 else ()), "score_B", "stopped_B")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest, old_R = batch.forest, batch["old_logp_R"]
        ref_R = batch["ref_logp_R"] if self.kl.beta > 0 else old_R
        score_B = missing_eos_B(batch["score_B"], batch["stopped_B"] > 0, self.missing_eos, self.penalty)
        reward_R = token_rewards_R(old_R, ref_R, score_B, forest.offset_B + forest.count_B - 1, self.kl.beta)
        return batch.with_columns(answer_metrics(batch, score_B), reward_R=reward_R)


def answer_metrics(batch: Batch, score_B: Tensor) -> Metrics:
    """Score before and after the missing-EOS rule, length, share of answers that were cut."""
    return {
        "score": total(batch["score_B"]),
        "score_after_rule": total(score_B),
        "length": total(batch.forest.count_B.double()),
        "truncated": total(1 - batch["stopped_B"]),
    }


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
        mean, var = mean_var(*processes.sum_all(torch.stack(moments(batch["advantage_R"]))))
        return batch.with_columns(advantage_R=whiten(batch["advantage_R"], mean, var))


@dataclass
class WhitenRewards:
    """`reward_R` divided by its standard deviation over the step; the mean is kept (methods 2.4)."""

    needs: tuple[str, ...] = ("reward_R",)
    writes: tuple[str, ...] = ("reward_R",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        mean, var = mean_var(*processes.sum_all(torch.stack(moments(batch["reward_R"]))))
        return batch.with_columns(reward_R=whiten(batch["reward_R"], mean, var, shift_mean=False))


@dataclass
class UpdateKL:
    """After a step: moves the KL coefficient by the mean over responses of the summed log-ratio (methods 2.3)."""

    kl: KLController
    needs: tuple[str, ...] = ("kl_B",)

    def __call__(self, models: Models, batch: Batch, step: int) -> Metrics:  # noqa: ARG002
        kl_B = batch["kl_B"].double()
        sums = torch.stack([kl_B.sum(), kl_B.new_tensor(float(batch.forest.B))])
        kl_sum, n = processes.sum_all(sums).tolist()
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
            take_over(models.get("ref"), models.get("policy"))
        return {"iteration": (float(step // self.every + 1), 1.0)}


def kl_controller(kl: float, target: float | None, horizon: float) -> KLController:
    """A fixed coefficient, or an adaptive one when a target (nats per answer) is given."""
    from tiltyard.losses.kl import AdaptiveKL, FixedKL

    if target is None:
        return FixedKL(kl)
    if kl <= 0:
        raise ConfigError("an adaptive KL coefficient must start above 0", where="kl", got=kl, fix="set kl=0.1")
    return AdaptiveKL(kl, target, horizon)

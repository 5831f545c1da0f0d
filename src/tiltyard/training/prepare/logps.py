"""Log-probs before the updates: the policy's, the reference's, and the KL between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.batch.compare import RefComparison, compare_with_ref
from tiltyard.losses.kl import k1, k3, sum_per_response
from tiltyard.models.language import LanguageModel
from tiltyard.training.algorithm import Forward, Models
from tiltyard.training.prepare.columns import per_microbatch, policy_columns, sum_count
from tiltyard.training.prepare.mismatch import Correction, mismatch


@dataclass(frozen=True)
class OldLogp:
    """The policy's log-probs and entropy before its updates, and its KL to the reference.

    For responses of this policy, the sampler's own log-probs are used, and its hidden states where it kept them: it
    computed both with the weights that are trained. With a `correction` the log-probs are those of the forward pass,
    and `sampler_weight_R` has the importance weights between them and the sampler's. `mismatch` tells how far the two
    lie apart (rounding, a defect, or another program); where no pass is made here, the first update's is measured.

    Columns: `old_logp_R`, `old_entropy_R`; with `against_ref` also `ref_logp_R` and `kl_B`, the summed k1; where a
    value head reads the policy's hidden states also `old_value_R`, from the same pass. Metrics: `entropy` a token,
    those of `mismatch`, and where there is a reference, even if no column needs it, the KL to it in nats a response:
    `kl` and `kl_k3` from the sampled tokens, `kl_exact` summed over the vocabulary at every prefix. All three have the
    expectation KL(pi || ref); the exact one varies less than the log-ratios.

    Args:
        temperature: of both distributions, the one that was sampled at.
        against_ref: whether a later step reads the reference.
        ref_temperature: of `ref_logp_R` alone, where the loss has another one; None: the same.
        on_policy: whether the responses were sampled from this policy's untruncated distribution at `temperature`.
            Otherwise the gap and the estimates from sampled tokens would measure something else and are left out.
        correction: of a sampler whose log-probs are not those of the trainer's forward pass.
    """

    temperature: float = 1.0
    against_ref: bool = False
    ref_temperature: float | None = None
    on_policy: bool = True
    correction: Correction | None = None
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def reads_ref(self) -> bool:
        return self.against_ref

    @property
    def writes(self) -> tuple[str, ...]:
        return ("old_logp_R", "old_entropy_R", *(("ref_logp_R", "kl_B") if self.against_ref else ()))

    def __call__(self, models: Models, batch: Batch) -> Batch:
        if self.ref_temperature not in (None, self.temperature):
            # the loss has another temperature, so no later forward pass would show the gap
            batch = batch.without("sampled_hidden_R")
        if self.against_ref or models.ref is not None:
            return self._with_ref(models["ref"], models, batch)
        compute = partial(models["policy"].logp_R, temperature=self.temperature, entropy=True)
        (logp_R, entropy_R), values = policy_columns(models, batch, compute, 2)
        metrics, old = self._policy_alone(batch, logp_R, entropy_R)
        return batch.without("sampled_hidden_R").with_columns(metrics, **old, **values)

    def first_pass(self, forward: Forward) -> Metrics:
        """The distance from the sampler, where no forward pass was made before the updates."""
        if "sampler_logp_R" not in forward.batch.columns:
            return {}
        return mismatch(forward.logp_R.detach(), forward.batch["sampler_logp_R"])

    def _with_ref(self, ref: LanguageModel, models: Models, batch: Batch) -> Batch:
        forest = batch.forest
        compute = partial(
            compare_with_ref, models["policy"], ref, temperature=self.temperature, ref_temperature=self.ref_temperature
        )
        columns, values = policy_columns(models, batch, compute, 5, ref)
        both = RefComparison(*columns)
        per_response = partial(sum_per_response, response_R=forest.response_R, responses=forest.B)
        metrics, old = self._policy_alone(batch, both.logp_R, both.entropy_R)
        kl_B = per_response(k1(old["old_logp_R"], both.ref_logp_R))
        metrics |= {"kl_exact": sum_count(per_response(both.kl_R))}
        if self.on_policy:
            logps = both.logp_R, both.ref_logp_R
            metrics |= {"kl": sum_count(per_response(k1(*logps))), "kl_k3": sum_count(per_response(k3(*logps)))}
        batch = batch.without("sampled_hidden_R")
        return batch.with_columns(metrics, **old, **values, ref_logp_R=both.ref_at_R, kl_B=kl_B)

    def _policy_alone(self, batch: Batch, logp_R: Tensor, entropy_R: Tensor) -> tuple[Metrics, dict[str, Tensor]]:
        """Metrics and columns that need no reference; `logp_R` is the policy's now."""
        metrics: Metrics = {"entropy": sum_count(entropy_R)}
        columns = {"old_logp_R": logp_R, "old_entropy_R": entropy_R}
        if not self.on_policy or "sampled_logp_R" not in batch.columns:
            return metrics, columns
        sampled_R = batch["sampled_logp_R"]
        if "sampled_hidden_R" in batch.columns:  # no forward pass was made here to compare it with
            columns["old_logp_R"] = columns["sampler_logp_R"] = sampled_R.to(logp_R.dtype)
            return metrics, columns
        metrics |= mismatch(logp_R, sampled_R)
        if self.correction is None:
            columns["old_logp_R"] = sampled_R.to(logp_R.dtype)
        else:
            columns["sampler_weight_R"], weights = self.correction.weight_R(logp_R, sampled_R, batch.forest)
            metrics |= weights
        return metrics, columns


@dataclass(frozen=True)
class RefLogp:
    """`ref_logp_R`: the frozen reference's log-probs, from `models.ref_cache` where there is one."""

    temperature: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("ref_logp_R",)
    reads_ref: ClassVar[bool] = True

    def __call__(self, models: Models, batch: Batch) -> Batch:
        if models.ref_cache is not None and self.temperature == 1.0:
            return batch.with_columns(ref_logp_R=models.ref_cache.logp_R(batch.groups).to(batch.forest.device))
        ref = models["ref"]
        ref_R = per_microbatch(batch, lambda part: ref.logp_R(part.forest, temperature=self.temperature)[0], ref)
        return batch.with_columns(ref_logp_R=ref_R)

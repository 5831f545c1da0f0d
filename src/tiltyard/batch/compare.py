"""What a policy and a reference say of the same answers: log-probs, entropy, and the exact KL at every token's prefix.

Both models' hidden states of a micro-batch are there at once, so one loop over chunks of tokens makes all of it: one
forward pass and one vocabulary product a model, which log-probs alone would cost as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tiltyard.batch.forest import Forest
from tiltyard.batch.logp import chunk_rows
from tiltyard.kernels import fused_ops

if TYPE_CHECKING:
    from tiltyard.kernels.backend import Backend
    from tiltyard.models.language import LanguageModel


class RefComparison(NamedTuple):
    """Columns [R] over response tokens, in nats, float32 at least.

    Attributes:
        logp_R, entropy_R: the policy's; the log-probs are the bits of `LanguageModel.logp_R`.
        ref_logp_R: the reference's at the same temperature.
        kl_R: sum over the vocabulary of pi(v|prefix) log(pi(v|prefix) / ref(v|prefix)), both at that temperature. Its
            sum over an answer drawn from pi has the expectation of the answer's log-ratio, KL(pi || ref), and less
            variance, because the token is averaged over instead of drawn (Rao-Blackwell).
        ref_at_R: the reference's log-probs at the second temperature, if one was asked for.
    """

    logp_R: Tensor
    entropy_R: Tensor
    ref_logp_R: Tensor
    kl_R: Tensor
    ref_at_R: Tensor


@torch.no_grad()
def compare_with_ref(
    policy: LanguageModel,
    ref: LanguageModel,
    forest: Forest,
    temperature: float = 1.0,
    ref_temperature: float | None = None,
    **states: Tensor,
) -> RefComparison:
    """Both models' view of the response tokens, without gradient.

    A reference with more tokens than the policy (a vocabulary that was padded) counts by those they share; a policy
    that knows a token which the reference lacks is infinitely far from it.

    Args:
        temperature: of both laws (the one that was sampled from). ref_temperature: of `ref_at_R`; None: the same.
        states: the policy's `hidden_R`, where it has been computed already.
    """
    rows = chunk_rows(policy.vocab_size)
    own = policy.full_log_probs(forest, rows, temperature, temperature, **states)
    other = ref.full_log_probs(forest, rows, temperature, temperature if ref_temperature is None else ref_temperature)
    parts: list[tuple[Tensor, ...]] = []
    for (law, logp), (ref_law, ref_at), target in zip(own, other, forest.target_R.split(rows), strict=True):
        ref_logp = ref_law.gather(-1, target[:, None])[:, 0]
        parts.append((logp, *_entropy_and_kl(law, ref_law, policy.backend), ref_logp, ref_at))
    logp_R, entropy_R, kl_R, ref_logp_R, ref_at_R = (torch.cat(column) for column in zip(*parts, strict=True))
    return RefComparison(logp_R, entropy_R, ref_logp_R, kl_R, ref_at_R)


def _entropy_and_kl(law: Tensor, other: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """Of log-laws [rows, V]; overwrites the first."""
    shared = law.shape[1] <= other.shape[1]
    if shared and backend.native(law, other):
        return fused_ops.kl_and_entropy(law.contiguous(), other.contiguous())
    p = law.exp()
    entropy = -(p * law).sum(-1)
    if not shared:
        return entropy, torch.full_like(entropy, torch.inf)
    return entropy, law.sub_(other[:, : law.shape[1]]).mul_(p).sum(-1)

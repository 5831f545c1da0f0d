"""A policy and a reference on the same responses: log-probs, entropy, and the exact KL at every token's prefix.

One loop over chunks of tokens reads the hidden states of both models, so all of it takes one forward pass and one
vocabulary product a model, as many as log-probs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tiltyard.batch.forest import Forest
from tiltyard.batch.logp import chunk_rows
from tiltyard.kernels import fused_ops

if TYPE_CHECKING:
    from tiltyard.kernels.base import Backend
    from tiltyard.models.language import LanguageModel


class RefComparison(NamedTuple):
    """Columns [R] over response tokens, in nats, float32 at least.

    Attributes:
        logp_R, entropy_R: the policy's; the log-probs are the bits of `LanguageModel.logp_R`.
        ref_logp_R: the reference's at the same temperature.
        kl_R: sum over the vocabulary of pi(v|prefix) log(pi(v|prefix) / ref(v|prefix)), both at that temperature. Its
            sum over a response sampled from pi has the expectation of the response's log-ratio, KL(pi || ref), and
            less variance, because the token is averaged over instead of sampled (Rao-Blackwell).
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
    """Compares a policy with a reference on the response tokens of a forest, without gradient.

    Of a reference with more tokens than the policy (a padded vocabulary) the shared ones count; a policy with a token
    that the reference lacks has an infinite KL to it.

    Args:
        temperature: of both distributions (the sampler's). ref_temperature: of `ref_at_R`; None: the same.
        states: the policy's `hidden_R`, if it is computed already.
    """
    rows = chunk_rows(policy.vocab_size, forest.ids_T.device.type)
    policy_chunks = policy.full_log_probs(forest, rows, temperature, temperature, **states)
    ref_chunks = ref.full_log_probs(
        forest, rows, temperature, temperature if ref_temperature is None else ref_temperature
    )
    parts: list[tuple[Tensor, ...]] = []
    for (log_probs, logp), (ref_log_probs, ref_at), target in zip(
        policy_chunks, ref_chunks, forest.target_R.split(rows), strict=True
    ):
        ref_logp = ref_log_probs.gather(-1, target[:, None])[:, 0]
        parts.append((logp, *_entropy_and_kl(log_probs, ref_log_probs, policy.backend), ref_logp, ref_at))
    logp_R, entropy_R, kl_R, ref_logp_R, ref_at_R = (torch.cat(column) for column in zip(*parts, strict=True))
    return RefComparison(logp_R, entropy_R, ref_logp_R, kl_R, ref_at_R)


def _entropy_and_kl(log_p: Tensor, log_q: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    """Entropy of p and KL(p || q) [rows] of log-probs [rows, V]; overwrites the first."""
    shared = log_p.shape[1] <= log_q.shape[1]
    if shared and backend.native(log_p, log_q):
        return fused_ops.kl_and_entropy(log_p.contiguous(), log_q.contiguous())
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    if not shared:
        return entropy, torch.full_like(entropy, torch.inf)
    return entropy, log_p.sub_(log_q[:, : log_p.shape[1]]).mul_(p).sum(-1)

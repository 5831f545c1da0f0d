"""What a policy and a reference say of the same answers: log-probs, entropy, and the exact KL at every token's prefix.

Both models' hidden states of a micro-batch are there at once, so one loop over chunks of tokens makes all of it: one
forward pass and one vocabulary product a model, which log-probs alone would cost as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tiltyard.models.forest import Forest
from tiltyard.models.language import LanguageModel
from tiltyard.models.logp import chunk_rows


class Compared(NamedTuple):
    """Columns [R] over response tokens, in nats, float32 at least.

    Attributes:
        logp_R, entropy_R: the policy's, the bits of `LanguageModel.logp_R`.
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
def compared(
    policy: LanguageModel,
    ref: LanguageModel,
    forest: Forest,
    temperature: float = 1.0,
    ref_temperature: float | None = None,
    **states: Tensor,
) -> Compared:
    """Both models' view of the response tokens, without gradient.

    A reference with more tokens than the policy (a vocabulary that was padded) counts by those they share; a policy
    that knows a token which the reference lacks is infinitely far from it.

    Args:
        temperature: of both laws (the one that was sampled from). ref_temperature: of `ref_at_R`; None: the same.
        states: the policy's `hidden_R`, where it has been computed already.
    """
    rows = chunk_rows(policy.vocab_size)
    own = policy.laws_R(forest, rows, temperature, temperature, **states)
    other = ref.laws_R(forest, rows, temperature, temperature if ref_temperature is None else ref_temperature)
    parts: list[tuple[Tensor, ...]] = []
    for (law, logp), (ref_law, ref_at), target in zip(own, other, forest.target_R.split(rows), strict=True):
        ref_logp = ref_law.gather(-1, target[:, None])[:, 0]
        p = law.exp()
        entropy = -(p * law).sum(-1)
        if law.shape[1] > ref_law.shape[1]:
            kl = torch.full_like(logp, torch.inf)
        else:
            kl = law.sub_(ref_law[:, : law.shape[1]]).mul_(p).sum(-1)
        parts.append((logp, entropy, ref_logp, kl, ref_at))
    return Compared(*(torch.cat(column) for column in zip(*parts, strict=True)))

"""The distribution of the next token: from logits to one token a row and its log-probability under it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiltyard.kernels import fused_ops
from tiltyard.kernels.base import Backend
from tiltyard.sampling.settings import SampleSettings


def probs_NV(logits_NV: Tensor, settings: SampleSettings) -> Tensor:
    """Probabilities [N, V] after temperature, top-k and top-p (in this order); truncated tokens have exactly 0."""
    if settings.temperature == 0:
        best = logits_NV.argmax(-1, keepdim=True)
        return torch.zeros_like(logits_NV).scatter(-1, best, 1.0)
    scaled = logits_NV / settings.temperature if settings.temperature != 1 else logits_NV
    if 0 < settings.top_k < scaled.shape[-1]:
        values, top = scaled.topk(settings.top_k, -1)  # exactly k, also where several are equal to the last
        scaled = torch.full_like(scaled, float("-inf")).scatter(-1, top, values)
    probs = scaled.softmax(-1)
    if settings.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # mass of the more probable tokens: keep while it is below top_p
        keep = torch.zeros_like(probs, dtype=torch.bool).scatter_(-1, order, before < settings.top_p)
        probs = probs * keep
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def sample_from_probs(probs_NV: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse CDF with one uniform number a row: (token [N], log-probability [N]). Probability 0 is never sampled.

    The sums are in float64: rounded ones could rise, on a GPU that adds in parallel, where the probability is 0.
    """
    cdf = probs_NV.cumsum(-1, dtype=torch.float64)
    target = (uniform_N.to(cdf.dtype) * cdf[:, -1]).clamp_max(torch.nextafter(cdf[:, -1], cdf.new_zeros(1)))
    token = torch.searchsorted(cdf, target[:, None], right=True)
    token = token.clamp_max(probs_NV.shape[-1] - 1)
    return token[:, 0], probs_NV.gather(-1, token)[:, 0].log()


BLOCK = 64  # tokens whose probabilities are added up together


def sample_from_logits(
    logits_NV: Tensor, temperature: float, uniform_N: Tensor, backend: Backend
) -> tuple[Tensor, Tensor]:
    """Samples from the untruncated distribution at `temperature`: (token [N], log-probability [N]).

    The inverse CDF in two stages, first among blocks of tokens, then within the block: the long running sum in float64
    over the vocabulary, which costs more than all else here, is never made.
    """
    if backend.native(logits_NV):
        return fused_ops.sample_tokens(logits_NV.contiguous(), temperature, uniform_N)
    rows, vocabulary = logits_NV.shape
    z = logits_NV / temperature if temperature != 1 else logits_NV
    probs = nn.functional.pad(z.softmax(-1), (0, -vocabulary % BLOCK))
    weight = probs.view(rows, -1, BLOCK)
    cdf = weight.sum(-1).cumsum(-1, dtype=torch.float64)
    target = _below(uniform_N.to(cdf.dtype) * cdf[:, -1], cdf[:, -1])
    block = torch.searchsorted(cdf, target[:, None], right=True)
    block = block.clamp_max(cdf.shape[-1] - 1)  # only NaN leads beyond; its log-probability stays NaN
    before = cdf.gather(-1, (block - 1).clamp_min(0)).where(block > 0, 0)[:, 0]
    inner = weight[torch.arange(rows, device=z.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    offset = torch.searchsorted(inner, _below(target - before, inner[:, -1])[:, None], right=True)
    token = block * BLOCK + offset.clamp_max(BLOCK - 1)
    return token[:, 0], probs.gather(-1, token)[:, 0].log()


def _below(target: Tensor, total: Tensor) -> Tensor:
    """In [0, total): rounding must not lead beyond the last token that has a probability."""
    return target.clamp_min(0).minimum(torch.nextafter(total, total.new_zeros(1)))

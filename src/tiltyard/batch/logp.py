"""Log-probabilities of response tokens without ever holding [tokens, vocabulary] logits.

The vocabulary product is done in row chunks; the backward pass recomputes each chunk's logits instead of keeping them,
so memory is one chunk whatever the number of tokens. Gradients of hidden states and of the head are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tiltyard.kernels import fused_ops
from tiltyard.kernels.base import Backend
from tiltyard.kernels.matmul import add_weight_grad_, linear, operand

CHUNK_ELEMENTS = 1 << 20  # logits in one chunk: 4 MiB in float32, which a processor's cache holds
CHUNK_ELEMENTS_GPU = 1 << 26  # 256 MiB: each chunk adds to the whole head's gradient, which costs memory traffic
MIN_ROWS = 128  # at least, because every chunk reads the whole head, which is large where the vocabulary is


def chunk_rows(vocabulary: int, device: str = "cpu") -> int:
    """Tokens whose logits are computed together on this type of device."""
    return max(MIN_ROWS, (CHUNK_ELEMENTS if device == "cpu" else CHUNK_ELEMENTS_GPU) // vocabulary)


def token_logp(
    hidden_R: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_R: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    entropy: bool = False,
    backend: Backend,
) -> tuple[Tensor, Tensor | None]:
    """log p(target) in nats and, if asked, the entropy of each distribution.

    Args:
        hidden_R: [R, d] hidden states at the predicting positions.
        weight, bias: the output head, [V, d] and [V].
        target_R: [R] token ids.
        temperature: logits are divided by it (the temperature that was sampled at).
        softcap, scale: the model's own transforms of the logits (`cap * tanh(x / cap)`, then `x * scale`).
        backend: the model's.

    Returns:
        (logp_R, entropy_R or None), float32 at least; both differentiable.
    """
    logp_R, entropy_R = _ChunkedLogp.apply(
        hidden_R, weight, bias, target_R, temperature, softcap, scale, entropy, backend
    )
    return logp_R, entropy_R if entropy else None


@torch.no_grad()
def full_log_probs(
    hidden_R: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target_R: Tensor,
    *,
    temperature: float,
    at: float,
    softcap: float | None,
    scale: float,
    rows: int,
    backend: Backend,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Computes log-probs of the whole vocabulary, chunk by chunk, without gradient.

    The caller may overwrite them. Arguments are those of `token_logp`.

    Args:
        at: a second temperature, for the targets alone.
        rows: of a chunk, at most.

    Yields:
        (log-probs [rows, V] at `temperature`, log p(target) [rows] at `at`), in nats, float32 at least. Where both
        temperatures are one, the targets' are the bits of `token_logp`.
    """
    head = operand(weight.to(hidden_R.dtype), backend)
    for h, target in zip(hidden_R.split(rows), target_R.split(rows), strict=True):
        z = _capped(h, head, bias, softcap, backend)
        logp = None if at == temperature else _measured(z * (scale / at), target, False, backend)[0]
        z = _scaled_(z, scale / temperature)
        same, lse, _ = _measured(z, target, False, backend)
        yield z.sub_(lse[:, None]), same if logp is None else logp


def _scaled_(z: Tensor, scale: float) -> Tensor:
    return z if scale == 1.0 else z.mul_(scale)


def _capped(h: Tensor, head: Tensor, bias: Tensor | None, softcap: float | None, backend: Backend) -> Tensor:
    z = linear(h, head, backend=backend)
    z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z
    if bias is not None:
        z += bias
    if softcap is not None:
        z = torch.tanh(z / softcap) * softcap
    return z


def _logits(
    h: Tensor, head: Tensor, bias: Tensor | None, softcap: float | None, scale: float, backend: Backend
) -> Tensor:
    return _scaled_(_capped(h, head, bias, softcap, backend), scale)


class _ChunkedLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_R: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_R: Tensor,
        temperature: float,
        softcap: float | None,
        scale: float,
        entropy: bool,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        rows = chunk_rows(weight.shape[0], weight.device.type)
        found: list[tuple[Tensor, ...]] = []
        head = operand(weight.to(hidden_R.dtype), backend)
        for h, target in zip(hidden_R.split(rows), target_R.split(rows), strict=True):
            z = _logits(h, head, bias, softcap, scale / temperature, backend)
            found.append(_measured(z, target, entropy, backend))
        ctx.settings = (rows, temperature, softcap, scale, entropy, backend)
        dtype = torch.promote_types(hidden_R.dtype, torch.float32)
        nothing = hidden_R.new_zeros(0, dtype=dtype)
        logp_R, lse_R, entropy_R = (torch.cat(part) for part in zip(*found, strict=True)) if found else [nothing] * 3
        ctx.save_for_backward(hidden_R, weight, bias, target_R, lse_R, entropy_R)
        return logp_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_R, weight, bias, target_R, lse_R, entropy_R = ctx.saved_tensors
        rows, temperature, softcap, scale, entropy, backend = ctx.settings
        grad_hidden = torch.empty_like(hidden_R) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        head = operand(weight.to(hidden_R.dtype), backend)
        for start in range(0, hidden_R.shape[0], rows):
            part = slice(start, start + rows)
            h, target = hidden_R[part], target_R[part]
            z = _logits(h, head, bias, softcap, scale / temperature, backend)
            # undo the scale to recover tanh, whose derivative the cap needs
            squash = 1 - (z / (softcap * scale / temperature)) ** 2 if softcap is not None else None
            grads_R = [one[part] * (scale / temperature) for one in (grads if entropy else grads[:1])]
            dz = _grad_logits_(z, target, lse_R[part], entropy_R[part], *grads_R, backend=backend)
            if squash is not None:
                dz.mul_(squash)
            if grad_bias is not None:
                grad_bias += dz.sum(0)
            dz = operand(dz.to(h.dtype), backend)
            if grad_hidden is not None:
                grad_hidden[part] = linear(dz, head.t(), backend=backend)
            if grad_weight is not None:
                add_weight_grad_(grad_weight, dz, h, backend=backend)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None, None


def _measured(z: Tensor, target: Tensor, entropy: bool, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
    """(log p(target), log of the sum of exponentials, entropy or zeros) of each row of logits; may overwrite them."""
    if backend.native(z):
        logp, lse, found = fused_ops.log_softmax_nll(z.contiguous(), target, entropy)
        return logp, lse, torch.zeros_like(lse) if found is None else found
    lse = z.logsumexp(-1)
    logp = z.gather(-1, target[:, None])[:, 0] - lse
    if not entropy:
        return logp, lse, torch.zeros_like(lse)
    log_law = z.sub_(lse[:, None])
    return logp, lse, -(log_law.exp() * log_law).sum(-1)


def _grad_logits_(
    z: Tensor,
    target: Tensor,
    lse: Tensor,
    entropy: Tensor,
    grad_logp: Tensor,
    grad_entropy: Tensor | None = None,
    *,
    backend: Backend,
) -> Tensor:
    """d/dz of grad_logp * log p(target) + grad_entropy * H; overwrites z."""
    if backend.native(z, grad_logp):
        return fused_ops.log_softmax_nll_backward_(z.contiguous(), target, lse, entropy, grad_logp, grad_entropy)
    log_law = z.sub_(lse[:, None])
    p = log_law.exp()
    dz = p * -grad_logp[:, None]
    dz.scatter_add_(-1, target[:, None], grad_logp[:, None].to(dz.dtype))
    if grad_entropy is not None:
        dz -= grad_entropy[:, None] * p * (log_law + entropy[:, None])
    return dz

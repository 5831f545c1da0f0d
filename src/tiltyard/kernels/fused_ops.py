"""Fused ops of a decoder in C (fused_ops.c): RMSNorm, rotary positions, SwiGLU, log-softmax, KL, gradients of weights.

Each is one pass over its activations, forward and backward. All tensors are float32, contiguous and on the CPU: call
them where `Backend.native` allows it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tiltyard.kernels.library import KernelFlop, call


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns x / sqrt(mean x^2 + eps) * weight over the last dimension."""
    out = torch.empty_like(x)
    call("rms_norm", out, x, weight, x.numel() // len(weight), len(weight), eps)
    return out


def rms_norm_backward_(dx: Tensor, dout: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Adds the gradient of x to `dx`; returns the gradient of the weight."""
    dweight = torch.empty_like(weight)
    call("rms_norm_backward", dx, dweight, dout, x, weight, x.numel() // len(weight), len(weight), eps)
    return dweight


def apply_rope_(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, *, inverse: bool = False) -> Tensor:
    """Rotates both halves of each head by the token's angles, in place; `inverse` rotates back (the gradient)."""
    call("apply_rope", x_THD, cos_TD, sin_TD, *x_THD.shape, int(inverse))
    return x_THD


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Returns silu(gate) * up."""
    out = torch.empty_like(gate)
    call("swiglu", out, gate, up, gate.numel())
    return out


def swiglu_backward_(dout: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (silu(gate) * up, gradient of gate, gradient of up); overwrites `dout`."""
    out, dup = torch.empty_like(gate), torch.empty_like(gate)
    call("swiglu_backward", out, dout, dup, dout, gate, up, gate.numel())
    return out, dout, dup


def log_softmax_nll(logits_RV: Tensor, target_R: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns (log p(target), log-sum-exp, entropy or None), each [R], in nats."""
    logp_R, lse_R = logits_RV.new_empty(len(logits_RV)), logits_RV.new_empty(len(logits_RV))
    entropy_R = torch.empty_like(lse_R) if entropy else None
    call("log_softmax_nll", logp_R, lse_R, entropy_R, logits_RV, target_R, *logits_RV.shape)
    return logp_R, lse_R, entropy_R


def log_softmax_nll_backward_(
    logits_RV: Tensor,
    target_R: Tensor,
    lse_R: Tensor,
    entropy_R: Tensor | None,
    dlogp_R: Tensor,
    dentropy_R: Tensor | None,
) -> Tensor:
    """Overwrites logits with the gradient of the sum of dlogp * log p(target) + dentropy * entropy."""
    call("log_softmax_nll_backward", logits_RV, lse_R, entropy_R, dlogp_R, dentropy_R, target_R, *logits_RV.shape)
    return logits_RV


def kl_and_entropy(logp_RV: Tensor, logq_RW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (entropy of p [R], KL(p || q) [R]) in nats from log-probs; where W exceeds V the first V count."""
    entropy_R, kl_R = logp_RV.new_empty(len(logp_RV)), logp_RV.new_empty(len(logp_RV))
    call("kl_and_entropy", entropy_R, kl_R, logp_RV, logq_RW, *logp_RV.shape, logq_RW.shape[1])
    return entropy_R, kl_R


def weight_grad_(grad_OI: Tensor, dout_TO: Tensor, x_TI: Tensor) -> Tensor:
    """Adds dout' x, the gradient of a linear layer's weight."""
    if KernelFlop.on:
        KernelFlop.add(2 * dout_TO.numel() * x_TI.shape[1])
    call("weight_grad", grad_OI, dout_TO, x_TI, *dout_TO.shape, x_TI.shape[1])
    return grad_OI


def sample_tokens(logits_NV: Tensor, temperature: float, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one token a row from softmax(logits / temperature) by inverse CDF.

    Args:
        logits_NV: contiguous. uniform_N: in [0, 1), of any floating type.

    Returns:
        (token ids [N], their log-probs [N] in nats).
    """
    rows, vocabulary = logits_NV.shape
    tokens, logps = torch.empty(rows, dtype=torch.long), torch.empty(rows)
    uniform = uniform_N.to(torch.float64).contiguous()
    call("sample_tokens", tokens, logps, logits_NV, uniform, temperature, rows, vocabulary)
    return tokens, logps

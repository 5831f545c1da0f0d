"""What stands between a decoder's products, in C (fused_ops.c): RMSNorm, rotary positions, gates, log-probabilities.

Each is one pass over its activations, forward and backward. All tensors are float32, contiguous and on the CPU; who
calls them has asked `compiled`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from tiltyard.kernels.library import Work, kernels

POINTER, LONG, FLOAT, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
TAKES = {
    "norm": [POINTER] * 3 + [LONG, LONG, FLOAT, INT],
    "norm_slope": [POINTER] * 5 + [LONG, LONG, FLOAT, INT],
    "turn": [POINTER] * 3 + [LONG, LONG, LONG, INT, INT],
    "gated": [POINTER] * 3 + [LONG, INT],
    "gated_slope": [POINTER] * 6 + [LONG, INT],
    "law": [POINTER] * 5 + [LONG, LONG, INT],
    "law_slope": [POINTER] * 6 + [LONG, LONG, INT],
    "divergence": [POINTER] * 4 + [LONG, LONG, LONG, INT],
    "weight_slope": [POINTER] * 3 + [LONG, LONG, LONG, INT],
}


def compiled(*tensors: Tensor) -> bool:
    """Whether these tensors are such as the passes take, and there is a compiler."""
    plain = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
    return plain and kernels().library is not None


def _call(name: str, *arguments: Any) -> None:
    step = getattr(kernels().library, name)
    if step.argtypes is None:
        step.argtypes, step.restype = TAKES[name], None
    data = (x.data_ptr() if isinstance(x, Tensor) else x for x in arguments)
    step(*data, torch.get_num_threads())


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean x^2 + eps) * weight over the last dimension."""
    out = torch.empty_like(x)
    _call("norm", out, x, weight, x.numel() // len(weight), len(weight), eps)
    return out


def norm_slope_(dx: Tensor, dout: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Adds the slope with respect to x to `dx`; returns the one with respect to the weight."""
    dweight = torch.empty_like(weight)
    _call("norm_slope", dx, dweight, dout, x, weight, x.numel() // len(weight), len(weight), eps)
    return dweight


def turn_(x_THD: Tensor, cos_TD: Tensor, sin_TD: Tensor, *, back: bool = False) -> Tensor:
    """Rotary positions, in place: both halves of a head turned by the token's angles (or back, which is the slope)."""
    _call("turn", x_THD, cos_TD, sin_TD, *x_THD.shape, int(back))
    return x_THD


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up"""
    out = torch.empty_like(gate)
    _call("gated", out, gate, up, gate.numel())
    return out


def gated_slope(dout: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(silu(gate) * up, slope of the gate, slope of up); overwrites `dout`."""
    out, dup = torch.empty_like(gate), torch.empty_like(gate)
    _call("gated_slope", out, dout, dup, dout, gate, up, gate.numel())
    return out, dout, dup


def law(logits_RV: Tensor, target_R: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(log p(target), log of the sum of exponentials, entropy if asked), each [R], in nats."""
    logp_R, lse_R = logits_RV.new_empty(len(logits_RV)), logits_RV.new_empty(len(logits_RV))
    entropy_R = torch.empty_like(lse_R) if entropy else None
    _call("law", logp_R, lse_R, entropy_R, logits_RV, target_R, *logits_RV.shape)
    return logp_R, lse_R, entropy_R


def law_slope_(
    logits_RV: Tensor,
    target_R: Tensor,
    lse_R: Tensor,
    entropy_R: Tensor | None,
    dlogp_R: Tensor,
    dentropy_R: Tensor | None,
) -> Tensor:
    """Turns logits into the slope of the sum of dlogp * log p(target) + dentropy * entropy."""
    _call("law_slope", logits_RV, lse_R, entropy_R, dlogp_R, dentropy_R, target_R, *logits_RV.shape)
    return logits_RV


def divergence(law_RV: Tensor, other_RW: Tensor) -> tuple[Tensor, Tensor]:
    """(entropy [R], sum of p (log p - log q) [R]) of log-laws, in nats; W may be above V, and the first V count."""
    entropy_R, kl_R = law_RV.new_empty(len(law_RV)), law_RV.new_empty(len(law_RV))
    _call("divergence", entropy_R, kl_R, law_RV, other_RW, *law_RV.shape, other_RW.shape[1])
    return entropy_R, kl_R


def weight_slope_(slope_OI: Tensor, dout_TO: Tensor, x_TI: Tensor) -> Tensor:
    """Adds dout' x, the slope of a linear layer's weight."""
    if Work.on:
        Work.add(2 * dout_TO.numel() * x_TI.shape[1])
    _call("weight_slope", slope_OI, dout_TO, x_TI, *dout_TO.shape, x_TI.shape[1])
    return slope_OI

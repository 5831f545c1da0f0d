"""Products of activations and weights on CPUs, by the library that is fast on the processor at hand.

torch multiplies float32 matrices with MKL on x86. On processors of other makers than Intel, MKL keeps to vectors half
as wide as the machine's; oneDNN, which every CPU build of torch brings along, does not (docs/lab.md: 1.6 to 2.2 times
as fast). Which of the two is used depends on the processor's maker, not on a measurement: a resumed run gives the same
bits. `TILTYARD_PRODUCTS=torch` leaves all products to torch.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.kernels import fused_ops

ROUND = 64  # tokens: oneDNN makes a kernel for each size of a product and keeps it, so sizes should come back
ENOUGH = 1 << 20  # multiplications: below, a call of torch's own is as fast


@cache
def onednn() -> bool:
    """Whether float32 products with weights go to oneDNN."""
    if os.environ.get("TILTYARD_PRODUCTS", "") == "torch" or not torch.backends.mkldnn.is_available():
        return False
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.mkl.is_available() and _maker() not in ("", "GenuineIntel")


def _maker() -> str:
    """The processor's maker; nothing where the system does not say (then all stays with torch)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is one of those that oneDNN does faster."""
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and weight.layout == torch.strided
    return plain and onednn() and x.numel() * weight.shape[0] >= ENOUGH


def multiply(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x @ weight.t() + bias` [N, O] without gradient. Any strides."""
    if suits(x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return functional.linear(x_NI, weight_OI, bias_O)


def multiply_onto(other_NO: Tensor, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`other + x @ weight.t() + bias` [N, O] without gradient."""
    if suits(x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, other_NO, weight_OI, bias_O, "add")
    return functional.linear(x_NI, weight_OI, bias_O).add_(other_NO)


def weight_slope(dout_NO: Tensor, x_NI: Tensor) -> Tensor:
    """`dout.t() @ x` [O, I]: the slope of a layer's weight. oneDNN copies both sides first; fused_ops.c does not."""
    if suits(dout_NO.t(), x_NI.t()) and fused_ops.compiled(dout_NO):
        zeros = dout_NO.new_zeros(dout_NO.shape[1], x_NI.shape[1])
        return fused_ops.weight_slope_(zeros, dout_NO.contiguous(), x_NI.contiguous())
    return torch.mm(dout_NO.t(), x_NI)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return multiply(x_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_NO = grads[0].contiguous()
        grad_x = multiply(grad_NO, weight_OI.t()) if ctx.needs_input_grad[0] else None
        grad_weight = weight_slope(grad_NO, x_NI) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, grad_NO.sum(0) if ctx.needs_input_grad[2] else None


class Linear(nn.Linear):
    """`nn.Linear`, its three products done by the faster library. Made of an existing layer by `quicken`."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") or not suits(input, self.weight):
            return functional.linear(input, self.weight, self.bias)
        flat = input.reshape(-1, self.in_features)
        if not torch.is_grad_enabled():
            return multiply(flat, self.weight, self.bias).view(*input.shape[:-1], -1)
        out: Tensor = _Product.apply(flat, self.weight, self.bias)
        return out.view(*input.shape[:-1], -1)


def quicken(module: nn.Module) -> None:
    """Makes every plain linear layer of a model a `Linear`, in place: the weights and their names stay as they are."""
    if onednn():
        for part in module.modules():
            if type(part) is nn.Linear:
                part.__class__ = Linear


class Ready:
    """Weights laid out for products with few rows, again and again: a snapshot, made anew when they change."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None):
        self.bias_O = bias_O
        plain = weight_OI.dtype == torch.float32 and weight_OI.device.type == "cpu"
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, 32) if plain and onednn() else None
        self.weight_IO = weight_OI.t()

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """`x @ weight + bias`, then the activation: `none` or `swish`."""
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias_O, activation, [], "")
        out = torch.mm(x, self.weight_IO) if self.bias_O is None else torch.addmm(self.bias_O, x, self.weight_IO)
        return functional.silu(out) if activation == "swish" else out

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """`x @ weight + bias + other`."""
        return self._with(x, other, "add")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """`(x @ weight + bias) * other`."""
        return self._with(x, other, "mul")

    def _with(self, x: Tensor, other: Tensor, what: str) -> Tensor:
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias_O, what)
        out = self(x)
        return out + other if what == "add" else out * other

"""Linear layers in float32 on CPUs, by MKL or by oneDNN.

torch multiplies float32 matrices with MKL on x86. Depending on the processor, oneDNN, which every CPU build of torch
contains, may be up to 2.2 times as fast (docs/lab.md). Which of the two a model uses is its backend's `linear`, which
is measured once (`measure.py`) and kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.kernels import fused_ops

if TYPE_CHECKING:
    from tiltyard.kernels.base import Backend

ROUND = 64  # tokens: oneDNN compiles a kernel for each size of a product and keeps it, so sizes should recur
ENOUGH = 1 << 20  # multiplications: below, torch's own product is as fast


def is_supported(x: Tensor, weight: Tensor) -> bool:
    """Returns True if oneDNN can compute `x @ weight.t()` and the product is large enough to gain by it."""
    plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and weight.layout == torch.strided
    return plain and x.numel() * weight.shape[0] >= ENOUGH


def _onednn(backend: Backend, x: Tensor, weight: Tensor) -> bool:
    return backend.linear == "onednn" and is_supported(x, weight)


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, backend: Backend) -> Tensor:
    """Returns `x @ weight.t() + bias` [N, O] without gradient. Any strides."""
    if _onednn(backend, x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return functional.linear(x_NI, weight_OI, bias_O)


def linear_add(
    other_NO: Tensor, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, backend: Backend
) -> Tensor:
    """Returns `other + x @ weight.t() + bias` [N, O] without gradient."""
    if _onednn(backend, x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, other_NO, weight_OI, bias_O, "add")
    return functional.linear(x_NI, weight_OI, bias_O).add_(other_NO)


def weight_grad(dout_NO: Tensor, x_NI: Tensor, *, backend: Backend) -> Tensor:
    """Returns `dout.t() @ x` [O, I], the gradient of a weight. oneDNN would copy both factors; fused_ops.c does not."""
    if _onednn(backend, dout_NO.t(), x_NI.t()) and backend.native(dout_NO):
        zeros = dout_NO.new_zeros(dout_NO.shape[1], x_NI.shape[1])
        return fused_ops.weight_grad_(zeros, dout_NO.contiguous(), x_NI.contiguous())
    return torch.mm(dout_NO.t(), x_NI)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, backend: Backend) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        ctx.backend = backend
        return linear(x_NI, weight_OI, bias_O, backend=backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI = ctx.saved_tensors
        backend, grad_NO = ctx.backend, grads[0].contiguous()
        grad_x = linear(grad_NO, weight_OI.t(), backend=backend) if ctx.needs_input_grad[0] else None
        grad_weight = weight_grad(grad_NO, x_NI, backend=backend) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, grad_NO.sum(0) if ctx.needs_input_grad[2] else None, None


class Linear(nn.Linear):
    """`nn.Linear` with its three products by oneDNN. Made of an existing layer by `use_onednn_linear`."""

    backend: Backend

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") or not _onednn(self.backend, input, self.weight):
            return functional.linear(input, self.weight, self.bias)
        flat = input.reshape(-1, self.in_features)
        if not torch.is_grad_enabled():
            return linear(flat, self.weight, self.bias, backend=self.backend).view(*input.shape[:-1], -1)
        out: Tensor = _Linear.apply(flat, self.weight, self.bias, self.backend)
        return out.view(*input.shape[:-1], -1)


def use_onednn_linear(module: nn.Module, backend: Backend) -> None:
    """Makes every plain linear layer of a model a `Linear`, in place, or plain again where the backend is not oneDNN.

    The weights and their names stay as they are.
    """
    for part in module.modules():
        if type(part) in (nn.Linear, Linear):
            part.__class__ = Linear if backend.linear == "onednn" else nn.Linear
            if backend.linear == "onednn":
                part.backend = backend  # type: ignore[assignment]


class PackedLinear:
    """Weights laid out for repeated products with few rows: a snapshot, to be made anew when they change."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, backend: Backend):
        self.bias_O = bias_O
        plain = weight_OI.dtype == torch.float32 and weight_OI.device.type == "cpu" and backend.linear == "onednn"
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, 32) if plain else None
        self.weight_IO = weight_OI.t()

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """Returns `x @ weight + bias`, then the activation: `none` or `swish`."""
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias_O, activation, [], "")
        out = torch.mm(x, self.weight_IO) if self.bias_O is None else torch.addmm(self.bias_O, x, self.weight_IO)
        return functional.silu(out) if activation == "swish" else out

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """Returns `x @ weight + bias + other`."""
        return self._binary(x, other, "add")

    def mul(self, x: Tensor, other: Tensor) -> Tensor:
        """Returns `(x @ weight + bias) * other`."""
        return self._binary(x, other, "mul")

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias_O, operation)
        out = self(x)
        return out + other if operation == "add" else out * other

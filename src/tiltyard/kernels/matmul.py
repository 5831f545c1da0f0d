"""Linear layers: in float32 by MKL or by oneDNN on CPUs, or with factors in bfloat16.

torch multiplies float32 matrices with MKL on x86. Depending on the processor, oneDNN, which every CPU build of torch
contains, may be up to 2.2 times as fast (docs/lab.md). Which of the two a model uses is its backend's `linear`, which
is measured once (`measure.py`) and kept.

Where the model computes in bfloat16, both factors of every product are rounded to it, sums are float32 and the result
is rounded once (as under torch's autocast; not on GPUs, which give the sums); everything between stays float32.
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


def operand(x: Tensor, backend: Backend) -> Tensor:
    """Returns a factor of a product in the backend's type, so that one used several times is rounded once."""
    return x.bfloat16() if backend.linear == "bfloat16" else x


def _bfloat16(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """Returns `x @ weight.t()` [N, O] of factors in bfloat16: in bfloat16, on a GPU in float32."""
    if x_NI.is_cuda:
        return torch.mm(x_NI.bfloat16(), weight_OI.bfloat16().t(), out_dtype=torch.float32)
    return functional.linear(x_NI.bfloat16(), weight_OI.bfloat16())


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, backend: Backend) -> Tensor:
    """Returns `x @ weight.t() + bias` [N, O] without gradient. Any strides."""
    if backend.linear == "bfloat16":
        out = _bfloat16(x_NI, weight_OI).float()
        return out if bias_O is None else out.add_(bias_O)
    if _onednn(backend, x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return functional.linear(x_NI, weight_OI, bias_O)


def linear_add(
    other_NO: Tensor, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, *, backend: Backend
) -> Tensor:
    """Returns `other + x @ weight.t() + bias` [N, O] without gradient."""
    if backend.linear == "bfloat16":
        out = other_NO + _bfloat16(x_NI, weight_OI)
        return out if bias_O is None else out.add_(bias_O)
    if _onednn(backend, x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise.binary(x_NI, other_NO, weight_OI, bias_O, "add")
    return functional.linear(x_NI, weight_OI, bias_O).add_(other_NO)


def weight_grad(dout_NO: Tensor, x_NI: Tensor, *, backend: Backend) -> Tensor:
    """Returns `dout.t() @ x` [O, I], the gradient of a weight. oneDNN would copy both factors; fused_ops.c does not."""
    if backend.linear == "bfloat16":
        return torch.mm(dout_NO.bfloat16().t(), x_NI.bfloat16()).float()
    if _onednn(backend, dout_NO.t(), x_NI.t()) and backend.native(dout_NO):
        zeros = dout_NO.new_zeros(dout_NO.shape[1], x_NI.shape[1])
        return fused_ops.weight_grad_(zeros, dout_NO.contiguous(), x_NI.contiguous())
    return torch.mm(dout_NO.t(), x_NI)


def add_weight_grad_(grad_OI: Tensor, dout_NO: Tensor, x_NI: Tensor, *, backend: Backend) -> Tensor:
    """Adds `weight_grad` to `grad`, without an array of its size in between where the factors are float32."""
    if backend.linear == "bfloat16":
        return grad_OI.add_(torch.mm(dout_NO.bfloat16().t(), x_NI.bfloat16()))
    dout_NO, x_NI = dout_NO.to(grad_OI.dtype), x_NI.to(grad_OI.dtype)
    if _onednn(backend, dout_NO.t(), x_NI.t()) and backend.native(grad_OI, dout_NO):
        return fused_ops.weight_grad_(grad_OI, dout_NO.contiguous(), x_NI.contiguous())
    return grad_OI.addmm_(dout_NO.t(), x_NI)


def add_low_rank_(out_NO: Tensor, x_NI: Tensor, down_RI: Tensor, up_OR: Tensor, scaling: float) -> Tensor:
    """Adds `scaling * x @ down.t() @ up.t()` to `out`, without gradient. x may be in bfloat16."""
    low_NR = functional.linear(x_NI, down_RI.to(x_NI.dtype))
    if low_NR.dtype == out_NO.dtype:
        return out_NO.addmm_(low_NR, up_OR.t(), alpha=scaling)
    return out_NO.add_(torch.mm(low_NR, up_OR.t().to(low_NR.dtype)), alpha=scaling)


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
        self.half = backend.linear == "bfloat16"
        self.bias_O = operand(bias_O, backend) if bias_O is not None else None
        weight_OI = operand(weight_OI, backend)
        on_cpu = weight_OI.device.type == "cpu"
        plain = weight_OI.dtype == torch.float32 and backend.linear == "onednn"
        packs = on_cpu and (self.half or plain)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, 32) if packs else None
        self.weight_IO = None if packs else weight_OI.t()

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """Returns `x @ weight + bias`, then the activation: `none` or `swish` (then in bfloat16 if the factors are)."""
        out = self._product(x, activation)
        return out.float() if self.half and activation == "none" else out

    def _product(self, x: Tensor, activation: str = "none") -> Tensor:
        x = x.bfloat16() if self.half else x
        if self.weight_IO is None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias_O, activation, [], "")
        out = torch.mm(x, self.weight_IO) if self.bias_O is None else torch.addmm(self.bias_O, x, self.weight_IO)
        return functional.silu(out) if activation == "swish" else out

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """Returns `x @ weight + bias + other`."""
        if self.half or self.weight_IO is not None:
            return other + self._product(x)
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias_O, "add")

    def mul(self, x: Tensor, other: Tensor) -> Tensor:
        """Returns `(x @ weight + bias) * other`, in bfloat16 if the factors are."""
        if self.half:
            x, other = x.bfloat16(), other.bfloat16()
        if self.weight_IO is not None:
            return self._product(x) * other
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias_O, "mul")

"""The record of a model's backend, which every kernel reads; `tiltyard.kernels.backend` chooses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ops = Literal["cpu_c", "torch"]
Linear = Literal["mkl", "onednn", "blas", "bfloat16"]
Decoder = Literal["native", "fused", "modules"]
OPS_NAMES = {"cpu_c": "C kernels", "torch": "torch ops"}
LINEAR_NAMES = {"mkl": "MKL", "onednn": "oneDNN", "blas": "torch's BLAS", "bfloat16": "products in bfloat16"}
DECODER_NAMES = {"native": "in C", "fused": "in fused torch calls", "modules": "by transformers' modules"}


@dataclass(frozen=True)
class Backend:
    """A model's backend.

    Attributes:
        ops, linear, decoder: see `tiltyard.kernels.backend`.
        why_ops, why_linear: the reasons, for people.
    """

    ops: Ops = "torch"
    linear: Linear = "mkl"
    decoder: Decoder = "modules"
    why_ops: str = ""
    why_linear: str = ""

    @property
    def why(self) -> str:
        """The reasons in one text."""
        return "; ".join(filter(None, (self.why_ops, self.why_linear)))

    def native(self, *tensors: Tensor) -> bool:
        """Returns True if the C kernels compute on these tensors."""
        return self.ops == "cpu_c" and all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)

    def describe(self) -> str:
        """Returns one line for people: `C kernels, linear layers by oneDNN, decoding in C (why)`."""
        what = f"{OPS_NAMES[self.ops]}, linear layers by {LINEAR_NAMES[self.linear]}, decoding "
        return what + DECODER_NAMES[self.decoder] + (f" ({self.why})" if self.why else "")


TORCH = Backend()

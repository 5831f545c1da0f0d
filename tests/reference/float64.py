"""A Llama that is float64 throughout.

transformers' LlamaRMSNorm computes in float32 whatever the model's dtype, so two equal float64 computations that differ
in the last bit (packed and padded, say) can part ways at 1e-8, and Adam makes more of it. Comparisons "number for
number" run both sides under `exact_norms()`. Rotary angles are float32 too, but depend on positions alone. Attention
must be `sdpa` (the default): transformers' eager attention takes its softmax in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm


def _forward(self: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@contextmanager
def exact_norms() -> Iterator[None]:
    """Every Llama norm inside the `with` keeps its input's dtype."""
    with mock.patch.object(LlamaRMSNorm, "forward", _forward):
        yield

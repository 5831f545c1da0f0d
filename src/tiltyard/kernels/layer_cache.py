"""The decoding cache as attention uses it, layer by layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class LayerCache(Protocol):
    """Keys and values of the rows that are being decoded (`tiltyard.sampling.slots`)."""

    def prefill(self, layer: int, key_HTD: Tensor, value_HTD: Tensor) -> None:
        """Stores the packed prompts' keys and values of one layer."""

    def attend(
        self,
        layer: int,
        q: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Appends one token a row and returns its attention over the row's cache: [rows, H, D]."""

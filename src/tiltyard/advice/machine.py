"""The machine: threads, memory, a GPU, and whether the processor multiplies bfloat16 numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tiltyard.kernels.backend import has_bfloat16
from tiltyard.models.pretrained import pick_device
from tiltyard.sampling.hidden import free_memory


class Machine(NamedTuple):
    """The device that trains; `memory`: free bytes on it; `bfloat16`: products in bfloat16 may be faster there."""

    device: str
    threads: int
    memory: int
    bfloat16: bool

    def words(self) -> str:
        """One line for people."""
        place = "GPU" if self.device != "cpu" else f"{self.threads} CPU thread{'' if self.threads == 1 else 's'}"
        products = ", bfloat16 products" if self.bfloat16 else ""
        return f"{place}, {self.memory / 2**30:.1f} GiB of memory free{products}"


def this_machine(device: str = "auto") -> Machine:
    """The machine that this process runs on."""
    chosen = pick_device(device)
    half = torch.cuda.is_bf16_supported() if chosen.type == "cuda" else has_bfloat16()
    return Machine(chosen.type, torch.get_num_threads(), free_memory(chosen), half)

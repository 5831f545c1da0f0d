"""Random numbers of sampling: one seed a response, and a stream of uniform numbers for each seed.

The number for a token is a hash of (seed, index of the token). So a response depends on its own seed alone: not on the
prompts beside it, their order, how many processes share them or how many responses are decoded at a time; and nothing
has to be stored between tokens. The hash is that of splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom
number generators"): a counter that grows by the golden ratio's bits, and Stafford's 13th mixing function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1
SEED_BITS = 63  # of a seed: it fits into a signed integer


class UniformStream:
    """Uniform numbers in [0, 1) for each of many seeds, computed when they are asked for.

    Args:
        seeds: one a response, in [0, 2^63).
        device: where the numbers are used.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.state_R = _mixed(torch.tensor(list(seeds), dtype=torch.int64, device=device))

    def uniform_R(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """The numbers of these rows for these tokens: [len(rows)] in float64.

        Args:
            rows: indices into the seeds. tokens: index of the token within each row's response.
        """
        hash_R = _mixed(self.state_R[rows] + (tokens + 1) * _signed(_GOLDEN))
        return ((hash_R >> 11) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53


def response_seeds(prompts: Sequence[int], n: int, *keys: int) -> list[int]:
    """One seed for each response: a hash of the keys, the prompt's index and the response's index.

    Args:
        prompts: indices of the prompts within the whole step, over all processes.
        n: responses a prompt.
        keys: what else tells one call from another, e.g. the run's seed, the step.

    Returns:
        len(prompts) * n seeds in [0, 2^63), all responses of a prompt together.
    """
    state = 0
    for key in keys:
        state = _mixed_int((state + _GOLDEN) ^ (key & _MASK))
    index = np.asarray(list(prompts), dtype=np.uint64)
    prompt_G = _mixed_numpy(np.uint64(state) + (index + np.uint64(1)) * np.uint64(_GOLDEN))
    response_n = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    seed_R = _mixed_numpy((prompt_G[:, None] + response_n[None]).ravel())
    return (seed_R >> np.uint64(64 - SEED_BITS)).tolist()


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _mixed(z: Tensor) -> Tensor:
    """splitmix64's mixing function on int64 tensors, whose products wrap around; shifts bring in zeros."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _signed(_FACTORS[0])
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _signed(_FACTORS[1])
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def _mixed_numpy(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FACTORS[0])
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_FACTORS[1])
    return z ^ (z >> np.uint64(31))


def _mixed_int(z: int) -> int:
    z &= _MASK
    z = ((z ^ (z >> 30)) * _FACTORS[0]) & _MASK
    z = ((z ^ (z >> 27)) * _FACTORS[1]) & _MASK
    return z ^ (z >> 31)

"""How answers are drawn, and where the randomness comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tiltyard.errors import ConfigError


@dataclass(frozen=True)
class SampleSettings:
    """The sampling law.

    Args:
        temperature: logits are divided by it; 0 takes the most probable token.
        top_p: smallest set of tokens whose probability reaches top_p; 1 keeps all.
        top_k: the k most probable tokens; 0 keeps all.
        max_tokens: longest answer, end-of-turn token included.
        stop: an answer ends where one of these strings appears (the string is cut from its text, not from its ids).
        max_concurrent: answers decoded at the same time; bounds memory.
        keep_hidden: record the hidden states that predicted each token, see `types.Response.hidden`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    max_concurrent: int = 256
    keep_hidden: bool = False

    @property
    def whole(self) -> bool:
        """Whether every token may be drawn, so that the log-probs are those of the model at this temperature."""
        return self.temperature > 0 and self.top_p >= 1 and self.top_k == 0

    def __post_init__(self) -> None:
        bounds = {
            "temperature": (self.temperature >= 0, ">= 0"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, ">= 0 (0 keeps all)"),
            "max_tokens": (self.max_tokens >= 1, ">= 1"),
            "max_concurrent": (self.max_concurrent >= 1, ">= 1"),
        }
        for key, (fine, expected) in bounds.items():
            if not fine:
                raise ConfigError("sampling setting out of range", where=key, got=getattr(self, key), expected=expected)


@dataclass(frozen=True)
class Draws:
    """One uniform number for each token of each answer, the same however prompts are shared among processes.

    Args:
        generator: freshly seeded for this call. total: prompts of the whole step, over all processes.
        n: answers a prompt. index: place of each own prompt in the whole step's list.
    """

    generator: torch.Generator
    total: int
    n: int
    index: Sequence[int] = field(default=())

    def uniforms(self, tokens: int) -> Tensor:
        """[own prompts * n, tokens] in [0, 1), float64."""
        everything = torch.rand(self.total, self.n, tokens, generator=self.generator, dtype=torch.float64)
        return everything[list(self.index)].flatten(0, 1)


def draws_for(seed: int, prompts: int, n: int) -> Draws:
    """Draws for a single process that answers all the prompts."""
    return Draws(torch.Generator().manual_seed(seed), prompts, n, range(prompts))

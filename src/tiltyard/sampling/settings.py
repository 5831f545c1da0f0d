"""The settings of sampling: the distribution of the next token, and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tiltyard.errors import ConfigError


@dataclass(frozen=True)
class SampleSettings:
    """The distribution that responses are sampled from, and the limits of a response.

    Args:
        temperature: logits are divided by it; 0 takes the most probable token.
        top_p: smallest set of tokens whose probability reaches top_p; 1 keeps all.
        top_k: the k most probable tokens; 0 keeps all.
        max_tokens: longest response, end-of-turn token included.
        stop: a response ends with the token that completes one of these strings. Its text ends before the string, its
            ids and log-probs hold it, so that what is trained is what was sampled (as `stop_strings` in transformers).
        max_concurrent: responses decoded at the same time; bounds memory.
        keep_hidden: record the hidden states that predicted each token, where the sampler can, see
            `types.Response.hidden` and `hidden.hidden_state_bytes`.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    max_concurrent: int = 256
    keep_hidden: bool = False

    @property
    def is_untruncated(self) -> bool:
        """True if every token may be sampled, so that the log-probs are those of the model at this temperature."""
        return self.temperature > 0 and self.top_p >= 1 and self.top_k == 0

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ConfigError(
                "a stop string must be a string that is not empty",
                where="stop",
                got=repr(self.stop),
                expected="a list of strings, each of at least one character",
                fix="leave stop out to end responses at the model's own end tokens alone",
            )
        object.__setattr__(self, "stop", tuple(self.stop))
        bounds = {
            "temperature": (0 <= self.temperature < math.inf, ">= 0, finite"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, ">= 0 (0 keeps all)"),
            "max_tokens": (self.max_tokens >= 1, ">= 1"),
            "max_concurrent": (self.max_concurrent >= 1, ">= 1"),
        }
        for key, (fine, expected) in bounds.items():
            if not fine:
                raise ConfigError("sampling setting out of range", where=key, got=getattr(self, key), expected=expected)

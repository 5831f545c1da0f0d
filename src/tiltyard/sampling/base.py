"""The protocol of everything that samples responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from tiltyard.errors import ConfigError, DataError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling.settings import SampleSettings
from tiltyard.types import Group, Prompt


class Capabilities(NamedTuple):
    """Properties of a sampler's responses.

    `logps`: log-probs under the distribution that was sampled from (after temperature, top-k and top-p), or none.
    `hidden`: the model's last hidden states, where `SampleSettings.keep_hidden` asks for them.
    `fork`: running responses can be duplicated (particle methods).
    `exact`: the log-probs are those of the trainer's forward pass but for rounding; another program's are not.
    `weights`: the processes that need the model's weights: every one, or the first, which gives them to an engine.
    """

    logps: Literal["sampling", "none"] = "sampling"
    hidden: bool = False
    fork: bool = False
    exact: bool = True
    weights: Literal["every", "first"] = "every"


class Sampler(Protocol):
    """Samples responses from the model that it was last synchronised with."""

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seeds: Sequence[int]
    ) -> list[Group]:
        """`n` responses to each prompt, in the order of the prompts.

        A response depends on the model, its prompt, the settings and its own seed, and on nothing else. All processes
        call it together, also one without prompts: the model's parameters may be spread over them.

        Args:
            prompts: encoded prompts.
            n: responses a prompt.
            sampling: the distribution that is sampled from, and its limits.
            seeds: one a response, len(prompts) * n, see `streams.response_seeds`.
        """

    def sync(self, model: LanguageModel, version: int) -> None:
        """Samples from these weights from now on. `version` counts the policy's updates."""

    def close(self) -> None:
        """Ends what runs beside the trainer; `sync` starts it again."""


def check_request(prompts: Sequence[Prompt], n: int, seeds: Sequence[int]) -> None:
    """Raises a ConfigError for fewer than one response a prompt, or not one seed a response."""
    if n < 1:
        raise ConfigError("too few responses a prompt", where="n", got=n, expected="at least 1")
    if len(seeds) != n * len(prompts):
        raise ConfigError(
            "sampling needs one seed a response",
            where="seeds",
            got=f"{len(seeds)} seeds",
            expected=f"{len(prompts)} prompts, {n} responses each",
        )


def longest_response(model: LanguageModel, prompt: Prompt, settings: SampleSettings) -> int:
    """Returns the number of tokens that a response to this prompt may have.

    Raises:
        DataError: a prompt that was not encoded, or that fills the model's context.
    """
    if not prompt.ids:
        raise DataError("prompt has no token ids", where=prompt.id, fix="encode it with Chat.encode_prompt")
    limit = model.chat.max_length
    longest = settings.max_tokens if limit is None else min(settings.max_tokens, limit - len(prompt.ids))
    if longest < 1:
        raise DataError(
            "the prompt fills the model's context: there is no token left for a response",
            where=prompt.id,
            got=f"{len(prompt.ids)} tokens",
            expected=f"fewer than {limit}",
            fix="set max_prompt lower, or too_long=truncate",
        )
    return longest

"""The protocol of everything that samples responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from tiltyard.models.language import LanguageModel
from tiltyard.sampling.settings import SampleSettings
from tiltyard.types import Group, Prompt


class Capabilities(NamedTuple):
    """Properties of a sampler's responses.

    `logps`: log-probs under the distribution that was sampled from (after temperature, top-k and top-p), or none.
    `hidden`: the model's last hidden states, where `SampleSettings.keep_hidden` asks for them.
    `fork`: running responses can be duplicated (particle methods).
    """

    logps: Literal["sampling", "none"] = "sampling"
    hidden: bool = False
    fork: bool = False


class Sampler(Protocol):
    """Samples responses from the model that it was last synchronised with."""

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seeds: Sequence[int]
    ) -> list[Group]:
        """`n` responses to each prompt, in the order of the prompts.

        A response depends on the model, its prompt, the settings and its own seed, and on nothing else.

        Args:
            prompts: encoded prompts.
            n: responses a prompt.
            sampling: the distribution that is sampled from, and its limits.
            seeds: one a response, len(prompts) * n, see `streams.response_seeds`.
        """

    def sync(self, model: LanguageModel, version: int) -> None:
        """Samples from these weights from now on. `version` counts the policy's updates."""

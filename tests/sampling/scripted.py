"""Samplers made of functions, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tiltyard.sampling import Capabilities, SampleSettings
from tiltyard.types import Group, Prompt


class ScriptedSampler:
    """Args: function: (model, prompts, n, settings, seeds) -> groups."""

    capabilities = Capabilities(logps="none")

    def __init__(self, function: Callable[..., list[Group]]):
        self.function, self.model, self.version = function, None, -1

    def sync(self, model: Any, version: int) -> None:
        self.model, self.version = model, version

    def close(self) -> None:
        """Nothing runs beside the trainer."""

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seeds: Sequence[int]
    ) -> list[Group]:
        return self.function(self.model, prompts, n, sampling, seeds)

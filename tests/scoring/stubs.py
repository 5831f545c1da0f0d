"""A scorer made of a function of all the groups, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tiltyard.scoring import Cost, Scale
from tiltyard.types import Group


class Scripted:
    """Args: score: groups to groups."""

    def __init__(self, score: Callable[[list[Group]], list[Group]], name: str = "scripted"):
        self._score, self.scale, self.name = score, Scale(), name

    def score(self, groups: Sequence[Group]) -> list[Group]:
        return self._score(list(groups))

    def take_cost(self) -> Cost:
        return Cost()

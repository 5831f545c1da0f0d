"""Where a step's groups come from: a file, or prompts answered now.

Both are pure functions of the step number and the seed, so a resumed run draws what the uninterrupted one would have,
and several processes share one draw: each takes its part of the same list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from tiltyard.errors import DataError
from tiltyard.models import parallel
from tiltyard.sampling.settings import Draws, SampleSettings
from tiltyard.training.algorithm import Draw, Models
from tiltyard.types import Group, Prompt

Item = TypeVar("Item")
Sampler = Callable[..., list[Group]]
Scorer = Callable[[Models, list[Group]], list[Group]]
Select = Callable[[list[Group]], list[Group]]


def generator(*keys: int) -> torch.Generator:
    """A generator whose stream depends on all keys (seed, step, epoch, ...) and on nothing else."""
    mixed = 0x9E3779B97F4A7C15
    for key in keys:
        mixed = ((mixed ^ (key & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed & 0x7FFFFFFFFFFFFFFF)


class Cycle(Sequence[Item]):
    """Items in a fresh random order each epoch; `at(step, batch)` is a pure function, no state to lose."""

    def __init__(self, items: Sequence[Item], seed: int):
        if not items:
            raise DataError("there is nothing to draw from", fix="check the data of this stage")
        self.items, self.seed = items, seed
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        epoch, at = divmod(place, len(self.items))
        if self._order[0] != epoch:
            order = torch.randperm(len(self.items), generator=generator(self.seed, 1, epoch)).tolist()
            self._order = (epoch, order)
        return self.items[self._order[1][at]]

    def at(self, step: int, batch: int) -> list[Item]:
        return [self[place] for place in range(step * batch, (step + 1) * batch)]


class Offline:
    """Groups of a file, `batch` a step.

    Args:
        groups: encoded groups. batch: groups a step over all processes. seed: of the order.
    """

    def __init__(self, groups: Sequence[Group], batch: int, seed: int = 0):
        self.cycle, self.batch = Cycle(groups, seed), batch

    def __call__(self, models: Models, step: int) -> Draw:  # noqa: ARG002 - offline: the models do not matter
        own = parallel.shard(self.cycle.at(step, self.batch))
        return Draw([group for _, group in own], [i for i, _ in own], self.batch)


@dataclass
class Online:
    """Prompts answered by the policy as it is now, scored, and selected.

    Args:
        prompts: encoded prompts. sampler: see `tiltyard.sampling`. scorer: adds scores (or ranks).
        batch: prompts a step over all processes. n: answers a prompt. select: e.g. best against worst.
    """

    prompts: Sequence[Prompt]
    sampler: Sampler
    scorer: Scorer
    batch: int
    n: int = 1
    settings: SampleSettings = field(default_factory=SampleSettings)
    select: Select | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.cycle = Cycle(self.prompts, self.seed)

    def __call__(self, models: Models, step: int) -> Draw:
        own = parallel.shard(self.cycle.at(step, self.batch))
        index = [i for i, _ in own]
        draws = Draws(generator(self.seed, 2, step), self.batch, self.n, index)
        groups = self.sampler(models.get("policy"), [p for _, p in own], self.n, self.settings, draws=draws)
        groups = [
            replace(
                group,
                origin=f"policy@{models.version}",
                responses=tuple(replace(r, policy_version=models.version) for r in group.responses),
            )
            for group in groups
        ]
        groups = self.scorer(models, groups) if groups else groups
        if self.select is None:
            return Draw(groups, index, self.batch)
        groups = self.select(groups)  # may drop groups or make several of one: places are counted anew
        counts = parallel.gather_objects(len(groups))
        first = sum(counts[: parallel.rank()])
        return Draw(groups, list(range(first, first + len(groups))), sum(counts))

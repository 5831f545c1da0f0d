"""A source of pairs: the data's responses against those of an opponent that the policy was (SPIN)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tiltyard.distributed import processes
from tiltyard.errors import ConfigError
from tiltyard.sampling.base import Sampler
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.streams import response_seeds
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.training.source import EpochShuffle, Order, generate
from tiltyard.types import Group, Preference


@dataclass
class SelfPlay:
    """Demonstrations against responses of the opponent `models.ref`, which the method renews every few steps (SPIN).

    Each group is a pair: the data's response (rank 1) and the opponent's (rank 2), sampled at the step that uses it. Of
    a demonstration of several turns the first is taken.

    Args:
        groups: encoded demonstrations. sampler, settings: how the opponent's responses are sampled.
        every: steps an iteration has; `iteration` counts them from 0.
    """

    groups: Sequence[Group]
    sampler: Sampler
    prompts_per_step: int
    every: int
    settings: SampleSettings = field(default_factory=SampleSettings)
    seed: int = 0
    iteration: int = 0
    reads_ref: bool = True
    order: Order = "shuffle"

    def __post_init__(self) -> None:
        self.shuffle = EpochShuffle(self.groups, self.seed, self.order)
        if self.every < 1:
            raise ConfigError("an iteration needs at least one step", where="every", got=self.every)

    def __call__(self, models: Models, step: int) -> StepGroups:
        self.iteration = step // self.every
        own = [(i, _first_turn(g)) for i, g in processes.shard(self.shuffle.batch_at(step, self.prompts_per_step))]
        index = [i for i, _ in own]
        self.sampler.sync(models["ref"], self.iteration)
        seeds = response_seeds(index, 1, self.seed, 2, step)
        sampled = generate(self.sampler, [g.prompt for _, g in own], 1, self.settings, seeds)
        pairs = []
        for (_, group), other in zip(own, sampled, strict=True):
            opponent = replace(other.responses[0], policy_version=self.iteration)
            origin = f"{group.origin} against iteration {self.iteration}"
            pairs.append(
                replace(
                    group, responses=(group.responses[0], opponent), preference=Preference(ranks=(1, 2)), origin=origin
                )
            )
        return StepGroups(pairs, index, self.prompts_per_step)


def _first_turn(group: Group) -> Group:
    """The demonstration with its first turn only."""
    response = group.responses[0]
    if response.loss_spans is not None:
        response = replace(response, ids=response.ids[: response.loss_spans[0][1]], loss_spans=None)
    return replace(group, responses=(response,), scores=None)

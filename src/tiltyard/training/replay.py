"""Training again on the samples of a run: the same responses with the same scores; no sampler and no judge are needed.

For another learning rate, another loss, or to see whether a change of the code changes a run. With nothing changed the
replayed run is the run itself, bit for bit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.runs.groups import read_step_groups
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.training.source import Online, sampled_metrics
from tiltyard.types import Group


@dataclass
class Replayed(Online):
    """An `Online` that hands out stored groups instead of sampling."""

    stored: Mapping[int, Sequence[Group]] = field(default_factory=dict)

    def __call__(self, models: Models, step: int) -> StepGroups:  # noqa: ARG002 - what was sampled is no longer the policy's
        self.check(step)
        own = processes.shard(self.stored[step])
        groups = [group for _, group in own]
        metrics = {**sampled_metrics(groups), **(self.watch(groups) if self.watch else {})}
        del metrics["sampled"]  # nothing was
        return StepGroups(groups, [i for i, _ in own], len(self.stored[step]), metrics)

    def check(self, step: int) -> None:
        """Raises a DataError if nothing was stored for this step (counted from 0)."""
        if step not in self.stored:
            raise DataError(
                f"nothing was stored for step {step + 1}",
                got=f"steps 1 to {max(self.stored, default=-1) + 1}",
                fix="set steps to at most that, or sample on without replay",
            )


def replayed(source: Online, path: Path, steps: int = 0) -> Replayed:
    """The source with the groups of a run's `groups.jsonl` in place of its sampler.

    Args:
        steps: how many are wanted; an error now, and not when they run out. 0: unknown.
    """
    given = {f.name: getattr(source, f.name) for f in fields(Online)}
    source = Replayed(**given, stored=stored_groups(path))
    for step in range(steps):
        source.check(step)
    return source


def stored_groups(path: Path) -> dict[int, list[Group]]:
    """Returns the stored groups of each step, counted from 0. An incomplete last line, left by a kill, is skipped.

    Raises:
        DataError: no such file, or a line that is not a group with its step.
    """
    groups: dict[int, list[Group]] = defaultdict(list)
    for step, group in read_step_groups(path):
        groups[step - 1].append(group)
    return dict(groups)

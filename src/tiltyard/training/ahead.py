"""`Ahead`: responses are sampled for later steps while the trainer learns from earlier ones.

With `max_staleness` k the batch of step t is sampled by the policy before step max(0, t - k): that depends on the
numbers of the steps alone, never on which of the two is faster, so a run can be repeated and resumed bit for bit.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from tiltyard.batch.batch import Metrics
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError
from tiltyard.profiler import add_count, record
from tiltyard.runs.groups import group_from_dict, group_to_dict
from tiltyard.sampling.background import Background
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.training.source import Online, with_version
from tiltyard.types import Group, Prompt


class _Batch(NamedTuple):
    """This process's part of a batch that has been asked for: places in the whole of it, and the groups to come."""

    version: int  # of the policy that answers
    places: list[int]
    groups: Future[list[Group]]


@dataclass
class Ahead(Online):
    """An `Online` whose sampler works in a thread, up to `max_staleness` updates of the policy ahead.

    Responses carry the version of the policy that they come from and its log-probs, from which policy gradients compute
    importance weights. A batch that would be older is dropped and sampled anew. A batch is scored when it is learnt
    from, by the scorer as it is then; further tries of dynamic sampling come from the policy as it is then. A
    checkpoint waits for the batches that are being sampled and holds them.

    Metrics: `staleness` and `staleness_max`, versions between the policy that answered and the one that learns;
    `queue`, batches in advance when a step begins; `time/waited`, seconds that the trainer waited for responses;
    `time/ready`, batches of the queue that were sampled already.

    Args:
        max_staleness: versions; 0 samples in the thread and waits, bit for bit what `Online` does.
        steps: of the run: nothing is sampled for steps after it; 0: unknown.
    """

    max_staleness: int = 1
    steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_staleness < 0:
            raise ConfigError("a bound on age is a number of updates", where="max_staleness", got=self.max_staleness)
        if not isinstance(self.sampler, Background):
            self.sampler = Background(self.sampler, stale=self.max_staleness > 0)
        self._queue: dict[int, _Batch] = {}
        self._waited = 0.0

    def __call__(self, models: Models, step: int) -> StepGroups:
        self._waited = 0.0
        self._drop(models.version - step)
        last = min(step + self.max_staleness, self.steps - 1 if self.steps else step + self.max_staleness)
        metrics: Metrics = {
            "queue": (float(len(self._queue)), 1.0),
            "time/ready": (float(sum(batch.groups.done() for batch in self._queue.values())), 1.0),
        }
        for later in range(step, last + 1):
            if later not in self._queue:
                self._queue[later] = self._ask(models, *self._first(later))
        drawn = super().__call__(models, step)
        ages = [models.version - (r.policy_version or 0) for g in drawn.groups for r in g.responses]
        metrics["staleness"] = (float(sum(ages)), float(len(ages)))
        metrics["staleness_max"] = (float(max(ages, default=0)), 1.0)
        metrics["time/waited"] = (self._waited, 1.0)
        return drawn._replace(metrics={**drawn.metrics, **metrics})

    def _drop(self, offset: int) -> None:
        """Drops batches that are behind, or would be older than `max_staleness` when they are learnt from."""
        for step, batch in list(self._queue.items()):
            if offset + step - batch.version > self.max_staleness:
                del self._queue[step]

    def _first(self, step: int) -> tuple[int, ...]:
        """The number of a step's first batch, and the keys of its random numbers."""
        return (step * self.tries, step, 0) if self.tries else (step, step)

    def _ask(self, models: Models, number: int, *keys: int) -> _Batch:
        index, prompts, seeds = self._asked(number, *keys)
        model, sampling = models[self.sample_from], self._sampling(models)
        assert isinstance(self.sampler, Background)
        request = (prompts, self.samples_per_prompt, sampling, seeds)
        return _Batch(models.version, index, self.sampler.submit(model, models.version, *request))

    def _sampled_batch(self, models: Models, number: int, *keys: int) -> tuple[list[int], list[Group]]:
        first = (number, *keys) == self._first(keys[0])
        batch = self._queue.pop(keys[0]) if first else self._ask(models, number, *keys)
        start = time.perf_counter()
        with record("sample"):
            groups = batch.groups.result()
        self._waited += time.perf_counter() - start
        add_count("sampled", sum(len(r.ids) for g in groups for r in g.responses))
        return batch.places, [with_version(group, batch.version) for group in groups]

    def state_dict(self) -> dict[str, Any]:
        """The state of `Online`, and the batches of all processes; waits until they are sampled."""
        return {**super().state_dict(), "queue": {str(step): self._whole(step) for step in sorted(self._queue)}}

    def _whole(self, step: int) -> dict[str, Any] | None:
        """A batch as JSON, without its prompts; None where it could not be sampled."""
        batch = self._queue[step]
        failed = batch.groups.exception() is not None
        own = (
            []
            if failed
            else [(i, replace(g, prompt=Prompt())) for i, g in zip(batch.places, batch.groups.result(), strict=True)]
        )
        parts = processes.gather_objects(None if failed else [(i, group_to_dict(g)) for i, g in own])
        if any(part is None for part in parts):
            return None
        rows = sorted(((i, row) for part in parts for i, row in part or ()), key=lambda pair: pair[0])
        return {"version": batch.version, "groups": [row for _, row in rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A resumed run learns from the batches that the checkpoint holds, on however many processes."""
        super().load_state_dict(state)
        self._queue = {}
        for step, whole in state.get("queue", {}).items():
            if whole is None:
                continue
            prompts = self.shuffle.batch_at(self._first(int(step))[0], self.prompts_per_step)
            groups = [
                replace(group_from_dict(row), prompt=prompt)
                for prompt, row in zip(prompts, whole["groups"], strict=True)
            ]
            own, found = processes.shard(groups), Future[list[Group]]()
            found.set_result([group for _, group in own])
            self._queue[int(step)] = _Batch(whole["version"], [i for i, _ in own], found)


def ahead(source: Online, max_staleness: int, steps: int = 0) -> Ahead:
    """Returns the source with its sampler in a thread.

    Args:
        max_staleness, steps: see `Ahead`.
    """
    given = {f.name: getattr(source, f.name) for f in fields(Online)}
    return Ahead(**given, max_staleness=max_staleness, steps=steps)

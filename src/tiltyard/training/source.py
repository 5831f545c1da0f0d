"""Where a step's groups come from: a file, or prompts answered now.

Both are pure functions of the step number and the seed, so a resumed run draws what the uninterrupted one would have,
and several processes share one draw: each takes its part of the same list.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch

from tiltyard.batch.batch import Metrics
from tiltyard.data import GroupFile
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError, DataError
from tiltyard.models.language import LanguageModel
from tiltyard.profiler import add_count, record
from tiltyard.sampling.settings import Draws, SampleSettings
from tiltyard.scoring.base import Scorer, scorer_metrics
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.types import Group, Prompt

Item = TypeVar("Item")
Sampler = Callable[..., list[Group]]
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
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        return self.items[self.which(place)]

    def which(self, place: int) -> int:
        """Which of the items stands at a place of the endless order."""
        epoch, at = divmod(place, len(self.items))
        if self._order[0] != epoch:
            order = torch.randperm(len(self.items), generator=generator(self.seed, 1, epoch))
            self._order = (epoch, order.numpy())  # 8 bytes an item, where a list of ints has 40
        return int(self._order[1][at])

    def at(self, step: int, batch: int) -> list[Item]:
        return [self[place] for place in range(step * batch, (step + 1) * batch)]


class Offline:
    """Groups of a file, `batch` a step, or as many as have `tokens_per_step` tokens.

    Args:
        groups: encoded groups; a list, or a `GroupFile` of more than memory holds.
        prompts_per_step: groups a step over all processes. seed: of the order.
        tokens_per_step: instead, each step takes the next groups of the order while they have at most so many packed
            tokens together, and one at least: steps of long and of short groups then cost alike. 0: `batch` groups.
    """

    def __init__(self, groups: Sequence[Group], prompts_per_step: int, seed: int = 0, tokens_per_step: int = 0):
        self.cycle, self.prompts_per_step, self.tokens_per_step = Cycle(groups, seed), prompts_per_step, tokens_per_step
        self._begins = array("q", [0])  # where in the endless order each step begins, as far as was asked
        self._tokens = _tokens_of(groups) if tokens_per_step else np.zeros(0, dtype=np.int64)

    def __call__(self, models: Models, step: int) -> StepGroups:  # noqa: ARG002 - offline: the models do not matter
        chosen = self.chosen(step)
        own = processes.shard(chosen)  # places first: a process reads no group that is another's
        return StepGroups([self.cycle.items[place] for _, place in own], [i for i, _ in own], len(chosen))

    def chosen(self, step: int) -> list[int]:
        """Which of the groups a step learns from, in order."""
        return [self.cycle.which(place) for place in range(self._begin(step), self._begin(step + 1))]

    def steps(self, epochs: float) -> int:
        """How many steps it takes to go through the groups so many times."""
        wanted = epochs * len(self.cycle)
        if not self.tokens_per_step:
            return max(1, round(wanted / self.prompts_per_step))
        step = 1
        while self._begin(step) < wanted:
            step += 1
        return step

    def read_in(self, steps: int) -> np.ndarray:
        """Which of the groups the first `steps` steps learn from, each once, in the file's order."""
        end = self._begin(steps)
        if end >= len(self.cycle):
            return np.arange(len(self.cycle))
        return np.unique([self.cycle.which(place) for place in range(end)])

    def _begin(self, step: int) -> int:
        """Where in the endless order a step begins. With a budget that follows from all steps before, so it is kept."""
        if not self.tokens_per_step:
            return step * self.prompts_per_step
        while len(self._begins) <= step:
            place, held = self._begins[-1], 0
            while not held or held + self._tokens[self.cycle.which(place)] <= self.tokens_per_step:
                held += int(self._tokens[self.cycle.which(place)])
                place += 1
            self._begins.append(place)
        return self._begins[step]


def _tokens_of(groups: Sequence[Group]) -> np.ndarray:
    return groups.tokens if isinstance(groups, GroupFile) else np.fromiter((g.tokens for g in groups), dtype=np.int64)


@dataclass
class SelfPlay:
    """Demonstrations against answers of the opponent `models.ref`, which the method renews every `every` steps (SPIN).

    Each group is a pair: the data's answer (rank 1) and the opponent's (rank 2), drawn when its turn comes. Of a
    demonstration of several turns the first is taken.

    Args:
        groups: encoded demonstrations. sampler, settings: the law of the opponent's answers.
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

    def __post_init__(self) -> None:
        self.cycle = Cycle(self.groups, self.seed)
        if self.every < 1:
            raise ConfigError("an iteration needs at least one step", where="every", got=self.every)

    def __call__(self, models: Models, step: int) -> StepGroups:
        self.iteration = step // self.every
        own = [(i, _first_turn(g)) for i, g in processes.shard(self.cycle.at(step, self.prompts_per_step))]
        index = [i for i, _ in own]
        draws = Draws(generator(self.seed, 2, step), self.prompts_per_step, 1, index)
        answers = answered(self.sampler, models.get("ref"), [g.prompt for _, g in own], 1, self.settings, draws)
        pairs = []
        for (_, group), answer in zip(own, answers, strict=True):
            opponent = replace(answer.responses[0], policy_version=self.iteration)
            origin = f"{group.origin} against iteration {self.iteration}"
            pairs.append(replace(group, responses=(group.responses[0], opponent), ranks=(1, 2), origin=origin))
        return StepGroups(pairs, index, self.prompts_per_step)


def _first_turn(group: Group) -> Group:
    """The demonstration with its first turn only."""
    response = group.responses[0]
    if response.loss_spans is not None:
        response = replace(response, ids=response.ids[: response.loss_spans[0][1]], loss_spans=None)
    return replace(group, responses=(response,), scores=None)


@dataclass
class Online:
    """Prompts answered by the policy as it is now, scored, and selected.

    Args:
        prompts: encoded prompts. sampler: see `tiltyard.sampling`. scorer: adds scores (or ranks).
        prompts_per_step: prompts a step over all processes. samples_per_prompt: responses a prompt. select: e.g. best
            against worst.
        watch: what else is measured on the answers. tries: dynamic sampling, at most so many draws a step; 0: none.
    """

    prompts: Sequence[Prompt]
    sampler: Sampler
    scorer: Scorer
    prompts_per_step: int
    samples_per_prompt: int = 1
    settings: SampleSettings = field(default_factory=SampleSettings)
    select: Select | None = None
    seed: int = 0
    watch: Callable[[list[Group]], Metrics] | None = None
    tries: int = 0

    def __post_init__(self) -> None:
        self.cycle = Cycle(self.prompts, self.seed)

    def __call__(self, models: Models, step: int) -> StepGroups:
        if self.tries:
            groups, index, count, metrics = self._differing(models, step)
        else:
            index, groups = self._answered(models, step, step)
            count, metrics = self.prompts_per_step, {}
        watched = self.watch(groups) if self.watch else {}
        metrics = {**metrics, **sampled_metrics(groups), **scorer_metrics(self.scorer), **watched}
        if self.select is None:
            return StepGroups(groups, index, count, metrics)
        groups = self.select(groups)  # may drop groups or make several of one: places are counted anew
        counts = processes.gather_objects(len(groups))
        first = sum(counts[: processes.rank()])
        return StepGroups(groups, list(range(first, first + len(groups))), sum(counts), metrics)

    def _answered(self, models: Models, place: int, *keys: int) -> tuple[list[int], list[Group]]:
        """This process's part of the `place`th batch of prompts: (places in it, groups with answers and scores)."""
        own = processes.shard(self.cycle.at(place, self.prompts_per_step))
        index = [i for i, _ in own]
        draws = Draws(generator(self.seed, 2, *keys), self.prompts_per_step, self.samples_per_prompt, index)
        law = replace(self.settings, keep_hidden=True)  # the step that learns from the answers need not compute them
        groups = answered(self.sampler, models.get("policy"), [p for _, p in own], self.samples_per_prompt, law, draws)
        groups = [signed(group, models.version) for group in groups]
        return index, scored(self.scorer, groups)

    def _differing(self, models: Models, step: int) -> StepGroups:
        """Dynamic sampling (Yu et al. 2025): the first `batch` groups whose scores are not all equal.

        A step has `tries` batches of prompts to itself and answers one after the other until it has enough, so what it
        draws follows from the seed and the step, however many processes share it.
        """
        sampled: list[Group] = []
        own: dict[tuple[int, int], Group] = {}
        everyone: list[tuple[int, int]] = []
        for attempt in range(self.tries):
            index, groups = self._answered(models, step * self.tries + attempt, step, attempt)
            sampled += groups
            found = {(attempt, i): g for i, g in zip(index, groups, strict=True) if len(set(g.scores or ())) > 1}
            own |= found
            everyone += sorted(key for part in processes.gather_objects(list(found)) for key in part)
            if len(everyone) >= self.prompts_per_step:
                break
        chosen = everyone[: self.prompts_per_step]
        places = [place for place, key in enumerate(chosen) if key in own]
        scores = [s for g in sampled for s in g.scores or ()]
        metrics: Metrics = {
            "dropped_groups": (float(len(sampled) - len(own)), float(len(sampled))),
            "sampled_score": (float(sum(scores)), float(len(scores))),
        }
        return StepGroups([own[chosen[place]] for place in places], places, len(chosen), metrics)


def answered(
    sampler: Sampler, model: LanguageModel, prompts: Sequence[Prompt], n: int, settings: SampleSettings, draws: Draws
) -> list[Group]:
    """The sampler's answers, on the clock."""
    with record("sample"):
        groups = sampler(model, prompts, n, settings, draws=draws)
    add_count("sampled", sum(len(r.ids) for g in groups for r in g.responses))
    return groups


def scored(scorer: Scorer, groups: list[Group]) -> list[Group]:
    """The groups with the scorer's scores, timed; without groups the scorer is not called."""
    with record(f"score/{type(scorer).__name__}"):
        return scorer.score(groups) if groups else groups


def signed(group: Group, version: int) -> Group:
    """The group with the version of the policy that its answers come from."""
    responses = tuple(replace(r, policy_version=version) for r in group.responses)
    return replace(group, origin=f"policy@{version}", responses=responses)


def sampled_metrics(groups: Sequence[Group]) -> Metrics:
    """What every online step shows of its answers: score, best and worst of a prompt, length, share cut, share tied."""
    answers = [r for g in groups for r in g.responses]
    metrics: Metrics = {
        "length": (float(sum(len(r.ids) for r in answers)), float(len(answers))),
        "truncated": (float(sum(r.finish == "length" for r in answers)), float(len(answers))),
        "sampled": (float(len(answers)), float(processes.is_main())),  # adds up over processes
    }
    scored = [g.scores for g in groups if g.scores]
    if scored:
        metrics["score"] = (float(sum(map(sum, scored))), float(sum(map(len, scored))))
    several = [s for s in scored if len(s) > 1]
    if several:
        metrics["score_best"] = (float(sum(map(max, several))), float(len(several)))
        metrics["score_worst"] = (float(sum(map(min, several))), float(len(several)))
        metrics["tied_scores"] = (float(sum(min(s) == max(s) for s in several)), float(len(several)))
    return metrics

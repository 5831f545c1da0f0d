"""Sources of a step's groups: a file (`Offline`), or prompts whose responses are sampled now (`Online`).

Both are pure functions of the step number and the seed, so a resumed run gets the groups that the uninterrupted one
would have got, and several processes share one list: each takes its part of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np
import torch

from tiltyard.batch.batch import Metrics
from tiltyard.data import GroupFile
from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.profiler import add_count, record
from tiltyard.sampling.base import Sampler
from tiltyard.sampling.hidden import HiddenPlan, free_memory, hidden_state_bytes, plan_hidden
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.streams import response_seeds
from tiltyard.scoring.base import Scorer, checked_scores, left_out, matched_groups, scorer_metrics
from tiltyard.stats.refusals import begins_with_refusal
from tiltyard.stats.text import repeated_pairs
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.training.prepare import Correction
from tiltyard.types import Group, Prompt

Item = TypeVar("Item")
Select = Callable[[list[Group]], list[Group]]


def generator(*keys: int) -> torch.Generator:
    """A generator whose stream depends on all keys (seed, step, epoch, ...) and on nothing else."""
    mixed = 0x9E3779B97F4A7C15
    for key in keys:
        mixed = ((mixed ^ (key & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed & 0x7FFFFFFFFFFFFFFF)


Order = Literal["shuffle", "file"]


class EpochShuffle(Sequence[Item]):
    """Items in an endless order, a pure function of the position, so it has no state.

    Args:
        order: `shuffle`: anew each epoch; `file`: as given, each epoch the same (a curriculum).
    """

    def __init__(self, items: Sequence[Item], seed: int, order: Order = "shuffle"):
        if not items:
            raise DataError("there is nothing to take items from", fix="check the data of this stage")
        self.items, self.seed, self.order = items, seed, order
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position):  # type: ignore[no-untyped-def]
        return self.items[self.index_at(position)]

    def index_at(self, position: int) -> int:
        """Index of the item at a position of the endless order."""
        epoch, offset = divmod(position, len(self.items))
        if self.order == "file":
            return offset
        if self._order[0] != epoch:
            order = torch.randperm(len(self.items), generator=generator(self.seed, 1, epoch))
            self._order = (epoch, order.numpy())  # 8 bytes an item, where a list of ints has 40
        return int(self._order[1][offset])

    def batch_at(self, step: int, batch: int) -> list[Item]:
        """The items of a step that takes `batch` of them."""
        return [self[position] for position in range(step * batch, (step + 1) * batch)]


class Offline:
    """Groups of a file, `batch` a step, or as many as have `tokens_per_step` tokens.

    Args:
        groups: encoded groups; a list, or a `GroupFile` of more than memory holds.
        prompts_per_step: groups a step over all processes. seed: of the order.
        tokens_per_step: instead, each step takes the next groups of the order while they have at most this many packed
            tokens together, and one at least: steps of long and of short groups then cost alike. 0: a number of groups.
        order: see `EpochShuffle`.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        prompts_per_step: int,
        seed: int = 0,
        tokens_per_step: int = 0,
        order: Order = "shuffle",
    ):
        self.groups, self.shuffle = groups, EpochShuffle(groups, seed, order)
        self.prompts_per_step, self.tokens_per_step = prompts_per_step, tokens_per_step
        self._begins = array("q", [0])  # first position of each step, as far as computed
        self._tokens = _tokens_of(groups) if tokens_per_step else np.zeros(0, dtype=np.int64)

    def __call__(self, models: Models, step: int) -> StepGroups:  # noqa: ARG002 - offline: the models do not matter
        chosen = self.chosen(step)
        own = processes.shard(chosen)  # indices first: a process reads no group of another
        return StepGroups([self.groups[index] for _, index in own], [i for i, _ in own], len(chosen))

    def chosen(self, step: int) -> list[int]:
        """Indices of the groups of a step, in order."""
        return [self.shuffle.index_at(position) for position in range(self._begin(step), self._begin(step + 1))]

    def steps(self, epochs: float) -> int:
        """Number of steps that go through the groups `epochs` times."""
        positions = epochs * len(self.shuffle)
        if not self.tokens_per_step:
            return max(1, round(positions / self.prompts_per_step))
        step = 1
        while self._begin(step) < positions:
            step += 1
        return step

    def tokens_of(self, step: int) -> list[int]:
        """Packed tokens of each group of a step, in order; no group is read where the file keeps their number."""
        if not len(self._tokens):
            self._tokens = _tokens_of(self.groups)
        return self._tokens[self.chosen(step)].tolist()

    def indices_until(self, steps: int) -> np.ndarray:
        """Indices of the groups of the first `steps` steps, each once, in the file's order."""
        end = self._begin(steps)
        if end >= len(self.shuffle):
            return np.arange(len(self.shuffle))
        return np.unique([self.shuffle.index_at(position) for position in range(end)])

    def _begin(self, step: int) -> int:
        """First position of a step in the endless order; cached with a budget: it follows from the steps before."""
        if not self.tokens_per_step:
            return step * self.prompts_per_step
        while len(self._begins) <= step:
            position, tokens = self._begins[-1], 0
            while not tokens or tokens + self._tokens[self.shuffle.index_at(position)] <= self.tokens_per_step:
                tokens += int(self._tokens[self.shuffle.index_at(position)])
                position += 1
            self._begins.append(position)
        return self._begins[step]


def _tokens_of(groups: Sequence[Group]) -> np.ndarray:
    return groups.tokens if isinstance(groups, GroupFile) else np.fromiter((g.tokens for g in groups), dtype=np.int64)


@dataclass
class Online:
    """Responses that the policy as it is now gives to prompts, scored and selected.

    Args:
        prompts: encoded prompts. sampler, scorer: see `sampling.base` and `scoring.base`.
        prompts_per_step: prompts a step over all processes. samples_per_prompt: responses a prompt.
        select: e.g. the best response against the worst.
        watch: what else is measured on the responses, e.g. `scoring.Monitors`.
        tries: dynamic sampling, at most that many batches of prompts a step; 0: none.
        keep_hidden: the sampler keeps the hidden states that the step needs, see `sampling.hidden`; None: where they
            fit, decided at the first step and kept in the checkpoint.
        least: prompts with fewer responses that the scorer scored are left out (a pair needs both).
        sample_from: the role of the model that responds, where it is not the policy (a proposal); its hidden states are
            not the policy's, so none are kept.
        correction: importance weights of policy gradients, where the sampler's log-probs are not the trainer's.
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
    keep_hidden: bool | None = None
    order: Order = "shuffle"
    least: int = 1
    sample_from: str = "policy"
    correction: Correction = field(default_factory=Correction)

    @property
    def weighted_by(self) -> Correction | None:
        """The correction, where this sampler needs one."""
        exact = self.sampler.capabilities.exact or self.correction.level == "none"
        return None if exact else self.correction

    def __post_init__(self) -> None:
        self.shuffle = EpochShuffle(self.prompts, self.seed, self.order)
        self._left_out: list[tuple[float, float]] = []  # of the batches of the step, see `left_out`

    def __call__(self, models: Models, step: int) -> StepGroups:
        if self.tries:
            groups, index, count, metrics = self._differing(models, step)
        else:
            index, groups = self._scored_batch(models, step, step)
            count, metrics = self.prompts_per_step, {}
        watched = self.watch(groups) if self.watch else {}
        missing, self._left_out = unscored(self._left_out), []
        metrics = {**metrics, **missing, **sampled_metrics(groups), **scorer_metrics(self.scorer), **watched}
        if self.select is None:
            return StepGroups(groups, index, count, metrics)
        groups = self.select(groups)  # may drop groups or make several of one: they are numbered anew
        counts = processes.gather_objects(len(groups))
        first = sum(counts[: processes.rank()])
        return StepGroups(groups, list(range(first, first + len(groups))), sum(counts), metrics)

    def _scored_batch(self, models: Models, number: int, *keys: int) -> tuple[list[int], list[Group]]:
        """This process's part of a batch of prompts: (indices within the batch, groups with responses and scores)."""
        index, groups = self._sampled_batch(models, number, *keys)
        scored = score(self.scorer, groups)  # without those that it could not score
        scored = [group for group in scored if len(group.responses) >= self.least]
        self._left_out.append(left_out(groups, scored))
        return [index[i] for i in matched_groups(groups, scored)], scored

    def _sampled_batch(self, models: Models, number: int, *keys: int) -> tuple[list[int], list[Group]]:
        """This process's part of a batch, with responses; `keys`: of their random numbers, the step first."""
        index, prompts, seeds = self._asked(number, *keys)
        self.sampler.sync(models[self.sample_from], models.version)
        groups = generate(self.sampler, prompts, self.samples_per_prompt, self._sampling(models), seeds)
        return index, [with_version(group, models.version) for group in groups]

    def _asked(self, number: int, *keys: int) -> tuple[list[int], list[Prompt], list[int]]:
        """This process's part of a batch: (indices within it, prompts, a seed for each response)."""
        own = processes.shard(self.shuffle.batch_at(number, self.prompts_per_step))
        index = [i for i, _ in own]
        return index, [p for _, p in own], response_seeds(index, self.samples_per_prompt, self.seed, 2, *keys)

    def _sampling(self, models: Models) -> SampleSettings:
        keep = self.sample_from == "policy" and self._keep_hidden(models)
        return replace(self.settings, keep_hidden=keep)

    def _keep_hidden(self, models: Models) -> bool:
        """True if the sampler keeps hidden states: as set, or decided at the first step and kept for the run."""
        if self.keep_hidden is None:
            plan = self.hidden_plan(models)
            self.keep_hidden = all(processes.gather_objects(plan.keep))
        return self.keep_hidden

    def hidden_plan(self, models: Models) -> HiddenPlan:
        """The plan of keeping hidden states: their memory, and the free memory of this process."""
        policy = models["policy"]
        width = int(policy.module.config.get_text_config().hidden_size)
        size = hidden_state_bytes(self.responses_per_step, self.settings.max_tokens, width, policy.dtype)
        return plan_hidden(self.sampler.capabilities, size, free_memory(policy.device))

    def tokens_of(self, step: int) -> list[int]:
        """Packed tokens of each group of a step, in order, if every response is as long as it may be."""
        answers = self.samples_per_prompt * self.settings.max_tokens
        return [len(p.ids) + answers for p in self.shuffle.batch_at(step, self.prompts_per_step)]

    @property
    def responses_per_step(self) -> int:
        """Responses that this process samples before a step learns from them, at most."""
        return -(-self.prompts_per_step // processes.world()) * max(1, self.tries) * self.samples_per_prompt

    def state_dict(self) -> dict[str, bool | None]:
        return {"keep_hidden": self.keep_hidden}

    def load_state_dict(self, state: dict[str, bool | None]) -> None:
        """A resumed run keeps hidden states if and only if it did before."""
        self.keep_hidden = state["keep_hidden"]

    def _differing(self, models: Models, step: int) -> StepGroups:
        """Dynamic sampling (Yu et al. 2025): the first `batch` groups whose scores are not all equal.

        A step has `tries` batches of prompts to itself and samples one after the other until it has enough, so its
        groups follow from the seed and the step, however many processes share it.
        """
        sampled: list[Group] = []
        own: dict[tuple[int, int], Group] = {}
        everyone: list[tuple[int, int]] = []
        for attempt in range(self.tries):
            index, groups = self._scored_batch(models, step * self.tries + attempt, step, attempt)
            sampled += groups
            differing = {(attempt, i): g for i, g in zip(index, groups, strict=True) if len(set(g.scores or ())) > 1}
            own |= differing
            everyone += sorted(key for part in processes.gather_objects(list(differing)) for key in part)
            if len(everyone) >= self.prompts_per_step:
                break
        chosen = everyone[: self.prompts_per_step]
        positions = [position for position, key in enumerate(chosen) if key in own]
        scores = [s for g in sampled for s in g.scores or ()]
        metrics: Metrics = {
            "dropped_groups": (float(len(sampled) - len(own)), float(len(sampled))),
            "sampled_score": (float(sum(scores)), float(len(scores))),
        }
        return StepGroups([own[chosen[position]] for position in positions], positions, len(chosen), metrics)


def generate(
    sampler: Sampler, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seeds: Sequence[int]
) -> list[Group]:
    """The sampler's responses, timed and counted."""
    with record("sample"):
        groups = sampler.generate(prompts, n, sampling, seeds)
    add_count("sampled", sum(len(r.ids) for g in groups for r in g.responses))
    return groups


def score(scorer: Scorer, groups: list[Group]) -> list[Group]:
    """The groups with the scorer's scores, checked and timed; see `scores_together` for a process without groups."""
    with record(f"score/{type(scorer).__name__}"):
        return checked_scores(scorer, groups)


def unscored(left_out: Sequence[tuple[float, float]]) -> Metrics:
    """The metric `unscored`, the share of all processes' responses that got no score; none where each got one.

    Args:
        left_out: of this process's batches, from `scoring.base.left_out`.
    """
    own = (sum(missing for missing, _ in left_out), sum(given for _, given in left_out))
    return {"unscored": own} if any(processes.gather_objects(own[0] > 0)) else {}


def with_version(group: Group, version: int) -> Group:
    """The group with the version of the policy that its responses come from."""
    responses = tuple(replace(r, policy_version=version) for r in group.responses)
    return replace(group, origin=f"policy@{version}", responses=responses)


def sampled_metrics(groups: Sequence[Group]) -> Metrics:
    """Metrics of sampled responses: score, best and worst of a prompt, length, share cut, share of tied prompts.

    Besides: the mean share of token pairs that repeat one of their response, the share of different responses of all
    processes, and of those that begin with a refusal.
    """
    responses = [r for g in groups for r in g.responses]
    different: set[int] = set().union(*processes.gather_objects({hash(r.ids) for r in responses}))
    metrics: Metrics = {
        "length": (float(sum(len(r.ids) for r in responses)), float(len(responses))),
        "truncated": (float(sum(r.finish == "length" for r in responses)), float(len(responses))),
        "repetition": (sum(repeated_pairs(r.ids) for r in responses), float(len(responses))),
        "unique": (float(len(different) * processes.is_main()), float(len(responses))),
        "refusals": (float(sum(begins_with_refusal(r.text) for r in responses)), float(len(responses))),
        "sampled": (float(len(responses)), float(processes.is_main())),  # adds up over processes
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

"""Rounds: many prompts are sampled at once, the responses are scored and selected into a pool, and the steps of the
round learn from the pool (iterative DPO, ReST, rejection-sampling fine-tuning, RSO, self-rewarding, cringe).

Sampled groups are written to disk with their scores before anything is learnt from them. The selection is a
pure function of them, so a killed run comes back to the same pool although its policy has changed since.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from tiltyard.batch.batch import Batch, Metrics, summed
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError, DataError
from tiltyard.files import write_atomic
from tiltyard.models.adapters import copy_weights_
from tiltyard.runs.groups import group_from_dict, group_to_dict, read_groups, write_groups
from tiltyard.sampling.base import Sampler
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.streams import response_seeds
from tiltyard.scoring.base import Scorer, left_out, matched_groups, scorer_metrics
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.training.prepare import OldLogp
from tiltyard.training.source import (
    EpochShuffle,
    Order,
    generate,
    generator,
    sampled_metrics,
    score,
    unscored,
    with_version,
)
from tiltyard.types import MICRO_TOKENS, Group, Prompt

Pick = Callable[[list[Group], torch.Generator], Sequence[Group]]
Begin = Callable[[Models], None]


@dataclass
class Rounds:
    """A source whose groups come from a pool that is made anew every `every` steps.

    Args:
        prompts: encoded prompts. sampler, scorer, n, settings: as for `Online`.
        size: prompts a round, over all processes. prompts_per_step: groups a step. every: steps a round.
        select: what is learnt from, e.g. best against worst; None: everything.
        keep: `last`: a round learns from its own responses; `all`: also from those of the rounds before, put together
            prompt by prompt before they are selected (Llama 2's pool of the best over all iterations).
        phases, phase: number of equal phases of a round, and `phase(pool, i)` says what the i-th learns from (ReST's
            rising thresholds).
        given: responses from a file that join those of every round, scored with them (ReST's union with the data).
        begin: called when a round has its responses and before it learns (renew the reference, restart from the base).
        folder: where the rounds are written; None keeps them in the checkpoint.
        watch: what else is measured on the responses of a round.
        stored: only rounds that are in `folder` already are learnt from; nothing is sampled (a replay).
        tokens_per_microbatch: packed tokens of a forward pass that measures, see `shown`.
        order: of the prompts over the rounds, see `EpochShuffle`; the pool of a round is shuffled.
    """

    prompts: Sequence[Prompt]
    sampler: Sampler
    scorer: Scorer
    size: int
    prompts_per_step: int
    every: int
    samples_per_prompt: int = 4
    settings: SampleSettings = field(default_factory=SampleSettings)
    select: Pick | None = None
    keep: Literal["last", "all"] = "last"
    phases: int = 1
    phase: Callable[[list[Group], int], Sequence[Group]] | None = None
    given: Sequence[Group] = ()
    begin: tuple[Begin, ...] = ()
    seed: int = 0
    folder: Path | None = None
    watch: Callable[[list[Group]], Metrics] | None = None
    stored: bool = False
    tokens_per_microbatch: int = MICRO_TOKENS
    order: Order = "shuffle"
    # what a run has made so far is that run's own: a copy of the source (`replace`) begins without it
    number: int = field(default=-1, init=False)  # of the round whose pool is held
    held: dict[int, list[Group]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for key in ("size", "prompts_per_step", "every", "samples_per_prompt", "phases"):
            if getattr(self, key) < 1:
                raise ConfigError("rounds need at least one", where=key, got=getattr(self, key), expected="at least 1")
        _one_scale(self)
        self.shuffle = EpochShuffle(self.prompts, self.seed, self.order)
        self._pools: list[EpochShuffle[Group]] = []

    @property
    def reads_ref(self) -> bool:
        """Hooks that begin a round renew the reference or start again from it."""
        return bool(self.begin)

    def __call__(self, models: Models, step: int) -> StepGroups:
        number, within = divmod(step, self.every)
        metrics: Metrics = {}
        if within == 0:
            metrics = self._start(models, number)
        if number != self.number:
            self._pools = self._pool(number)
            self.number = number
        phase = within * self.phases // self.every
        first = -(-phase * self.every // self.phases)  # the phase's first step within the round
        items = self._pools[phase].batch_at(within - first, self.prompts_per_step)
        own = processes.shard(items)
        return StepGroups([group for _, group in own], [i for i, _ in own], self.prompts_per_step, metrics)

    def _start(self, models: Models, number: int) -> Metrics:
        """Samples and scores the round's prompts, unless a run that was killed has already."""
        known = self._held(number) if self.stored else self._read(number)
        if known is None:
            own = processes.shard(self.shuffle.batch_at(number, self.size))
            index = [i for i, _ in own]
            seeds = response_seeds(index, self.samples_per_prompt, self.seed, 2, number)
            self.sampler.sync(models["policy"], models.version)
            groups = generate(self.sampler, [p for _, p in own], self.samples_per_prompt, self.settings, seeds)
            groups = [with_version(group, models.version) for group in groups]
            beside = processes.shard(self.given)
            groups, index = [*groups, *(g for _, g in beside)], [*index, *(self.size + i for i, _ in beside)]
            judged = score(self.scorer, groups)
            missing = left_out(sampled(groups), sampled(judged))
            places = matched_groups(groups, judged)
            rows = [(index[i], group_to_dict(g)) for i, g in zip(places, judged, strict=True)]
            everyone = sorted(
                (pair for part in processes.gather_objects(rows) for pair in part), key=lambda pair: pair[0]
            )
            known = [group_from_dict(row) for _, row in everyone]
            scoring = summed(processes.gather_objects(scorer_metrics(self.scorer)))
            lost = summed(processes.gather_objects(unscored([missing])))
            watched = {**scoring, **lost, **self._watched(known)}
            if self.folder is not None and processes.is_main():
                if watched:
                    # first: once the round stands, its judge is not asked again, and what it took is known here alone
                    write_atomic(self._path(number, "metrics.json"), json.dumps(watched).encode())
                write_groups(self._path(number), known)
            processes.barrier()
        else:
            watched = self._read_watched(number) or self._watched(known)
        self.held[number], self.number = known, -1
        shown = self.shown(models, sampled(known))  # by the policy that answered: a hook may start it again
        for act in self.begin:
            act(models)
        # every process has the whole round and measures its part; a judge's calls were counted by each process
        part, once = sampled([g for _, g in processes.shard(known)]), float(processes.is_main())
        metrics = {**shown, **sampled_metrics(part), **(watched if processes.is_main() else {})}
        metrics.pop("sampled", None)  # nothing was, or more: also those that the scorer could not score
        if not self.stored:
            metrics["sampled"] = (self.size * self.samples_per_prompt * once, once)
        if self.given:
            count = [float(sum(len(g.responses) for g in groups)) for groups in (sampled(known), known)]
            metrics["sampled_share"] = (count[0] * once, count[1] * once)
        return {**metrics, "round": ((number + 1) * once, once)}

    def shown(self, models: Models, known: Sequence[Group]) -> Metrics:
        """Entropy, sampler gap and KL of the policy that was sampled, on as many responses as one step of pairs has.

        They are the first two responses to the round's first prompts, so a round costs one step's scoring more.
        Truncated sampling and replays do not follow the policy's untruncated distribution: then only the sums over the
        vocabulary are shown, `entropy` and `kl_exact`.
        """
        sampling = self.settings
        if sampling.temperature == 0:
            return {}  # greedy: there is no distribution to measure
        own = processes.shard([Group(g.prompt, g.responses[:2]) for g in known[: self.prompts_per_step]])
        policy = models["policy"].module
        training = policy.training
        policy.eval()
        groups, index = [g for _, g in own], [i for i, _ in own]
        batch = Batch.of(
            groups, index, min(self.prompts_per_step, len(known)), models.device, self.tokens_per_microbatch
        )
        measured = OldLogp(sampling.temperature, on_policy=sampling.is_untruncated and not self.stored)(models, batch)
        policy.train(training)
        return measured.metrics

    def _watched(self, known: Sequence[Group]) -> Metrics:
        """The metrics of `watch` on a round: each process on its part, added up."""
        part = sampled([g for _, g in processes.shard(known)])
        return summed(processes.gather_objects(self.watch(part) if self.watch else {}))

    def _read_watched(self, number: int) -> Metrics | None:
        """The metrics stored when the round was made; None for a replay, which measures anew."""
        path = self._path(number, "metrics.json")
        if self.stored or not path.exists():
            return None
        return {name: (value, count) for name, (value, count) in json.loads(path.read_text()).items()}

    def _pool(self, number: int) -> list[EpochShuffle[Group]]:
        """The pool of each phase of the round."""
        rounds = range(number + 1) if self.keep == "all" else (number,)
        # a judge may say nothing of a group: there is nothing to select by
        judged = [[g for g in self._held(i) if g.scores is not None] for i in rounds]
        groups = merged(judged) if self.keep == "all" or self.given else judged[0]
        chance = generator(self.seed, 7, number)
        pool = list(self.select(groups, chance)) if self.select is not None else groups
        parts = [list(self.phase(pool, i)) if self.phase is not None else pool for i in range(self.phases)]
        for i, part in enumerate(parts):
            if not part:
                raise DataError(
                    f"nothing is left to learn from in round {number + 1}, phase {i + 1}",
                    got=f"{len(groups):,} prompts with scores, {self.samples_per_prompt} responses each",
                    expected="responses that differ in score, or that pass the threshold",
                    fix="sample more responses (n) or hotter, or lower the thresholds",
                )
        if self.keep == "last":
            self.held = {number: self.held[number]} if number in self.held else {}
        return [EpochShuffle(part, self.seed + 31 * number + i) for i, part in enumerate(parts)]

    def check(self, steps: int) -> None:
        """Raises a DataError if a replay of `steps` steps needs a round that was not stored."""
        for number in range(-(-steps // self.every) if self.stored else 0):
            self._held(number)

    def _held(self, number: int) -> list[Group]:
        found = self.held.get(number) or self._read(number)
        if found is None:
            replay = "set steps and iterations as in the run that stored them, or sample on without replay"
            raise DataError(
                f"the responses of round {number + 1} are not there",
                where=str(self.folder),
                fix=replay if self.stored else "remove the stage's folder to start again",
            )
        return found

    def _read(self, number: int) -> list[Group] | None:
        if self.folder is None:
            return None
        return list(read_groups(self._path(number))) if self._path(number).exists() else None

    def _path(self, number: int, what: str = "groups.jsonl") -> Path:
        return (self.folder or Path()) / f"round-{number:04d}.{what}"

    def state_dict(self) -> dict[str, list[dict[str, object]]]:
        if self.folder is not None:
            return {}
        return {str(i): [group_to_dict(g) for g in groups] for i, groups in self.held.items()}

    def load_state_dict(self, state: dict[str, list[dict[str, object]]]) -> None:
        self.held = {int(i): [group_from_dict(g) for g in groups] for i, groups in state.items()}


def sampled(groups: Sequence[Group]) -> list[Group]:
    """Those that the policy answered, without those from a file."""
    return [g for g in groups if g.responses[0].policy_version is not None]


def _one_scale(rounds: Rounds) -> None:
    """Refuses to hold scores against each other that no judge meant to be compared.

    A judge of pairs says how often a response beats its own group's: 0.9 among the weak responses of the first round is
    less than 0.6 among the strong ones of the third. A judge that learns is another judge in each round.
    """
    pair, moving = not rounds.scorer.scale.comparable, rounds.scorer.scale.moving
    if rounds.keep == "all" and (pair or moving):
        raise ConfigError(
            "the pool of all rounds compares scores that are not on one scale",
            where="pool",
            got="a judge of pairs, whose scores say who wins within a round's group"
            if pair
            else "the policy as judge, which is another judge in every round",
            expected="scores that mean the same in every round",
            fix="set pool=last, or judge.ask=score" if pair else "set pool=last, or judge.model=MODEL that stays",
        )
    if rounds.given and pair:
        raise ConfigError(
            "a judge of pairs cannot score responses that stand alone",
            where="demonstrations",
            got="judge.ask=pair",
            fix="set judge.ask=score, take a reward model, or leave the demonstrations out",
        )


def merged(rounds: Sequence[Sequence[Group]]) -> list[Group]:
    """Groups of the same prompt put together, in the order in which prompts first came; all must carry scores."""
    found: dict[tuple[int, ...], Group] = {}
    for groups in rounds:
        for group in groups:
            before = found.get(group.prompt.ids)
            if before is None:
                found[group.prompt.ids] = group
            else:
                scores = (*(before.scores or ()), *(group.scores or ()))
                both = (*before.responses, *group.responses)
                found[group.prompt.ids] = replace(before, responses=both, scores=scores, preference=None)
    return list(found.values())


# ------------------------------------------------------------------------------------------- what begins a round


def renew_ref(models: Models) -> None:
    """The reference becomes the policy as it is now."""
    copy_weights_(models["ref"], models["policy"])


def restart_from_ref(models: Models) -> None:
    """The policy becomes the reference again: each round trains the base model anew."""
    copy_weights_(models["policy"], models["ref"])

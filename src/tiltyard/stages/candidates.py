"""Candidates: a model samples n responses to each prompt, a scorer scores them, and pairs are made (SLiC-HF).

`candidates.groups.jsonl` holds every group with scores and the very ids and log-probs that were sampled;
`pairs.groups.jsonl` the pairs, better response first, with those ids; `pairs.jsonl` the pairs as text;
`demonstrations.jsonl` the best finished response of each prompt as text, without scores every finished one. With a
ranker, `baselines.groups.jsonl` holds the responses that scores are measured against. The stage `distill` writes the
same files of a served model's responses.

Responses, pairings and scores of a prompt depend only on the seed and on its index in the file. The work is done in
blocks of prompts, each committed to a `Journal`: a run that is resumed ends with the files of an uninterrupted one.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from tiltyard.data import Chat, group_to_line, read_groups
from tiltyard.errors import DataError
from tiltyard.files import atomic_write
from tiltyard.inputs.contexts import check_reading
from tiltyard.inputs.files import prompts_of
from tiltyard.inputs.scores import WORDS, Reward, ScoreSettings
from tiltyard.inputs.settings import STOP, PromptReading, StopStrings
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model, load_scalar_model
from tiltyard.numerals import plural, verb
from tiltyard.records import LAST_BITS, Settings
from tiltyard.runs.journal import Journal
from tiltyard.sampling import SampleSettings, response_seeds, sample
from tiltyard.scoring import BaselineScorer, FunctionScorer, Ranker, Scorer, check_prompts, checked_scores
from tiltyard.stages.backend import keeps_backend, report_model, settle
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.rewards import Rewards, sources
from tiltyard.training import select
from tiltyard.training.log import TimeLeft
from tiltyard.training.source import generator
from tiltyard.types import Group, Prompt
from tiltyard.world.reward import gold, is_world_prompt

Pairs = Literal["auto", "tournament", "first_round", "random", "best_worst", "all", "none"]

BLOCK = 32  # prompts at a time; part of what the random numbers depend on, so no setting
CANDIDATES, PAIRS, BASELINES = (f"{name}.groups.jsonl" for name in ("candidates", "pairs", "baselines"))


class ScoringAndPairing(Settings):
    """The number of responses to a prompt, their scorer, and the rule that makes pairs."""

    samples_per_prompt: Annotated[int, Field(ge=1, description="responses a prompt; 1 with pairs: none alone")] = 8
    ranker: Annotated[str, Field(description="scored by this pairwise ranker, against one more response a prompt")] = ""
    reward: Annotated[
        Reward,
        Field(description="or scored by a reward model, a function, an address, a rule or a weighted sum of these"),
    ] = ""
    gold: Annotated[bool, Field(description="or scored by the embedded world's own rules")] = False
    pairs: Annotated[
        Pairs,
        Field(description="how pairs are made; auto: a tournament with a ranker, else n random ones [SLiC-HF]"),
    ] = "auto"
    seed: Annotated[int, Field(ge=0, description="of sampling and of pairing")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"

    @model_validator(mode="after")
    def _one_scorer(self) -> Self:
        given = [name for name in ("ranker", "reward", "gold") if getattr(self, name)]
        if len(given) > 1 or not (given or self.pairs == "none"):
            named = " and ".join(given) or "none"
            raise ValueError(
                f"set exactly one of ranker, reward and gold: who scores? (set: {named}); without a scorer pairs: none"
            )
        if self.samples_per_prompt == 1 and self.pairs != "none":
            raise ValueError(
                "one response a prompt makes no pairs: set samples_per_prompt to 2 or more, or pairs: none"
            )
        return self

    @property
    def scored(self) -> bool:
        """True if something scores the responses."""
        return bool(self.ranker or self.reward or self.gold)


class CandidatesSettings(PromptReading, ScoringAndPairing):
    model: Annotated[str, Field(description="the model that responds: an earlier stage, a folder or a hub name")]
    prompts: Annotated[str, Field(description="prompts: a file, stage/file or hub name")]
    temperature: Annotated[float, Field(gt=0, description="of sampling [SLiC-HF, RSO]")] = 0.7
    top_k: Annotated[int, Field(ge=0, description="most probable tokens kept; 0: all [SLiC-HF, RSO]")] = 40
    top_p: Annotated[float, Field(gt=0, le=1, description="mass of the most probable tokens kept")] = 1.0
    max_tokens: Annotated[int, Field(gt=0, description="longest response")] = 128
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    max_concurrent: Annotated[
        int, Field(gt=0, description="responses decoded at once; bounds memory only"), LAST_BITS
    ] = 256


@dataclass
class Progress:
    """Prompts that are done, their responses, groups that the files hold so far, and sums over them for the result."""

    prompts: int = 0
    sampled: int = 0
    candidates: int = 0
    responses: int = 0
    pairs: int = 0
    ties: int = 0
    best: float = 0.0
    mean: float = 0.0
    worst: float = 0.0
    truncated: int = 0
    comparisons: int = 0
    flips: int = 0
    even: float = 0.0


def run(context: StageContext, settings: CandidatesSettings) -> dict[str, Any]:
    """Samples, scores and pairs, a block of prompts after the other, from where an earlier attempt stopped."""
    sizes = (settings.max_prompt, settings.max_tokens)
    for line in check_reading(context, settings.model, sources(_scoring(settings)), *sizes):
        context.report("context", [line])
    model = load_language_model(model_folder(context, settings.model), device=settings.device, dtype=settings.dtype)
    settle(context, model)
    report_model(context, "model", model, samples=True)
    prompts = prompts_of(context, settings.prompts, model.chat, settings, settings.seed)
    blocks = ModelBlocks(settings, context.name, model, settings)
    open_scorer(context, blocks, prompts, model.chat)
    return write_blocks(context, blocks, prompts, Progress())


def write_blocks(context: StageContext, blocks: Blocks, prompts: Sequence[Prompt], start: Progress) -> dict[str, Any]:
    """Writes the files block by block, from where an earlier attempt stopped; returns the result.

    Args:
        start: the progress before the first block.
    """
    settings = blocks.settings
    files = (CANDIDATES, PAIRS, BASELINES) if settings.ranker else (CANDIDATES, PAIRS)
    journal = Journal(context.folder, files, start)
    progress = journal.progress
    if journal.resumed:
        are = verb(progress.prompts, "is", "are")
        context.report("goes on", [f"{progress.prompts:,} of {plural(len(prompts), 'prompt')} {are} done"])
    context.report("estimate", blocks.estimate(prompts[progress.prompts :]))
    left = TimeLeft(len(prompts))
    for first in range(progress.prompts, len(prompts), BLOCK):
        block = blocks.block(prompts[first : first + BLOCK], first)
        progress.prompts = min(first + BLOCK, len(prompts))
        if progress.prompts == len(prompts):
            blocks.check()
        blocks.count(progress, block)
        journal.commit({name: map(group_to_line, getattr(block, name.partition(".")[0])) for name in files})
        done, total = progress.prompts, len(prompts)
        facts = (f"{done:,} of {plural(total, 'prompt')}", f"{plural(progress.pairs, 'pair')}", left.after(done))
        context.report("candidates", [", ".join(filter(None, facts))])
    journal.close()
    _write_rows(context.folder, settings)
    result = blocks.result(progress)
    spread = [f"{key} {result[f'score_{key}']:.3f}" for key in ("best", "mean", "worst") if settings.scored]
    cut = f"{result['truncated']:.0%} of the responses were cut"
    context.report("scores" if spread else "candidates", ["; ".join(filter(None, (", ".join(spread), cut)))])
    if result["unscored"]:
        none = plural(result["unscored"], "response has none and is left out", "responses have none and are left out")
        context.report("scores", [none])
    return result


@dataclass(frozen=True)
class Block:
    """Results of some consecutive prompts. `sampled` counts their responses, unscored ones too."""

    sampled: int
    candidates: list[Group]
    pairs: select.Selected
    baselines: list[Group]


@dataclass
class Blocks(ABC):
    """Samples, scores and pairs the responses to a block of prompts."""

    settings: ScoringAndPairing
    name: str

    def __post_init__(self) -> None:
        self.scorer: Scorer | None = None
        self.ranker: Ranker | None = None

    @abstractmethod
    def sample(self, prompts: Sequence[Prompt], n: int, stream: int, first: int) -> list[Group]:
        """Returns a group per prompt, with n responses or fewer.

        Args:
            stream: of independent samples of the same prompts. first: index of the first prompt.
        """

    def estimate(self, prompts: Sequence[Prompt]) -> Iterator[str]:  # noqa: ARG002
        """Yields lines about what the prompts will cost, before anything is sampled."""
        yield from ()

    def block(self, prompts: Sequence[Prompt], first: int) -> Block:
        """Returns the block that begins at index `first`, in the order of the prompts."""
        groups = self._with_origin(self.sample(prompts, self.settings.samples_per_prompt, 2, first), first)
        sampled, baselines = sum(len(group.responses) for group in groups), list[Group]()
        if self.ranker is not None:
            baselines = self._with_origin(self.sample(prompts, 1, 3, first), first)
            against = {baseline.origin for baseline in baselines}
            groups = [group for group in groups if group.origin in against]
            groups = checked_scores(BaselineScorer(self.ranker, baselines), groups)
        elif self.scorer is not None:
            groups = checked_scores(self.scorer, groups)
        several = [group for group in groups if len(group.responses) > 1]  # a reward may abstain from the others
        pairs = self._pairs(several, generator(self.settings.seed, 4, first))
        return Block(sampled, groups, pairs, baselines)

    def _with_origin(self, groups: Sequence[Group], first: int) -> list[Group]:
        """The groups that have responses, each with its prompt's number."""
        placed = (replace(group, origin=f"{self.name}:{first + i + 1}") for i, group in enumerate(groups))
        return [group for group in placed if group.responses]

    def _pairs(self, groups: list[Group], stream: torch.Generator) -> select.Selected:
        how, compare = self.settings.pairs, self.ranker or select.by_scores
        if how == "auto":
            how = "tournament" if self.ranker is not None else "random"
        if how == "tournament":
            return select.tournament(groups, compare, stream)
        if how == "first_round":
            return select.first_round(groups, compare, stream)
        if how == "random":
            return select.random_pairs(groups, self.settings.samples_per_prompt, stream, compare)
        if how == "best_worst":
            return select.best_worst(groups, stream)
        return select.all_pairs(groups, compare) if how == "all" else select.Selected()

    def check(self) -> None:  # noqa: B027
        """Checks the responses as a whole, before the last block is committed."""

    def count(self, progress: Progress, block: Block) -> None:
        """Adds a block to the sums."""
        _count(progress, block, self)

    def result(self, progress: Progress) -> dict[str, Any]:
        """Returns the result of the stage."""
        return _result(progress, self.settings)


@dataclass
class ModelBlocks(Blocks):
    """The responses of a model in this process."""

    model: LanguageModel
    how: CandidatesSettings

    def sample(self, prompts: Sequence[Prompt], n: int, stream: int, first: int) -> list[Group]:
        """n responses a prompt, which depend on the seed and the prompt's index alone."""
        how = self.how
        sampling = SampleSettings(
            how.temperature, how.top_p, how.top_k, how.max_tokens, how.stop, max_concurrent=how.max_concurrent
        )
        seeds = response_seeds(range(first, first + len(prompts)), n, how.seed, stream)
        return sample(self.model, prompts, n, sampling, seeds=seeds)


def open_scorer(context: StageContext, blocks: Blocks, prompts: Sequence[Prompt], chat: Chat | None) -> None:
    """Opens the scorer or the ranker of the settings.

    Args:
        chat: of the model that responds; None where its responses are texts without ids.

    Raises:
        DataError: prompts that the scorer cannot score.
    """
    settings = blocks.settings
    common: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    if settings.ranker:
        blocks.ranker = Ranker(load_scalar_model(model_folder(context, settings.ranker), **common))
    elif settings.reward:
        blocks.scorer = Rewards(context, _scoring(settings), **common).scorer(chat)
        check_prompts(blocks.scorer, prompts)
    elif settings.gold:
        if odd := [p for p in prompts if not is_world_prompt(p)]:
            raise DataError(
                "gold scores belong to the embedded world, and these prompts are not about it",
                where=f"{context.name}.prompts",
                got=f"{len(odd):,} prompts without its facts, such as {odd[0].id or odd[0].messages or odd[0].text}",
                expected="prompts that the stage `world` wrote (world/prompts.jsonl)",
                fix="name a ranker or a reward model instead of gold",
            )
        blocks.scorer = FunctionScorer(gold, time_limit=None)


def _scoring(settings: ScoringAndPairing) -> ScoreSettings:
    return ScoreSettings(reward=settings.reward)


def _count(progress: Progress, block: Block, blocks: Blocks) -> None:
    progress.sampled += block.sampled
    progress.candidates += len(block.candidates)
    progress.pairs += len(block.pairs)
    progress.ties += block.pairs.dropped
    for group in block.candidates:
        progress.responses += len(group.responses)
        progress.truncated += sum(r.finish == "length" for r in group.responses)
        if blocks.ranker is None and blocks.scorer is None:
            continue
        scores = select.scores_of(group)
        progress.best += max(scores)
        progress.mean += sum(scores) / len(scores)
        progress.worst += min(scores)
    if blocks.ranker is not None:
        position = blocks.ranker.take_position()
        progress.comparisons += position.asked
        progress.flips += position.flips
        progress.even += position.even


def _result(progress: Progress, settings: ScoringAndPairing) -> dict[str, Any]:
    prompts = max(1, progress.candidates)
    result: dict[str, Any] = {
        "prompts": progress.candidates,
        "candidates": progress.responses,
        "unscored": progress.sampled - progress.responses,
        "pairs": progress.pairs,
        "ties": progress.ties,
        "truncated": progress.truncated / max(1, progress.responses),
    }
    if settings.scored:
        sums = {"best": progress.best, "mean": progress.mean, "worst": progress.worst}
        result |= {f"score_{key}": value / prompts for key, value in sums.items()}
    if progress.comparisons:
        result["position_bias"] = progress.even / progress.comparisons
        result["position_flips"] = progress.flips / progress.comparisons
    return result


def _write_rows(folder: Path, settings: ScoringAndPairing) -> None:
    """The pairs and the demonstrations as rows that `data`, sft and `tiltyard check` read.

    A response without text is no row: readers refuse it. A cut one is no demonstration: as text it would end there.
    """
    with atomic_write(folder / "pairs.jsonl") as file:
        for pair in read_groups(folder / PAIRS):
            texts = [r.text for r in pair.responses]
            if not all(text.strip() for text in texts):
                continue
            row: dict[str, Any] = {"chosen": texts[0], "rejected": texts[1]}
            if pair.scores is not None:
                row |= dict(zip(("score_chosen", "score_rejected"), pair.scores, strict=True))
            file.write(_line(pair, row))
    ties = generator(settings.seed, 5, 0)
    with atomic_write(folder / "demonstrations.jsonl") as file:
        for group in map(_finished, read_groups(folder / CANDIDATES)):
            best = select.best([group], ties)[0] if group.scores else group
            for number, response in enumerate(best.responses):
                score = {"score": best.scores[number]} if best.scores else {}
                file.write(_line(group, {"completion": response.text, **score}))


def _line(group: Group, row: dict[str, Any]) -> str:
    whole = group.prompt.to_row() | row | {"origin": group.origin, "meta": dict(group.prompt.meta)}
    return json.dumps(whole, ensure_ascii=False) + "\n"


def _finished(group: Group) -> Group:
    """The group with the responses that have a text and were not cut."""
    kept = [k for k, r in enumerate(group.responses) if r.text.strip() and r.finish != "length"]
    scores = None if group.scores is None else tuple(group.scores[k] for k in kept)
    return replace(group, responses=tuple(group.responses[k] for k in kept), scores=scores, preference=None)


register(
    Stage(
        "candidates",
        keeps_backend(run),
        CandidatesSettings,
        "A model answers each prompt n times; a ranker, a reward model or the world may score, and pairs are made.",
        refers=("model", "prompts", "ranker", "reward"),
        words=WORDS,
        version="3",
    )
)

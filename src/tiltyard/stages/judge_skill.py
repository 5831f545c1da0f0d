"""Judgements to learn judging from (evaluation fine-tuning of self-rewarding): demonstrations of the judge's own job.

Of comparisons that people made come rows whose prompt is, word for word, the question that a judge of points asks, and
whose answer ends in `Score: k`. `how` says whose words the answers are:

* `written`: a model judges each answer several times; of a comparison a round of judgements is kept where every one
  has a score that can be read and the scores put the answers in the order that people put them in.
* `scores`: people's scores or ranks on the scale from 0 to 5, each with a sentence that stands for the number. For
  models too small to write reasons: they learn to tell good from bad and the form, no reasoning.

`rows.jsonl` is data for `sft`; `held_out.jsonl` the same of other comparisons, to measure on. The work is done in
blocks of comparisons, each committed to a `Journal`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tiltyard.data import BadRows, limit_of, limited, parsed_rows, read_groups
from tiltyard.errors import DataError
from tiltyard.feedback import ModelPointsJudge
from tiltyard.feedback.prompts import points_question
from tiltyard.feedback.simulated import seed_from
from tiltyard.inputs.comparisons import as_pairs
from tiltyard.inputs.settings import RowReading
from tiltyard.inputs.workspace import model_folder
from tiltyard.models.load import load_language_model
from tiltyard.numerals import plural, verb
from tiltyard.records import LAST_BITS
from tiltyard.runs.journal import Journal
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.training.log import TimeLeft
from tiltyard.types import Group, Preference, dense_ranks, prompt_digest, ranks_of

BLOCK = 32  # comparisons at a time; the draws of `written` depend on it, so no setting
ROWS, HELD_OUT = "rows.jsonl", "held_out.jsonl"
REASONS = (
    "It says nothing that bears on the question.",
    "It bears on the question and leaves most of it open.",
    "It deals with much of the question, but not with its core.",
    "It answers the core of the question in a way that can be used.",
    "It is to the point, complete and in good order.",
    "It is made for this very question and wastes no word.",
)
TOP = len(REASONS) - 1


class JudgeSkillSettings(RowReading):
    data: Annotated[str, Field(description="comparisons with ranks or scores: rows or a file of groups")]
    how: Annotated[
        Literal["written", "scores"],
        Field(description="judgements that `model` writes, where they agree with people; or people's numbers"),
    ]
    pairs: Annotated[
        Literal["given", "all", "best_worst"],
        Field(description="rankings as they are, all their pairs, or best against worst (how: written)"),
    ] = "given"
    instruction: Annotated[
        str, Field(description="the head of the question, as the judge's own setting; empty: Tiltyard's")
    ] = ""
    lowest: Annotated[float | None, Field(description="the score that is 0 points; empty: the lowest of the data")] = (
        None
    )
    highest: Annotated[float | None, Field(description="the score that is 5 points; empty: the highest")] = None
    model: Annotated[str, Field(description="who writes judgements (how: written)")] = ""
    samples: Annotated[int, Field(ge=1, description="judgements an answer (how: written)")] = 3
    temperature: Annotated[float, Field(gt=0, description="of written judgements")] = 0.7
    max_tokens: Annotated[int, Field(gt=0, description="longest written judgement")] = 256
    held_out: Annotated[float, Field(ge=0, lt=1, description="share of the comparisons that is kept for measuring")] = (
        0.1
    )
    seed: Annotated[int, Field(ge=0, description="of writing and of what is held out")] = 0
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"

    @model_validator(mode="after")
    def _fitting(self) -> JudgeSkillSettings:
        if (self.how == "written") != bool(self.model):
            raise ValueError("how: written needs a model that writes; how: scores has none")
        if self.how == "written" and (self.lowest, self.highest) != (None, None):
            raise ValueError("lowest and highest have no effect with how: written; leave them out")
        if self.how == "scores" and self.pairs != "given":
            raise ValueError("pairs has no effect with how: scores, which grades single responses; leave it out")
        if self.lowest is not None and self.highest is not None and not self.lowest < self.highest:
            raise ValueError(f"lowest ({self.lowest}) is not below highest ({self.highest})")
        return self


@dataclass
class Progress:
    """Comparisons that are done, lines of the two files, and counts for the result."""

    comparisons: int = 0
    rows: int = 0
    held_out: int = 0
    tied: int = 0
    rounds: int = 0
    unreadable: int = 0
    disagreeing: int = 0
    kept: int = 0
    points: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GradedResponse:
    """Index of a response in its group, the reasons, and the points."""

    index: int
    reasons: str
    points: float


def run(context: StageContext, settings: JudgeSkillSettings) -> dict[str, Any]:
    """Makes the rows block by block, from where an earlier attempt stopped."""
    groups = _groups(context, settings)
    judge = _judge(context, settings) if settings.how == "written" else None
    scale = _scale(groups, settings)
    journal = Journal(context.folder, (ROWS, HELD_OUT), Progress())
    progress = journal.progress
    if journal.resumed:
        are = verb(progress.comparisons, "is", "are")
        context.report("goes on", [f"{progress.comparisons:,} of {plural(len(groups), 'comparison')} {are} done"])
    left = TimeLeft(len(groups))
    for at in range(progress.comparisons, len(groups), BLOCK):
        block = groups[at : at + BLOCK]
        made = _written(judge, block, progress) if judge else [_from_people(g, scale, progress) for g in block]
        rows: dict[str, list[dict[str, Any]]] = {ROWS: [], HELD_OUT: []}
        for group, judged in zip(block, made, strict=True):
            draw = seed_from(settings.seed, "held out", prompt_digest(group.prompt)) % 10**6
            is_held_out = draw < settings.held_out * 10**6
            rows[HELD_OUT if is_held_out else ROWS] += [_row(group, one, settings) for one in judged]
            for one in judged:
                key = f"{one.points:g}"
                progress.points[key] = progress.points.get(key, 0) + 1
        progress.comparisons += len(block)
        progress.rows += len(rows[ROWS])
        progress.held_out += len(rows[HELD_OUT])
        journal.commit(rows)
        if judge:
            done = f"{progress.comparisons:,} of {plural(len(groups), 'comparison')}"
            context.report("judgements", [", ".join(filter(None, (done, left.after(progress.comparisons))))])
    journal.close()
    return _result(context, settings, progress)


# ---------------------------------------------------------------------------------------------------- the data


def _groups(context: StageContext, settings: JudgeSkillSettings) -> list[Group]:
    """The comparisons, in the order of the file."""
    path = context.resolve(settings.data, want="")
    limit = limit_of(settings.limit, settings.limit_by, settings.seed)
    bad = BadRows(settings.bad_rows)
    if str(path).endswith(".groups.jsonl"):
        groups = list(limited(lambda: read_groups(path), limit, bad.told))
    else:
        rows = parsed_rows(path, "comparisons", bad, split=settings.split or None, limit=limit)
        groups = [group for _, group in rows]
    if bad.count or bad.drawn:
        context.report("data", bad.lines())
    for group in groups:
        if group.preference is None and group.scores is None:
            raise DataError(
                "these comparisons have no preference",
                where=group.origin or group.prompt.id,
                got="neither ranks nor scores",
                expected="comparisons that people made",
            )
    if settings.pairs != "given":
        ranked = [replace(g, preference=Preference(ranks=_ranks(g))) for g in groups]
        groups = list(as_pairs(context, "data", ranked, settings.pairs, settings.seed))
    context.report(
        "data", [f"{plural(len(groups), 'comparison')}, {plural(sum(len(g.responses) for g in groups), 'answer')}"]
    )
    return groups


def _ranks(group: Group) -> tuple[int, ...]:
    """Returns the ranks of the preference, or those of the scores."""
    return ranks_of(group.preference) or dense_ranks(group.scores or ())


def _row(group: Group, graded: GradedResponse, settings: JudgeSkillSettings) -> dict[str, Any]:
    """Returns a demonstration: the judge's question, and a reply that ends in the score."""
    question = points_question(settings.instruction, group.prompt, group.responses[graded.index])
    origin = f"{group.origin} {settings.how}{' by ' + settings.model if settings.model else ''}".strip()
    meta = {"points": graded.points, "of": group.prompt.id, "response": graded.index, "origin": origin}
    answer = f"{graded.reasons}\nScore: {graded.points:g}".strip()
    return {"id": f"{group.prompt.id}#{graded.index}", "prompt": question, "completion": answer, "meta": meta}


# --------------------------------------------------------------------------------------------------- people's numbers


def _scale(groups: Sequence[Group], settings: JudgeSkillSettings) -> tuple[float, float] | None:
    """Returns the scores that are 0 and 5 points; None if there are ranks only."""
    scores = [s for g in groups for s in g.scores or ()]
    if settings.how == "written" or not scores or any(g.scores is None for g in groups):
        return None
    low = min(scores) if settings.lowest is None else settings.lowest
    high = max(scores) if settings.highest is None else settings.highest
    if not low < high:
        raise DataError("all answers have the same score", where=settings.data, got=low, fix="set lowest and highest")
    return low, high


def points_of(group: Group, scale: tuple[float, float] | None) -> tuple[int, ...] | None:
    """Whole points from 0 to 5: scores on the scale, cut at its ends; or the best rank 5, the worst 0, equal steps.

    None for ranks that are all equal: they say nothing of how good the answers are.
    """
    if scale is not None:
        low, high = scale
        parts = [(min(max(s, low), high) - low) / (high - low) for s in group.scores or ()]
    else:
        ranks = _ranks(group)
        levels = sorted(set(ranks), reverse=True)
        if len(levels) < 2:
            return None
        parts = [levels.index(rank) / (len(levels) - 1) for rank in ranks]
    return tuple(math.floor(TOP * part + 0.5) for part in parts)


def _from_people(group: Group, scale: tuple[float, float] | None, progress: Progress) -> list[GradedResponse]:
    points = points_of(group, scale)
    if points is None:
        progress.tied += 1
        return []
    progress.kept += len(points)
    return [GradedResponse(index, REASONS[k], k) for index, k in enumerate(points)]


# ------------------------------------------------------------------------------------------------- written judgements


def _judge(context: StageContext, settings: JudgeSkillSettings) -> ModelPointsJudge:
    model = load_language_model(model_folder(context, settings.model), device=settings.device)
    sampling = {"samples": settings.samples, "temperature": settings.temperature, "max_tokens": settings.max_tokens}
    return ModelPointsJudge(model, settings.instruction, too_long="skip", seed=settings.seed, **sampling)  # type: ignore[arg-type]


def _written(judge: ModelPointsJudge, block: Sequence[Group], progress: Progress) -> list[list[GradedResponse]]:
    """Returns for each comparison the judgements of the rounds that agree with people, without repetitions."""
    graded = []
    for group, grades in zip(block, judge.score(block), strict=True):
        kept: dict[tuple[int, str], GradedResponse] = {}
        none = (("", None),) * judge.samples  # a question that is too long
        rounds = list(zip(*(tuple(zip(g.texts, g.points, strict=True)) or none for g in grades), strict=True))
        progress.tied += len(set(_ranks(group))) < 2
        for judgements in rounds if len(set(_ranks(group))) > 1 else ():
            progress.rounds += 1
            read = [points for _, points in judgements if points is not None]
            if len(read) < len(judgements):
                progress.unreadable += 1
            elif not agrees(read, _ranks(group)):
                progress.disagreeing += 1
            else:
                for index, ((text, _), p) in enumerate(zip(judgements, read, strict=True)):
                    kept.setdefault((index, text), GradedResponse(index, before_score(text), p))
        progress.kept += len(kept)
        graded.append(list(kept.values()))
    return graded


def agrees(points: Sequence[float], ranks: Sequence[int]) -> bool:
    """True if of any two responses that people rank apart the better one has more points."""
    each = list(zip(points, ranks, strict=True))
    return all(p > q for p, i in each for q, j in each if i < j)


def before_score(text: str) -> str:
    """Returns the judge's text up to its last "Score:"."""
    return text[: max(m.start() for m in re.finditer("score:", text, re.IGNORECASE))].strip()


# --------------------------------------------------------------------------------------------------- the results


def _result(context: StageContext, settings: JudgeSkillSettings, progress: Progress) -> dict[str, Any]:
    lines = [
        f"{plural(progress.rows, 'judgement')} to learn from, {progress.held_out:,} held out, "
        f"{plural(progress.tied, 'tie')}"
    ]
    if settings.how == "written":
        lines.append(
            f"of {progress.rounds:,} rounds of judging {progress.unreadable:,} had an answer without a readable score, "
            f"{progress.disagreeing:,} put the answers in another order than people"
        )
    points = dict(sorted(progress.points.items(), key=lambda item: float(item[0])))
    lines.append("points: " + ", ".join(f"{count:,} x {key}" for key, count in points.items()))
    context.report("judgements", lines)
    if not progress.rows:
        raise DataError(
            "no judgement is left to learn from",
            where=settings.data,
            got="; ".join(lines),
            fix="take a stronger model, pairs=best_worst or more samples; or how=scores, which samples no judgements",
        )
    return {key: value for key, value in asdict(progress).items() if key != "points"} | {"points": points}


def _plan(context: StageContext, settings: JudgeSkillSettings) -> list[str]:  # noqa: ARG001 - protocol
    if settings.how == "scores":
        return ["judge: people's own numbers, from 0 to 5"]
    often, longest = settings.samples, settings.max_tokens
    return [f"judge: {settings.model}, {often} judgements an answer of at most {plural(longest, 'token')}"]


register(
    Stage(
        "judge_skill",
        run,
        JudgeSkillSettings,
        "Judgements that teach a model to judge: its question, and answers that agree with people.",
        refers=("data", "model"),
        plan=_plan,
        version="2",  # what is held out is chosen by the prompts' content, not by their ids
    )
)

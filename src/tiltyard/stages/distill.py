"""Distillation: a served teacher answers prompts, and the files are those of the stage `candidates`.

The teacher is any OpenAI-compatible chat-completions server; it is not trained and its weights are not here. Its
responses are texts: `candidates.groups.jsonl` holds them without token ids, and a student reads them in its own.

What was answered is on the disk before it is used, so an interrupted block sends only the requests that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tiltyard.data import BadRows, limit_of, parsed_rows
from tiltyard.feedback import AnswerCache, Client, Teacher, Usage
from tiltyard.feedback.scorers import MAX_MISSING, ParseFailures, counted
from tiltyard.feedback.wire import Endpoint
from tiltyard.inputs.scores import WORDS
from tiltyard.inputs.settings import RowReading, StopStrings
from tiltyard.inputs.workspace import answers_file
from tiltyard.numerals import plural
from tiltyard.records import EXECUTION
from tiltyard.sampling import SampleSettings
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.candidates import (
    Block,
    Blocks,
    Pairs,
    Progress,
    ScoringAndPairing,
    open_scorer,
    write_blocks,
)
from tiltyard.types import Group, Prompt

TEACHER = "teacher"  # for errors and lines


class DistillSettings(RowReading, ScoringAndPairing, Endpoint):
    url: Annotated[str, Field(pattern=r"^https?://", description="base address of the server, as .../v1, or all of it")]
    prompts: Annotated[str, Field(description="prompts: a file, stage/file or hub name")]
    samples_per_prompt: Annotated[int, Field(ge=1, description="responses a prompt; 1 with pairs: none alone")] = 1
    pairs: Annotated[
        Pairs,
        Field(description="how pairs are made; auto: a tournament with a ranker, else n random ones [SLiC-HF]"),
    ] = "none"
    system: Annotated[
        str, Field(description="system turn for the teacher alone: the files hold the prompts without it")
    ] = ""
    temperature: Annotated[float, Field(ge=0, description="of sampling; 0: the most probable token")] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1, description="mass of the most probable tokens kept")] = 1.0
    max_tokens: Annotated[int, Field(gt=0, description="longest response, in the teacher's tokens")] = 512
    stop: Annotated[StopStrings, Field(description="strings that end a response too, and are cut from it")] = ()
    extra: Annotated[dict[str, Any], Field(description="fields of the request, added or replaced; null removes")] = (
        Field(default_factory=dict)
    )
    cache: Annotated[
        str, Field(description="file of stored answers; empty: .answers/STAGE.jsonl of the run"), EXECUTION
    ] = ""
    max_missing: Annotated[
        float,
        Field(ge=0, le=1, description="share of its requests without a response at which the run stops (from 20 on)"),
        EXECUTION,
    ] = MAX_MISSING

    @model_validator(mode="after")
    def _greedy(self) -> Self:
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError("at temperature 0 all responses to a prompt are the same: set samples_per_prompt to 1")
        return self


@dataclass
class TeacherProgress(Progress):
    """Besides: responses that did not come, by their cause, and the teacher's usage."""

    causes: dict[str, int] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=lambda: asdict(Usage()))


@dataclass
class TeacherBlocks(Blocks):
    """The responses of a served model."""

    teacher: Teacher

    def sample(self, prompts: Sequence[Prompt], n: int, stream: int, first: int) -> list[Group]:
        """n responses a prompt, or fewer; a repeated block counts as paid what it paid before a kill, see `Client`."""
        self.teacher.client.turn = first
        return self.teacher.sample(prompts, n, stream)

    def estimate(self, prompts: Sequence[Prompt]) -> Iterator[str]:
        """Yields lines about requests, tokens and cost.

        Raises:
            ConfigError: the prompts need more requests than the budget allows.
        """
        found = self.teacher.forecast(prompts, self.settings.samples_per_prompt, 2)
        if self.settings.ranker:
            found += self.teacher.forecast(prompts, 1, 3)
        yield from self.teacher.client.budget.check(found)

    def check(self) -> None:
        """Checks the share of requests without a response; the next attempt sends those again.

        Raises:
            JudgeError: more than `max_missing` of them.
        """
        self.teacher.failures.check()

    def count(self, progress: Progress, block: Block) -> None:
        """Adds a block to the sums."""
        super().count(progress, block)
        assert isinstance(progress, TeacherProgress)
        for cause, count in self.teacher.failures.take().items():
            progress.causes[cause] = progress.causes.get(cause, 0) + count
        used = Usage(**progress.usage) + self.teacher.client.usage.taken()  # type: ignore[arg-type]
        progress.usage = asdict(used)

    def result(self, progress: Progress) -> dict[str, Any]:
        """Returns the result of the stage."""
        assert isinstance(progress, TeacherProgress)
        used = Usage(**progress.usage)  # type: ignore[arg-type]
        asked = progress.prompts * self.settings.samples_per_prompt
        return super().result(progress) | {
            "missing": asked - progress.sampled,
            "missing_causes": dict(sorted(progress.causes.items())),
            "teacher_calls": used.calls,
            "teacher_cost": used.cost,
            **{key: getattr(used, key) for key in ("tokens_in", "tokens_out", "cached", "retries", "unmetered")},
        }


def run(context: StageContext, settings: DistillSettings) -> dict[str, Any]:
    """Samples the teacher, scores and pairs, block by block, from where an earlier attempt stopped."""
    teacher = _teacher(context, settings)
    prompts = _prompts(context, settings)
    blocks = TeacherBlocks(settings, context.name, teacher)
    open_scorer(context, blocks, prompts, None)
    result = write_blocks(context, blocks, prompts, TeacherProgress())
    context.report(TEACHER, _lines(result))
    return result


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    repeated = f", {result['retries']:,} repeated" if result["retries"] else ""
    cost = f"cost {result['teacher_cost']:.4f}, {result['cached']:,} from the cache"
    yield f"{plural(result['teacher_calls'], 'request')}{repeated}, {cost}"
    if result["missing_causes"]:
        yield f"without a response: {counted(result['missing_causes'])}"
    if result["unmetered"]:
        yield f"of {result['unmetered']:,} the server reported no token counts (usage): what they cost is unknown"


def _teacher(context: StageContext, settings: DistillSettings) -> Teacher:
    cache = AnswerCache(Path(settings.cache) if settings.cache else answers_file(context))
    client = Client(settings, cache, context.execution, who=TEACHER, where=context.name)
    sampling = SampleSettings(settings.temperature, settings.top_p, 0, settings.max_tokens, settings.stop)
    failures = ParseFailures(settings.max_missing, who=TEACHER, where=context.name)
    failures.what, failures.way = "response", "or take another model"
    return Teacher(client, sampling, settings.seed, settings.system, settings.extra, failures)


def _prompts(context: StageContext, settings: DistillSettings) -> list[Prompt]:
    """The prompts as texts: the teacher's tokens are not known here, so none is left out for its length."""
    bad, limit = BadRows(settings.bad_rows), limit_of(settings.limit, settings.limit_by, settings.seed)
    path = context.resolve(settings.prompts, want="")
    rows = parsed_rows(path, "prompts", bad, split=settings.split or None, limit=limit)
    prompts = [group.prompt for _, group in rows]
    context.report("prompts", [f"{len(prompts):,} of {plural(bad.rows, 'row')} kept", *bad.lines()])
    return prompts


register(
    Stage(
        "distill",
        run,
        DistillSettings,
        "A served teacher answers each prompt; a ranker, a reward model or the world may score, and pairs are made.",
        refers=("prompts", "ranker", "reward"),
        words=WORDS,
    )
)

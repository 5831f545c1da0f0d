"""The stage `before_after`: a model before and after training, on held-out rows and on answers to held-out prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from tiltyard.data import Kind, LimitBy, TooLong
from tiltyard.errors import ConfigError
from tiltyard.evaluation import EvaluatedResponse
from tiltyard.evaluation import before_after as lines_of
from tiltyard.evaluation.before_after import Line, Logps
from tiltyard.feedback import JudgeSettings, build_scorer
from tiltyard.files import atomic_write, write_json
from tiltyard.inputs.contexts import check_reading
from tiltyard.inputs.files import groups_of, prompts_of
from tiltyard.inputs.scores import WORDS, Reward
from tiltyard.inputs.settings import STOP, BadRowsSetting, StopStrings
from tiltyard.inputs.workspace import answers_file, model_folder
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model, load_reward_model
from tiltyard.records import EXECUTION, LAST_BITS, Settings
from tiltyard.report import side_by_side, write_samples_markdown
from tiltyard.report.before_after import print_lines, write_markdown
from tiltyard.report.card_figures import of_before_after
from tiltyard.sampling import SampleSettings, sample
from tiltyard.scoring import RewardPart, RewardScorer, Scorer, build_reward, checked_scores, reward_parts
from tiltyard.scoring.parts import is_service
from tiltyard.scoring.registry import is_function
from tiltyard.scoring.reward_model import check_vocabularies
from tiltyard.stages.backend import report_model
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.measured import add_to_cards
from tiltyard.training.log import duration, told
from tiltyard.types import MICRO_TOKENS, Group, Prompt

SECONDS = 10.0  # between two lines of progress
T = TypeVar("T")


class BeforeAfterSettings(Settings):
    before: Annotated[str, Field(description="the model that training began from: a stage, a folder or a hub name")]
    after: Annotated[str, Field(description="the trained model: a stage, a folder or a hub name")]
    data: Annotated[str, Field(description="held-out rows; empty: none")] = ""
    kind: Annotated[
        Literal["comparisons", "demonstrations", "labelled"], Field(description="kind of the held-out rows")
    ] = "comparisons"
    max_length: Annotated[int, Field(ge=4, description="tokens of a held-out prompt with its longest answer")] = 1024
    too_long: Annotated[TooLong, Field(description="longer rows and prompts: left out, or cut")] = "drop"
    bad_rows: BadRowsSetting = "error"
    prompts: Annotated[str, Field(description="held-out prompts that both models answer; empty: none")] = ""
    limit: Annotated[int, Field(ge=0, description="number of prompts; 0: all")] = 0
    max_prompt: Annotated[int, Field(ge=1, description="tokens of a prompt")] = 512
    reward: Annotated[
        Reward, Field(description="reward model, function, rule or sum that scores the answers; empty: none")
    ] = ""
    judge: Annotated[JudgeSettings | None, Field(description="AI judge of the answers, in place of a reward")] = None
    proxy: Annotated[
        bool, Field(description="the reward was trained on the same data as the model, and is called a proxy")
    ] = False
    samples_per_prompt: Annotated[int, Field(gt=0, description="answers a prompt; greedy decoding makes one")] = 1
    max_tokens: Annotated[int, Field(gt=0, description="tokens of an answer")] = 128
    stop: Annotated[StopStrings, Field(description=STOP)] = ()
    temperature: Annotated[float, Field(ge=0, description="of sampling; 0: greedy")] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1, description="likeliest tokens of this probability; 1: all")] = 1.0
    show: Annotated[int, Field(ge=0, description="prompts shown with both answers")] = 3
    seed: Annotated[int, Field(ge=0, description="of sampling; both models get the same random numbers")] = 0
    tokens_per_microbatch: Annotated[
        int, Field(gt=0, description="packed tokens a forward pass; bounds memory only"), LAST_BITS
    ] = MICRO_TOKENS
    device: Annotated[str, Field(description="auto, cpu, cuda"), LAST_BITS] = "auto"
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], Field(description="arithmetic")] = "float32"
    trust_remote_code: Annotated[bool, Field(description="run code that comes with a hub model"), EXECUTION] = False

    def sampling(self) -> SampleSettings:
        """The distribution that both models are sampled from."""
        return SampleSettings(self.temperature, self.top_p, 0, max_tokens=self.max_tokens, stop=self.stop)


def run(context: StageContext, settings: BeforeAfterSettings) -> dict[str, Any]:
    """Measures both models; writes before_after.json, before_after.md and answers.jsonl."""
    _check(context, settings)
    options: dict[str, Any] = {
        "device": settings.device,
        "dtype": settings.dtype,
        "trust_remote_code": settings.trust_remote_code,
    }
    models = {
        name: load_language_model(model_folder(context, value), **options)
        for name, value in (("before", settings.before), ("after", settings.after))
    }
    fix = "compare models of different tokenizers with the stage evaluate, which goes by their texts"
    check_vocabularies(models["before"].chat, models["after"].chat, f"{context.name}.before", fix)
    for name, model in models.items():
        report_model(context, name, model, samples=bool(settings.prompts))
    lines: list[Line] = []
    if settings.data:
        lines += _held_out(context, settings, models)
    answers: dict[str, list[EvaluatedResponse]] = {}
    if settings.prompts:
        found, answers = _answers(context, settings, models, options)
        lines += found
    note = _note(settings)
    print_lines(lines, context.console, note)
    if answers and settings.show:
        side_by_side(answers, settings.show, context.console)
    facts = {"lines": [line.to_dict() for line in lines], "note": note}
    write_json(context.folder / "before_after.json", facts)
    write_markdown(context.folder / "before_after.md", lines, note)
    about = f"Before, after and the change with its 95% interval over prompts. {note}".strip()
    figures = {settings.after: of_before_after(lines)}
    add_to_cards(context, figures, about, settings.data or settings.prompts, "before to after training")
    if answers:
        write_samples_markdown(context.folder / "samples.md", answers, max(settings.show, 5))
        with atomic_write(context.folder / "answers.jsonl") as file:
            for name, responses in answers.items():
                file.writelines(json.dumps({"model": name, **asdict(r)}, ensure_ascii=False) + "\n" for r in responses)
    return facts


def _check(context: StageContext, settings: BeforeAfterSettings) -> None:
    if not (settings.data or settings.prompts):
        raise ConfigError(
            "there is nothing to measure on",
            where=context.name,
            got="neither data nor prompts",
            expected="held-out rows, held-out prompts, or both",
            fix="set data=FILE or prompts=FILE",
        )
    if settings.reward and settings.judge is not None:
        raise ConfigError("set one of reward and judge", where=context.name, got="both", fix="leave one out")
    readers = {name: part.source for name, part in _parts(settings).items() if _is_model(part)}
    for line in check_reading(context, settings.after, readers, settings.max_prompt, settings.max_tokens):
        context.report("reward", [line])


def _parts(settings: BeforeAfterSettings) -> dict[str, RewardPart]:
    return reward_parts(_spec(settings)) if settings.reward else {}


def _spec(settings: BeforeAfterSettings) -> Any:
    return settings.model_dump(mode="json", include={"reward"})["reward"]


def _is_model(part: RewardPart) -> bool:
    return not (is_function(part.source) or is_service(part.source))


def _note(settings: BeforeAfterSettings) -> str:
    """A sentence on how the answers were made, for below the table."""
    if not settings.prompts:
        return ""
    how = "greedy decoding" if settings.temperature == 0 else f"temperature {settings.temperature:g}"
    how += f", top_p {settings.top_p:g}" if settings.temperature and settings.top_p < 1 else ""
    proxy = "; the reward is a proxy: a model of the same training data" if settings.proxy else ""
    return f"answers: {how}, at most {settings.max_tokens} tokens{proxy}"


# ------------------------------------------------------------------------------------------------------ held-out rows


def _held_out(context: StageContext, settings: BeforeAfterSettings, models: dict[str, LanguageModel]) -> list[Line]:
    kind: Kind = settings.kind
    groups = groups_of(
        context, "data", settings.data, kind, models["after"].chat, _Limits(settings, prompts=False), settings.seed
    )
    logps: dict[str, Logps] = {}
    for name, model in models.items():
        each = lines_of.each_logp(model, groups, settings.tokens_per_microbatch)
        logps[name] = list(told(each, len(groups), _tells(context, f"held-out rows, {name}"), every=SECONDS))
    makers: dict[str, Callable[[Sequence[Group], Logps, Logps], list[Line]]] = {
        "comparisons": lines_of.preference_lines,
        "demonstrations": lines_of.likelihood_lines,
        "labelled": lines_of.labelled_lines,
    }
    return makers[kind](groups, logps["before"], logps["after"])


class _Limits:
    """The held-out rows or prompts that are read: rows all, prompts up to the limit."""

    def __init__(self, settings: BeforeAfterSettings, *, prompts: bool):
        self.max_length, self.too_long, self.bad_rows = settings.max_length, settings.too_long, settings.bad_rows
        self.max_prompt = settings.max_prompt
        self.split, self.limit = "", settings.limit if prompts else 0
        self.limit_by: LimitBy = "first"


def _tells(context: StageContext, what: str) -> Callable[[str], None]:
    return lambda line: context.console.print(f"  {what}: {line}", markup=False, highlight=False)


# ------------------------------------------------------------------------------------------------------------ answers


def _answers(
    context: StageContext,
    settings: BeforeAfterSettings,
    models: dict[str, LanguageModel],
    options: dict[str, Any],
) -> tuple[list[Line], dict[str, list[EvaluatedResponse]]]:
    prompts = prompts_of(
        context, settings.prompts, models["after"].chat, _Limits(settings, prompts=True), settings.seed
    )
    scorer, name = _scorer(context, settings, models["after"], options)
    groups = {key: _sampled(context, settings, key, model, prompts) for key, model in models.items()}
    lines = []
    if scorer is not None and settings.judge is None:
        groups = {key: checked_scores(scorer, some) for key, some in groups.items()}
        lines += lines_of.score_lines(groups["before"], groups["after"], name)
    elif scorer is not None:
        both = [
            replace(old, responses=(old.responses[0], new.responses[0]))
            for old, new in zip(groups["before"], groups["after"], strict=True)
        ]
        line = lines_of.verdict_line(checked_scores(scorer, both), name)
        lines += [line] if line else []
    lines += lines_of.answer_lines(groups["before"], groups["after"])

    def progress(parts: Sequence[T]) -> Iterator[T]:
        return told(parts, len(parts), _tells(context, "KL"), every=SECONDS)

    budget = settings.tokens_per_microbatch
    lines.append(lines_of.kl_line(models["after"], models["before"], groups["after"], budget, progress))
    return lines, {key: list(_responses(some)) for key, some in groups.items()}


def _sampled(
    context: StageContext, settings: BeforeAfterSettings, name: str, model: LanguageModel, prompts: Sequence[Prompt]
) -> list[Group]:
    """One model's answers, with its progress."""
    count = settings.samples_per_prompt if settings.temperature > 0 else 1
    most, began = len(prompts) * count * settings.max_tokens, time.monotonic()
    done, last = 0, began

    def stream(row: int, token: int) -> None:  # noqa: ARG001 - the sampler's signature
        nonlocal done, last
        done, now = done + 1, time.monotonic()
        if now - last >= SECONDS:
            last = now
            left = duration((now - began) / done * max(0, most - done))
            _tells(context, f"answers, {name}")(f"{done:,} tokens of at most {most:,}, at most {left} left")

    _tells(context, f"answers, {name}")(f"{len(prompts):,} prompts")
    return sample(model, prompts, count, settings.sampling(), seed=settings.seed, stream=stream)


def _scorer(
    context: StageContext, settings: BeforeAfterSettings, policy: LanguageModel, options: dict[str, Any]
) -> tuple[Scorer | None, str]:
    """(what scores the answers, its name in the table)."""
    if settings.judge is not None:

        def load(name: str) -> LanguageModel:
            return load_language_model(model_folder(context, name), **options)

        judge = build_scorer(settings.judge, load, answers_file(context), context.execution, moving=False)
        return judge, f"the judge ({judge.name})"
    if not settings.reward:
        return None, ""

    def scalar(name: str, part: RewardPart) -> Scorer:
        model = load_reward_model(model_folder(context, part.source), **options, labels=part.labels)
        return RewardScorer(model, policy.chat, budget=settings.tokens_per_microbatch, name=name)

    folders = [context.recipe_folder] if context.recipe_folder else []
    scorer = build_reward(_spec(settings), scalar, folders=folders)
    parts = list(_parts(settings).values())
    model = len(parts) == 1 and _is_model(parts[0])
    name = f"the reward {scorer.name}" if not model else "the reward model"
    return scorer, f"{name} (a proxy)" if settings.proxy else name


def _responses(groups: Iterable[Group]) -> Iterator[EvaluatedResponse]:
    for group in groups:
        for k in range(len(group.responses)):
            yield EvaluatedResponse.of(group, k, proxy=group.scores[k] if group.scores else None)


register(
    Stage(
        "before_after",
        run,
        BeforeAfterSettings,
        "A model before and after training: held-out preferences and loss, answers, win rate, KL, with intervals.",
        refers=("before", "after", "data", "prompts", "reward", "judge"),
        words=WORDS,
    )
)

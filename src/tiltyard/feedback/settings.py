"""The settings of judges, a record for each kind, and the functions that build a judge or a scorer from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, model_validator

from tiltyard.errors import ConfigError
from tiltyard.feedback.answers import AnswerCache
from tiltyard.feedback.client import Client
from tiltyard.feedback.constrain import Constrain
from tiltyard.feedback.identity import JudgeIdentity, identity_of
from tiltyard.feedback.listwise import ApiListJudge, BothLists, ListJudge, ModelListJudge
from tiltyard.feedback.local import ModelJudge, ModelPointsJudge, ModelScoreJudge
from tiltyard.feedback.prompts import Exemplar
from tiltyard.feedback.remote import ApiJudge, ApiPointsJudge, ApiScoreJudge
from tiltyard.feedback.scorers import MAX_MISSING, GradeScorer, JudgeScorer, ListScorer
from tiltyard.feedback.simulated import SimulatedJudge, SimulatedRater
from tiltyard.feedback.verdicts import Debiased, Judge, ScoreJudge
from tiltyard.feedback.wire import Endpoint
from tiltyard.models.language import LanguageModel
from tiltyard.records import EXECUTION, Settings

Load = Callable[[str], LanguageModel]

Ask = Literal["pair", "score", "points", "rank"]


class OnlyFor:
    """Marks a setting that has an effect only for some values of the setting `ask`."""

    def __init__(self, *asks: Ask):
        self.asks = asks


class _Common(Settings):
    """The settings that all judges share."""

    ask: Annotated[
        Ask,
        Field(
            description="which of two is better; a rating from 1 to 10; points from 0 to 5 with reasons; rank: the "
            "order of 2 to 9 responses"
        ),
    ] = "pair"
    debias: Annotated[
        Literal["probabilities", "logits", "none"],
        Field(description="ask in both orders and average probabilities or log-odds (of rank: ranks); none: one order"),
        OnlyFor("pair", "rank"),
    ] = "probabilities"

    max_missing: Annotated[
        float,
        Field(ge=0, le=1, description="share of its questions without a verdict at which the run stops (from 20 on)"),
        EXECUTION,
    ] = MAX_MISSING

    @model_validator(mode="after")
    def _without_effect(self) -> Self:
        for key, info in type(self).model_fields.items():
            marks = [mark for mark in info.metadata if isinstance(mark, OnlyFor)]
            default = info.get_default(call_default_factory=True, validated_data={})
            if getattr(self, key) != default and any(self.ask not in mark.asks for mark in marks):
                raise ValueError(f"{key} has no effect with ask: {self.ask}; leave it out")
        return self

    def folders(self) -> dict[str, str]:
        """Settings that name a stage, a folder or a hub model."""
        return {}


class SimulatedJudgeSettings(_Common):
    """A judge made of the embedded world's own rules."""

    kind: Annotated[Literal["simulated"], Field(description="the embedded world")] = "simulated"
    instruction: Annotated[
        dict[str, float], Field(description="weights on gold, helpful, truthful, harmless, length; empty: gold")
    ] = Field(default_factory=dict)
    temperature: Annotated[float, Field(gt=0, description="how unsure it is"), OnlyFor("pair", "score")] = 1.0
    votes: Annotated[
        int, Field(ge=0, description="votes or ratings drawn; 0: their expectation"), OnlyFor("pair", "score")
    ] = 0
    position_bias: Annotated[
        float, Field(description="log-odds added to the response that is shown first"), OnlyFor("pair")
    ] = 0.0
    seed: Annotated[int, Field(ge=0, description="of votes and ratings"), OnlyFor("pair", "score")] = 0


class _Prompted(_Common):
    """The settings of judges that read a question."""

    instruction: Annotated[str, Field(description="what a good answer is, in prose; empty: Tiltyard's own text")] = ""
    exemplars: Annotated[
        tuple[Exemplar, ...], Field(description="solved comparisons shown before the question"), OnlyFor("pair")
    ] = ()
    samples: Annotated[int, Field(ge=1, description="judgements of points that are averaged"), OnlyFor("points")] = 3
    temperature: Annotated[float, Field(gt=0, description="of sampled points"), OnlyFor("points")] = 1.0


class ModelJudgeSettings(_Prompted):
    """A judge that is a language model in this process."""

    kind: Annotated[Literal["model"], Field(description="a language model in this process")] = "model"
    model: Annotated[str, Field(min_length=1, description="a stage, folder or hub name")]
    style: Annotated[Literal["chat", "text"], Field(description="ask in the chat template, or as plain text")] = "chat"
    reasoning: Annotated[
        int, Field(ge=0, description="tokens of reasons written before deciding; 0: none"), OnlyFor("pair")
    ] = 0
    too_long: Annotated[
        Literal["error", "skip"], Field(description="questions beyond the judge's context: an error, or no verdict")
    ] = "error"
    max_tokens: Annotated[int, Field(ge=1, description="longest judgement"), OnlyFor("points", "rank")] = 256
    seed: Annotated[int, Field(ge=0, description="of sampled points"), OnlyFor("points")] = 0

    def folders(self) -> dict[str, str]:
        """Settings that name a stage, a folder or a hub model."""
        return {"model": self.model}


class ApiJudgeSettings(_Prompted, Endpoint):
    """A judge behind an OpenAI-compatible server."""

    kind: Annotated[Literal["api"], Field(description="an OpenAI-compatible server")] = "api"
    url: Annotated[str, Field(pattern=r"^https?://", description="base address of the server, as .../v1, or all of it")]
    max_tokens: Annotated[int, Field(ge=1, description="longest answer of the server")] = 256
    cache: Annotated[
        str, Field(description="file of stored answers; empty: .answers/STAGE.jsonl of the run"), EXECUTION
    ] = ""
    logprobs: Annotated[
        bool,
        Field(description="request log-probs; the written label is read where the server has none"),
        OnlyFor("pair", "score"),
    ] = True
    constrain: Annotated[
        Constrain,
        Field(
            description="let the server write labels alone: choice (vLLM), json_schema (OpenAI and others), auto: the "
            "first of these that it keeps to, tried once, or none"
        ),
        OnlyFor("pair", "score"),
    ] = "auto"
    extra: Annotated[dict[str, Any], Field(description="fields of the request, added or replaced; null removes")] = (
        Field(default_factory=dict)
    )

    @model_validator(mode="after")
    def _prices(self) -> Self:
        if self.max_cost and not (self.price_in or self.price_out):
            raise ValueError("max_cost has no effect without prices: set price_in and price_out, of a million tokens")
        return self


JudgeSettings = Annotated[SimulatedJudgeSettings | ModelJudgeSettings | ApiJudgeSettings, Discriminator("kind")]


def build_judge(settings: JudgeSettings, load: Load, cache: Path | None = None, owner: str = "") -> Judge:
    """Returns the judge that compares, debiased according to the settings (`ask: pair`).

    Args:
        load: makes a language model of `settings.model`.
        cache: where an API's answers are kept if the settings name no file; None: in memory.
        owner: who pays an API, see `Client`.
    """
    if settings.ask != "pair":
        raise ConfigError(
            "this judge grades and does not compare", where="judge.ask", got=settings.ask, expected="pair", fix="set it"
        )
    judge: Judge
    if isinstance(settings, SimulatedJudgeSettings):
        judge = _simulated(settings)
    elif isinstance(settings, ModelJudgeSettings):
        judge = ModelJudge(
            load(settings.model),
            settings.instruction,
            settings.style,
            settings.too_long,
            exemplars=settings.exemplars,
            reasoning=settings.reasoning,
        )
    else:
        judge = ApiJudge(
            **_api(settings, cache, owner),
            logprobs=settings.logprobs,
            constrain=settings.constrain,
            exemplars=settings.exemplars,
        )
    return Debiased(judge, settings.debias)


def build_list_judge(settings: JudgeSettings, load: Load, cache: Path | None = None, owner: str = "") -> BothLists:
    """The judge that ranks a list (`ask: rank`); arguments as for `build_judge`.

    Raises:
        ConfigError: another `ask`, or the simulated judge, which compares and grades.
    """
    if settings.ask != "rank" or isinstance(settings, SimulatedJudgeSettings):
        raise ConfigError(
            "this judge does not rank lists",
            where="judge.ask",
            got=f"{settings.ask}, kind: {settings.kind}",
            expected="ask: rank of a judge of kind model or api",
        )
    judge: ListJudge
    if isinstance(settings, ModelJudgeSettings):
        shared = (load(settings.model), settings.instruction, settings.style, settings.too_long)
        judge = ModelListJudge(*shared, max_tokens=settings.max_tokens)
    else:
        judge = ApiListJudge(**_api(settings, cache, owner))
    return BothLists(judge, settings.debias)


def build_score_judge(settings: JudgeSettings, load: Load, cache: Path | None = None, owner: str = "") -> ScoreJudge:
    """The judge that grades (`ask: score` or `points`); arguments as for `build_judge`."""
    if settings.ask in ("pair", "rank"):
        raise ConfigError(
            "this judge compares and does not grade", where="judge.ask", got=settings.ask, expected="score, points"
        )
    if isinstance(settings, SimulatedJudgeSettings):
        return _simulated(settings)
    if isinstance(settings, ModelJudgeSettings):
        shared = (load(settings.model), settings.instruction, settings.style, settings.too_long)
        if settings.ask == "score":
            return ModelScoreJudge(*shared)
        return ModelPointsJudge(
            *shared,
            samples=settings.samples,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            seed=settings.seed,
        )
    if settings.ask == "score":
        return ApiScoreJudge(**_api(settings, cache, owner), logprobs=settings.logprobs, constrain=settings.constrain)
    return ApiPointsJudge(**_api(settings, cache, owner), samples=settings.samples, temperature=settings.temperature)


def build_scorer(
    settings: JudgeSettings,
    load: Load,
    cache: Path | None = None,
    owner: str = "",
    *,
    moving: bool = False,
) -> JudgeScorer | ListScorer | GradeScorer:
    """The scorer that the settings describe; `moving`: the judge is the policy that is trained."""
    if settings.ask == "pair":
        judge = build_judge(settings, load, cache, owner)
        return JudgeScorer(judge, moving=moving, max_missing=settings.max_missing)
    if settings.ask == "rank":
        lists = build_list_judge(settings, load, cache, owner)
        return ListScorer(lists, moving=moving, max_missing=settings.max_missing)
    grader = build_score_judge(settings, load, cache, owner)
    return GradeScorer(grader, moving=moving, max_missing=settings.max_missing)


def judge_identity(settings: JudgeSettings, snapshot: str = "") -> JudgeIdentity:
    """The identity of the judge of these settings, see `JudgeIdentity`.

    Args:
        snapshot: the version that answered, where it is known.
    """
    model = settings.kind if isinstance(settings, SimulatedJudgeSettings) else settings.model
    keys = ("debias", "style", "reasoning", "temperature", "samples", "votes", "position_bias", "seed", "kind")
    further = {key: getattr(settings, key) for key in keys if hasattr(settings, key)}
    exemplars = getattr(settings, "exemplars", ())
    instruction = settings.instruction
    words = json.dumps(instruction, sort_keys=True) if isinstance(instruction, dict) else instruction
    return identity_of(model, settings.ask, words, exemplars, snapshot=snapshot, **further)


def _simulated(settings: SimulatedJudgeSettings) -> SimulatedJudge:
    judge = SimulatedRater if settings.ask == "score" else SimulatedJudge
    return judge(settings.instruction, settings.temperature, settings.votes, settings.position_bias, settings.seed)


def _api(settings: ApiJudgeSettings, cache: Path | None, owner: str) -> dict[str, Any]:
    client = Client(settings, AnswerCache(Path(settings.cache) if settings.cache else cache), owner)
    return {
        "client": client,
        "instruction": settings.instruction,
        "max_tokens": settings.max_tokens,
        "extra": settings.extra,
    }

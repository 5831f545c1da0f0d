"""The settings of a judge, the same in every stage that has one, and how they become one."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tiltyard.config import Settings
from tiltyard.errors import ConfigError
from tiltyard.feedback.answers import AnswerCache
from tiltyard.feedback.client import Client, Endpoint
from tiltyard.feedback.local import ModelJudge, ModelPointsJudge, ModelScoreJudge
from tiltyard.feedback.prompts import Exemplar
from tiltyard.feedback.remote import ApiJudge, ApiPointsJudge, ApiScoreJudge
from tiltyard.feedback.scorers import JudgeScorer, ScoreScorer, Unscored
from tiltyard.feedback.simulated import SimulatedJudge, SimulatedRater
from tiltyard.feedback.verdicts import Debiased, Judge, ScoreJudge
from tiltyard.models.language import LanguageModel

Load = Callable[[str], LanguageModel]

# what a setting means something to: patterns of kind.ask
_MEANT: dict[str, tuple[str, ...]] = {
    "model": ("model.*", "api.*"),
    "exemplars": ("model.pair", "api.pair"),
    "debias": ("*.pair",),
    "style": ("model.*",),
    "reasoning": ("model.pair",),
    "too_long": ("model.*",),
    "samples": ("model.points", "api.points"),
    "temperature": ("simulated.pair", "simulated.score", "model.points", "api.points"),
    "max_tokens": ("model.points", "api.*"),
    "votes": ("simulated.pair", "simulated.score"),
    "position_bias": ("simulated.pair",),
    "seed": ("simulated.pair", "simulated.score", "model.points"),
    "logprobs": ("api.pair", "api.score"),
}
_SERVER = ("url", "key_env", "timeout", "retries", "backoff", "concurrency", "cache")
_MEANT |= dict.fromkeys((*_SERVER, "price_in", "price_out", "max_cost", "extra"), ("api.*",))


class JudgeSettings(Settings):
    """Who judges and how it is asked."""

    kind: Annotated[Literal["simulated", "model", "api"], Field(description="the embedded world, a model, a server")]
    ask: Annotated[
        Literal["pair", "score", "points"],
        Field(description="which of two is better; a rating from 1 to 10; points from 0 to 5 with reasons"),
    ] = "pair"
    model: Annotated[
        str, Field(description="kind model: a stage, folder or hub name; api: the name it is served under")
    ] = ""
    instruction: Annotated[
        str | dict[str, float],
        Field(description="what a good answer is; simulated: weights on gold, helpful, truthful, harmless, length"),
    ] = ""
    exemplars: Annotated[tuple[Exemplar, ...], Field(description="solved comparisons shown before the question")] = ()
    debias: Annotated[
        Literal["probabilities", "logits", "none"],
        Field(description="ask in both orders and average probabilities or log-odds; none: one order"),
    ] = "probabilities"
    style: Annotated[Literal["chat", "text"], Field(description="ask in the chat template, or as plain text")] = "chat"
    reasoning: Annotated[int, Field(ge=0, description="tokens of reasons written before deciding; 0: none")] = 0
    too_long: Annotated[
        Literal["error", "skip"], Field(description="questions beyond the judge's context: an error, or no verdict")
    ] = "error"
    samples: Annotated[int, Field(ge=1, description="judgements of points that are averaged")] = 3
    temperature: Annotated[float, Field(gt=0, description="of written points; simulated: how unsure it is")] = 1.0
    max_tokens: Annotated[int, Field(ge=1, description="longest answer of a judge that writes")] = 256
    votes: Annotated[int, Field(ge=0, description="votes or ratings drawn by the judge's law; 0: its expectation")] = 0
    position_bias: Annotated[float, Field(description="log-odds added to the answer that stands first")] = 0.0
    seed: Annotated[int, Field(ge=0, description="of votes and of written points")] = 0
    url: Annotated[str, Field(description="base address of an OpenAI-compatible server, ends with /v1")] = ""
    key_env: Annotated[str, Field(description="environment variable that holds the key; empty: no key")] = ""
    timeout: Annotated[float, Field(gt=0, description="seconds a request may take")] = 60.0
    retries: Annotated[int, Field(ge=0, description="times a failed request is sent again")] = 5
    backoff: Annotated[float, Field(ge=0, description="seconds before the first retry, doubled each time")] = 1.0
    concurrency: Annotated[int, Field(ge=1, le=256, description="requests at the same time")] = 4
    cache: Annotated[str, Field(description="file of kept answers; empty: answers.jsonl of the stage")] = ""
    price_in: Annotated[float, Field(ge=0, description="of a million tokens read")] = 0.0
    price_out: Annotated[float, Field(ge=0, description="of a million tokens written")] = 0.0
    max_cost: Annotated[
        float, Field(ge=0, description="stop when the kept answers have cost this much; 0: no limit")
    ] = 0.0
    logprobs: Annotated[bool, Field(description="ask the server for log-probs; words are read where it has none")] = (
        True
    )
    extra: Annotated[dict[str, Any], Field(description="fields of the request, added or replaced; null removes")] = (
        Field(default_factory=dict)
    )

    @model_validator(mode="after")
    def _fitting(self) -> JudgeSettings:
        own = f"{self.kind}.{self.ask}"
        for key, patterns in _MEANT.items():
            default = type(self).model_fields[key].get_default(call_default_factory=True, validated_data={})
            if getattr(self, key) != default and not any(fnmatchcase(own, pattern) for pattern in patterns):
                raise ValueError(f"{key} means nothing to kind: {self.kind}, ask: {self.ask}; leave it out")
        if self.kind != "simulated" and not self.model:
            raise ValueError(f"a judge of kind {self.kind} needs model")
        if self.kind == "api" and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"a judge of kind api needs url, an http or https address (got {self.url!r})")
        if self.kind == "simulated" and isinstance(self.instruction, str) and self.instruction:
            raise ValueError(
                "a simulated judge reads no prose: give instruction as weights, e.g. {gold: 1, length: -1}"
            )
        if self.kind != "simulated" and not isinstance(self.instruction, str):
            raise ValueError("instruction is a text for a judge that reads; weights are for kind: simulated")
        return self

    def folders(self) -> dict[str, str]:
        """Settings that name a stage, a folder or a hub model."""
        return {"model": self.model} if self.kind == "model" else {}


def build_judge(settings: JudgeSettings, load: Load, cache: Path | None = None, owner: str = "") -> Judge:
    """The judge that compares, debiased as the settings say (`ask: pair`).

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
    if settings.kind == "simulated":
        judge = _simulated(settings)
    elif settings.kind == "model":
        judge = ModelJudge(
            load(settings.model),
            *_text(settings),
            settings.style,
            settings.too_long,
            exemplars=settings.exemplars,
            reasoning=settings.reasoning,
        )
    else:
        judge = ApiJudge(**_api(settings, cache, owner), logprobs=settings.logprobs, exemplars=settings.exemplars)
    return Debiased(judge, settings.debias)


def build_score_judge(settings: JudgeSettings, load: Load, cache: Path | None = None, owner: str = "") -> ScoreJudge:
    """The judge that grades (`ask: score` or `points`); arguments as for `build_judge`."""
    if settings.ask == "pair":
        raise ConfigError(
            "this judge compares and does not grade", where="judge.ask", got="pair", expected="score, points"
        )
    if settings.kind == "simulated":
        return _simulated(settings)
    if settings.kind == "model":
        shared = (load(settings.model), *_text(settings), settings.style, settings.too_long)
        if settings.ask == "score":
            return ModelScoreJudge(*shared)
        law = (settings.samples, settings.temperature, settings.max_tokens, settings.seed)
        return ModelPointsJudge(*shared, 16384, samples=law[0], temperature=law[1], max_tokens=law[2], seed=law[3])
    if settings.ask == "score":
        return ApiScoreJudge(**_api(settings, cache, owner), logprobs=settings.logprobs)
    asked = _api(settings, cache, owner)
    return ApiPointsJudge(**asked, samples=settings.samples, temperature=settings.temperature)


def build_scorer(
    settings: JudgeSettings, load: Load, cache: Path | None = None, unscored: Unscored = "error", owner: str = ""
) -> JudgeScorer | ScoreScorer:
    """The scorer for `training.source.Online` that the settings describe."""
    if settings.ask == "pair":
        return JudgeScorer(build_judge(settings, load, cache, owner))
    return ScoreScorer(build_score_judge(settings, load, cache, owner), unscored)


def _simulated(settings: JudgeSettings) -> SimulatedJudge:
    wants = settings.instruction if isinstance(settings.instruction, dict) else {}
    kind = SimulatedRater if settings.ask == "score" else SimulatedJudge
    return kind(wants, settings.temperature, settings.votes, settings.position_bias, settings.seed)


def _text(settings: JudgeSettings) -> tuple[str]:
    return (settings.instruction if isinstance(settings.instruction, str) else "",)


def _api(settings: JudgeSettings, cache: Path | None, owner: str) -> dict[str, Any]:
    names = ("url", "model", "key_env", "timeout", "retries", "backoff", "concurrency")
    endpoint = Endpoint(**{name: getattr(settings, name) for name in (*names, "price_in", "price_out", "max_cost")})
    client = Client(endpoint, AnswerCache(Path(settings.cache) if settings.cache else cache), owner)
    return {
        "client": client,
        "instruction": _text(settings)[0],
        "max_tokens": settings.max_tokens,
        "extra": settings.extra,
    }

"""Scorers of sampled responses: reward models, functions, weighted sums of them, judges; and monitors beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from tiltyard.errors import ConfigError
from tiltyard.feedback import AnswerCache, JudgeSettings, ModelJudgeSettings, ServiceScorer, build_scorer
from tiltyard.inputs.reference import load_options
from tiltyard.inputs.settings import StageSettings
from tiltyard.inputs.workspace import Workspace, answers_file, model_folder
from tiltyard.models.adapters import reward_adapter
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load import load_language_model, load_reward_model
from tiltyard.records import Settings
from tiltyard.scoring import Monitors, RewardScorer, Scorer
from tiltyard.scoring.parts import LabelChoice, RewardPart, Service, is_service, options_of, reward_parts
from tiltyard.scoring.registry import ALIASES, build_reward, is_function
from tiltyard.scoring.rules import RULE, Rule, is_empty
from tiltyard.scoring.weighted import check_prompts
from tiltyard.training.algorithm import Models
from tiltyard.types import Prompt

POLICY = "policy"  # as a judge's model: the policy as it is at the time


class RewardSource(Rule, LabelChoice, Service):
    """A reward: a model, a function, a service, or a rule with its wishes."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    source: Annotated[
        str,
        Field(
            alias="from",
            min_length=1,
            description="a reward model, a function (gold, rewards.py:name, module:name), an address, or rule",
        ),
    ]

    @model_validator(mode="after")
    def _options_of_the_source(self) -> RewardSource:
        asked, kind = self._asked(), options_of(self.source)
        for key in asked:
            if key not in kind.model_fields:
                raise ValueError(f"{key} is {_OPTIONS[_home(key)]}")
        if kind is LabelChoice and asked and is_function(self.source):
            raise ValueError(f"{next(iter(asked))} is of a reward model, and {self.source} is a function")
        if kind is Rule and is_empty(self):
            raise ValueError("a rule needs at least one wish, e.g. max_words: 40")
        return self

    def _asked(self) -> dict[str, Any]:
        """The settings of one kind of source that are set."""
        found: dict[str, Any] = {}
        for key, info in type(self).model_fields.items():
            value = getattr(self, key)
            if _home(key) is not None and value != info.get_default(call_default_factory=True, validated_data={}):
                found[key] = value
        return found

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The part without the settings that are not set."""
        asked = self._asked()
        return {key: value for key, value in dump(self).items() if key in asked or _home(key) is None}

    def folders(self) -> dict[str, str]:
        """Settings that refer to a model or a function."""
        return {"from": self.source}


_OPTIONS: dict[Any, str] = {
    Rule: "a wish of a rule: write from: rule",
    LabelChoice: "of a classifier's labels: from must be a reward model",
    Service: "of a service: from must be its address, http://...",
}


def _home(key: str) -> type[Settings] | None:
    """The settings of one kind of source that a key belongs to; None for those of every part."""
    return next((kind for kind in _OPTIONS if key in kind.model_fields), None)


class WeightedReward(RewardSource):
    """One part of a weighted sum of rewards."""

    weight: Annotated[float, Field(allow_inf_nan=False, description="its factor in the sum")] = 1.0


def _form(value: Any) -> str:
    """The form of a reward, by the tags below."""
    if isinstance(value, WeightedReward):
        return "[part]"
    if not isinstance(value, Mapping):
        return "[source]"
    return "[part]" if "from" in value or "source" in value else "[parts]"


Reward = Annotated[
    Annotated[str, Tag("[source]")]
    | Annotated[WeightedReward, Tag("[part]")]
    | Annotated[dict[str, WeightedReward], Tag("[parts]")],
    Discriminator(_form),
]
Watched = list[str] | dict[str, RewardSource]
MONITORS = (
    "rewards that are logged on each step's responses and not trained on, e.g. gold; or {NAME: {from: SOURCE}}, "
    "which names them"
)


class ScoreSettings(Settings):
    """Settings of the scorer: exactly one of reward and judge."""

    reward: Annotated[
        Reward,
        Field(
            description="a reward model (stage, folder, hub name), a function (gold, rewards.py:name, module:name), an "
            "address; a rule: {from: rule, max_words: 40}; or a weighted sum: {NAME: {from: SOURCE, weight: 1.0}}"
        ),
    ] = ""
    judge: Annotated[
        JudgeSettings | None, Field(description="an AI judge in place of a reward model; its model may be `policy`")
    ] = None
    monitors: Annotated[Watched, Field(description=MONITORS)] = []  # noqa: RUF012 - pydantic copies a field's default

    def parts(self) -> dict[str, RewardPart]:
        """The parts of the reward by name: one named `reward`, or those of a weighted sum."""
        return reward_parts(self.reward_spec()) if self.reward else {}

    def reward_spec(self) -> str | dict[str, Any]:
        """The reward as `build_reward` reads it."""
        spec: str | dict[str, Any] = self.model_dump(mode="json", include={"reward"})["reward"]
        return spec


def monitor_specs(monitors: Watched) -> list[tuple[str, str | dict[str, Any]]]:
    """The monitors as `build_reward` reads them, behind the names of their metrics; "" is a function's own name."""
    if isinstance(monitors, list):
        return [("" if is_function(one) else one, one) for one in monitors]
    return [(name, one.model_dump(mode="json")) for name, one in monitors.items()]


def monitor_sources(monitors: Watched) -> list[str]:
    """The models and functions that the monitors name."""
    return monitors if isinstance(monitors, list) else [one.source for one in monitors.values()]


class SelfJudge(ModelJudgeSettings):
    """A judge that is the policy itself unless another model is named: points with reasons, several times, averaged."""

    kind: Annotated[Literal["model"], Field(description="a model; for other judges: iterative_dpo, online_dpo")] = (
        "model"
    )
    ask: Annotated[
        Literal["pair", "score", "points"],
        Field(description="which of two is better; a rating from 1 to 10; points from 0 to 5 with reasons"),
    ] = "points"
    model: Annotated[str, Field(description="the judge; policy: the one that is trained, as it is at the time")] = (
        POLICY
    )


class SelfJudgeSettings(Settings):
    """Of methods whose policy judges its own responses."""

    judge: Annotated[SelfJudge, Field(description="how the policy judges its own responses")] = SelfJudge()
    monitors: Annotated[Watched, Field(description=MONITORS)] = []  # noqa: RUF012 - pydantic copies a field's default


WORDS = (POLICY, RULE, *ALIASES)  # values of settings that refer to nothing


class Scoring(NamedTuple):
    """The scorer of sampled responses, and the monitors that are measured besides."""

    scorer: Scorer
    monitors: Monitors | None

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Lets every scorer refuse prompts that it cannot score, before anything is sampled."""
        for scorer in (self.scorer, *(self.monitors.scorers if self.monitors else ())):
            check_prompts(scorer, prompts)


def check_score_settings(name: str, settings: StageSettings) -> None:
    """Checks that exactly one of reward and judge is set.

    Raises:
        ConfigError: none or both.
    """
    if isinstance(settings, ScoreSettings) and bool(settings.reward) == (settings.judge is not None):
        raise ConfigError(
            "set exactly one of reward and judge: what is a response worth?",
            where=name,
            got="both" if settings.reward else "neither",
            fix="reward=STAGE for a reward model, reward=FILE.py:FUNCTION, or judge.kind=... for an AI judge",
        )


def load_reward(work: Workspace, settings: StageSettings, policy: LanguageModel) -> dict[str, ScalarModel]:
    """The reward models that the settings name, frozen, by the name of their part; none for functions and judges.

    A model that was trained with adapters on the backbone that the policy adapts is an adapter on that backbone.
    """
    check_score_settings(work.name, settings)
    if not isinstance(settings, ScoreSettings):
        return {}
    models: dict[str, ScalarModel] = {}
    for name, part in settings.parts().items():
        if is_model(part.source):
            models[name] = _reward_model(work, settings, part, policy)
    return models


def is_model(source: str) -> bool:
    """True if a reward's source is a model, and no function, rule or service."""
    return not is_function(source) and not is_service(source)


def _reward_model(work: Workspace, settings: StageSettings, part: RewardPart, policy: LanguageModel) -> ScalarModel:
    folder = model_folder(work, part.source)
    adapter = None if part.labels else reward_adapter(policy, Path(folder))
    if adapter is not None:
        work.report("reward", ["an adapter and a head on the policy's backbone"])
        return adapter
    model = load_reward_model(folder, **load_options(settings.models), labels=part.labels)
    model.module.requires_grad_(False)
    return model


def open_scoring(work: Workspace, settings: StageSettings, models: Models, rewards: dict[str, ScalarModel]) -> Scoring:
    """The scorer and the monitors of a run.

    Args:
        rewards: from `load_reward`.
    """
    assert isinstance(settings, ScoreSettings | SelfJudgeSettings)
    policy = models.get("policy")
    folders = [work.recipe_folder] if work.recipe_folder else []
    budget = settings.run.tokens_per_microbatch

    def scalar(name: str, part: RewardPart) -> Scorer:
        if part.service is not None:
            return open_service(work, name, part)
        model = rewards.get(name) or _reward_model(work, settings, part, policy)
        return RewardScorer(model, policy.chat, budget=budget, name=name)

    def watched(name: str, part: RewardPart) -> Scorer:
        if part.service is not None:
            return open_service(work, name, part)
        return RewardScorer(_reward_model(work, settings, part, policy), policy.chat, budget=budget, name=name)

    if settings.judge is not None:
        scorer = _judge(work, settings, settings.judge, models)
    else:
        assert isinstance(settings, ScoreSettings)
        scorer = build_reward(settings.reward_spec(), scalar, folders=folders)
    monitors = [
        build_reward(spec, watched, name=name, folders=folders) for name, spec in monitor_specs(settings.monitors)
    ]
    return Scoring(scorer, Monitors(monitors) if monitors else None)


def open_service(work: Workspace, name: str, part: RewardPart) -> ServiceScorer:
    """The scorer of a part that is a reward service; its scores are kept for as long as this execution of the stage."""
    where = "reward" if name == "reward" else f"reward.{name}"
    cache = AnswerCache(answers_file(work, "rewards"))
    return ServiceScorer(part.source, part.service, name=name, where=where, cache=cache, owner=work.execution)


def _judge(work: Workspace, settings: StageSettings, judge: JudgeSettings, models: Models) -> Scorer:
    def load(name: str) -> LanguageModel:
        if name == POLICY:
            return models.get("policy")
        return load_language_model(model_folder(work, name), dtype=settings.models.dtype, device=settings.models.device)

    return build_scorer(
        judge,
        load,
        answers_file(work),
        work.execution,
        moving=getattr(judge, "model", "") == POLICY,
    )


def judge_in_memory(settings: StageSettings) -> bool:
    """True if the judge is a separate model in this process's memory."""
    judge = settings.judge if isinstance(settings, ScoreSettings | SelfJudgeSettings) else None
    return isinstance(judge, ModelJudgeSettings) and judge.model != POLICY

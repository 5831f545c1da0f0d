"""Rewards and judges of stages that score responses outside of training: `evaluate` and `candidates`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tiltyard.data import Chat
from tiltyard.errors import ConfigError
from tiltyard.evaluation.judged import NamedReward
from tiltyard.evaluation.policies import RewardKind
from tiltyard.feedback import Debiased, GradeScorer, JudgeSettings, ModelJudgeSettings, build_judge, build_scorer
from tiltyard.inputs.scores import POLICY, ScoreSettings, is_model, monitor_specs, open_service
from tiltyard.inputs.workspace import answers_file, model_folder
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load import load_language_model, load_reward_model
from tiltyard.scoring import RewardPart, RewardScorer, Scorer, build_reward, part_scorer
from tiltyard.scoring.rules import RULE
from tiltyard.stages.base import StageContext

Load = Callable[[str], LanguageModel]


class Rewards:
    """The rewards and monitors of a stage's settings; a reward model is loaded once for all policies.

    Args:
        settings: of the stage, whose `device` and `dtype` are those of reward models and judges.
    """

    def __init__(self, context: StageContext, settings: ScoreSettings, **load: Any):
        self.context, self.settings, self.load = context, settings, load
        self.folders = [context.recipe_folder] if context.recipe_folder else []
        self.parts = settings.parts()
        self.monitors = monitor_specs(settings.monitors)
        self._models: dict[str, ScalarModel] = {}
        self._graders: list[GradeScorer] = []
        for part in self.parts.values():
            if is_model(part.source):
                self._model(part)
        if settings.judge is not None and settings.judge.ask == "rank":
            raise ConfigError(
                "a judge of lists scores no response by itself",
                where=f"{context.name}.judge.ask",
                got="rank",
                expected="pair (against the baseline), score or points",
            )
        if settings.judge is not None and settings.judge.ask != "pair":
            scorer = build_scorer(*self._judge_arguments(settings.judge))
            assert isinstance(scorer, GradeScorer)
            self._graders.append(scorer)

    @property
    def kind(self) -> RewardKind:
        """The kind of the reward: one `model`, one `rule`, or `other` (a function, a service, a sum)."""
        (part, *more) = self.parts.values() if self.parts else (RewardPart(""),)
        if more or part.weight != 1.0:
            return "other"
        if part.rule is not None:
            return "rule"
        return "model" if is_model(part.source) else "other"

    @property
    def rates(self) -> list[str]:
        """Names of those that are 0 or 1 for each response."""
        rules = [name for name, part in self.parts.items() if part.rule is not None]
        return rules + [name for name, spec in self.monitors if isinstance(spec, dict) and spec.get("from") == RULE]

    def of(self, chat: Chat) -> list[NamedReward]:
        """The rewards that score this policy's responses: the parts of the sum, monitors, and a judge that grades.

        Args:
            chat: of the policy.
        """

        load = self._loader(chat)
        found = [
            NamedReward(name, part_scorer(name, part, load, self.folders), part.weight, part.rule is not None)
            for name, part in self.parts.items()
        ]
        for name, spec in self.monitors:
            scorer = build_reward(spec, load, name=name, folders=self.folders)
            found.append(NamedReward(scorer.name, scorer, 0.0, isinstance(spec, dict) and spec.get("from") == RULE))
        found += [NamedReward(grader.name, grader, 0.0) for grader in self._graders]
        names = [reward.name for reward in found]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"two rewards are called '{twice[0]}'",
                where=f"{self.context.name}.monitors",
                got=", ".join(names),
                fix="name the monitors: monitors={NAME: {from: SOURCE}}",
            )
        return found

    def scorer(self, chat: Chat | None) -> Scorer:
        """The reward as one scorer of this policy's responses; without a chat, of texts without ids."""
        return build_reward(self.settings.reward_spec(), self._loader(chat), folders=self.folders)

    def _loader(self, chat: Chat | None) -> Callable[[str, RewardPart], Scorer]:
        def load(name: str, part: RewardPart) -> Scorer:
            if part.service is not None:
                return open_service(self.context, name, part)
            return RewardScorer(self._model(part), chat, name=name)

        return load

    def judge(self) -> Debiased | None:
        """The judge that compares, in both orders; None where none is set, or one that grades."""
        settings = self.settings.judge
        if settings is None or settings.ask != "pair":
            return None
        judge = build_judge(*self._judge_arguments(settings))
        assert isinstance(judge, Debiased)
        return judge

    def _judge_arguments(
        self, settings: JudgeSettings
    ) -> tuple[JudgeSettings, Callable[[str], LanguageModel], Any, str]:
        if isinstance(settings, ModelJudgeSettings) and settings.model == POLICY:
            raise ConfigError(
                "no policy is trained here that could judge itself",
                where=f"{self.context.name}.judge.model",
                got=POLICY,
                expected="a stage, a folder or a hub name",
            )

        def load(name: str) -> LanguageModel:
            return load_language_model(model_folder(self.context, name), **self.load)

        return settings, load, answers_file(self.context), self.context.execution

    def _model(self, part: RewardPart) -> ScalarModel:
        key = f"{part.source} {sorted(part.labels.items())}"
        if key not in self._models:
            folder = model_folder(self.context, part.source)
            self._models[key] = load_reward_model(folder, **self.load, labels=part.labels)
        return self._models[key]


def sources(settings: ScoreSettings) -> dict[str, str]:
    """The reward models of the settings that read responses with their prompts, by the key that names them."""
    parts = settings.parts()
    return {key if key == "reward" else f"reward.{key}": p.source for key, p in parts.items() if is_model(p.source)}


def named(rewards: Sequence[NamedReward]) -> list[NamedReward]:
    """The rewards that are shown by themselves: all but a single one of weight 1, which is the reward."""
    alone = sum(bool(reward.weight) for reward in rewards) == 1
    return [reward for reward in rewards if not (alone and reward.weight == 1.0)]

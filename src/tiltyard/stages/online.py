"""The sources of methods that sample: prompts answered at every step, or in rounds; who scores the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tiltyard.batch.batch import Metrics
from tiltyard.errors import ConfigError
from tiltyard.feedback import build_scorer
from tiltyard.methods.base import Method
from tiltyard.models.adapters import reward_adapter
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load import load_language_model, load_scalar_model
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer, RewardScorer, Scorer
from tiltyard.stages.base import StageContext
from tiltyard.stages.data import model_folder, prompts_of, report
from tiltyard.training.algorithm import Models
from tiltyard.training.replay import replayed
from tiltyard.training.rounds import Rounds
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt
from tiltyard.world.reward import gold, is_world_prompt

GOLD = "gold"  # as a reward: the embedded world's own rules
POLICY = "policy"  # as a judge's model: the policy as it is at the time


def online_source(
    method: Method, context: StageContext, settings: Any, models: Models, steps_of: Callable[[Any, int], int]
) -> tuple[Online | Rounds, int]:
    """(the source, outer steps) of a method that eats prompts."""
    prompts = prompts_of(context, settings.prompts, models.get("policy").chat, settings)
    steps = steps_of(settings, len(prompts))
    scorer = scorer_of(method, context, settings, models, prompts)
    law = SampleSettings(
        temperature=settings.temperature,
        top_p=getattr(settings, "top_p", 1.0),
        top_k=getattr(settings, "top_k", 0),
        max_tokens=settings.max_tokens,
        max_concurrent=settings.max_concurrent,
    )
    watch = Watch(is_world_prompt(prompts[0]))
    if method.samples == "every step":
        source = Online(
            prompts,
            NativeSampler(),
            scorer,
            settings.prompts_per_step,
            settings.samples_per_prompt,
            law,
            seed=settings.seed,
            watch=watch,
        )
        if settings.replay:
            source = replayed(source, context.resolve_folder(settings.replay) / "groups.jsonl", steps)
        return source, steps
    every = -(-steps // settings.iterations)
    size = settings.round_prompts or min(len(prompts), every * settings.prompts_per_step)
    rounds = Rounds(
        prompts,
        NativeSampler(),
        scorer,
        size,
        settings.prompts_per_step,
        every,
        settings.samples_per_prompt,
        law,
        seed=settings.seed,
    )
    rounds.folder, rounds.watch, rounds.tokens_per_microbatch = (
        context.folder / "rounds",
        watch,
        settings.tokens_per_microbatch,
    )
    if settings.replay:
        rounds.folder, rounds.stored = context.resolve_folder(settings.replay) / "rounds", True
        rounds.check(steps)
    return rounds, steps


def who_scores(name: str, settings: Any) -> None:
    """Exactly one of a reward model (or the world's rules) and a judge.

    Raises:
        ConfigError: none or both.
    """
    reward = getattr(settings, "reward", "")  # a method that judges for itself has none
    if bool(reward) == (settings.judge is not None):
        raise ConfigError(
            "set exactly one of reward and judge: who says what an answer is worth?",
            where=name,
            got="both" if reward else "neither",
            fix="reward=STAGE for a reward model, reward=gold in the demo world, or judge.kind=... for an AI judge",
        )


def scorer_of(
    method: Method, context: StageContext, settings: Any, models: Models, prompts: Sequence[Prompt]
) -> Scorer:
    """Who scores: a reward model, the rules of the embedded world, or a judge, who may be the policy itself."""
    if settings.judge is not None:

        def load(name: str) -> LanguageModel:
            if name == POLICY:
                return models.get("policy")
            common = {"dtype": settings.dtype, "device": settings.device}
            return load_language_model(model_folder(context, name), **common)

        unscored: Literal["drop", "error"] = "drop" if method.samples == "per iteration" else "error"
        answers, moving = context.folder / "answers.jsonl", getattr(settings.judge, "model", "") == POLICY
        return build_scorer(settings.judge, load, answers, unscored, context.execution, moving=moving)
    if settings.reward != GOLD:
        return RewardScorer(models.get("reward"), models.get("policy").chat, budget=settings.tokens_per_microbatch)

    scorer = FunctionScorer(gold, name=GOLD, time_limit=None)
    scorer.check_prompts(prompts)  # before the first step; demonstrations beside them are checked when scored
    return scorer


def reward_of(
    context: StageContext, settings: Any, common: dict[str, Any], policy: LanguageModel
) -> ScalarModel | None:
    """The reward model that a stage names, frozen; None where the world's rules or a judge score.

    Where it was trained with adapters on the backbone that the policy adapts, it is adapters on the policy's backbone.
    """
    who_scores(context.name, settings)
    if settings.judge is not None or settings.reward == GOLD:
        return None
    folder = model_folder(context, settings.reward)
    beside = reward_adapter(policy, Path(folder))
    if beside is not None:
        report(context, "reward", ["an adapter and a head on the policy's backbone"])
        return beside
    model = load_scalar_model(folder, **common)
    model.module.requires_grad_(False)
    return model


def judges_model(settings: Any) -> bool:
    """Whether the judge is a model of its own in this process's memory."""
    judge = getattr(settings, "judge", None)
    return judge is not None and judge.kind == "model" and judge.model != POLICY


class Watch:
    """The gold score of sampled responses to the demo world's prompts, logged and never trained on."""

    def __init__(self, world: bool):
        self.world = world

    def __call__(self, groups: list[Group]) -> Metrics:
        if not self.world:
            return {}
        scores = [gold(g.prompt, r) for g in groups for r in g.responses]
        return {"gold": (float(sum(scores)), float(len(scores)))}

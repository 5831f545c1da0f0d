"""The sources of methods that sample: prompts answered at every step, or in rounds; who scores the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tiltyard.algorithms.base import Method
from tiltyard.errors import ConfigError
from tiltyard.models.language import ScalarModel
from tiltyard.models.load import load_scalar_model
from tiltyard.sampling import SampleSettings, sample
from tiltyard.scoring import RewardScorer, RuleScorer
from tiltyard.stages.base import StageContext
from tiltyard.stages.data import model_folder, prompts_of
from tiltyard.stages.evaluate import is_world
from tiltyard.training.algorithm import Models
from tiltyard.training.batch import Metrics
from tiltyard.training.replay import replayed
from tiltyard.training.rounds import Rounds
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt
from tiltyard.world import gold

GOLD = "gold"  # as a reward: the embedded world's own rules


def online_source(
    method: Method, context: StageContext, settings: Any, models: Models, steps_of: Callable[[Any, int], int]
) -> tuple[Online | Rounds, int]:
    """(the source, outer steps) of a method that eats prompts."""
    prompts = prompts_of(context, settings.prompts, models.get("policy").chat, settings)
    steps = steps_of(settings, len(prompts))
    scorer = scorer_of(context, settings, models, prompts)
    law = SampleSettings(
        temperature=settings.temperature,
        top_p=getattr(settings, "top_p", 1.0),
        top_k=getattr(settings, "top_k", 0),
        max_tokens=settings.max_tokens,
        max_rows=settings.max_rows,
    )
    watch = gold_metrics if is_world(Group(prompts[0], ())) else None
    if method.samples == "every step":
        source = Online(prompts, sample, scorer, settings.batch, settings.n, law, seed=settings.seed, watch=watch)
        if settings.replay:
            source = replayed(source, context.resolve(settings.replay, want="") / "groups.jsonl")
        return source, steps
    every = -(-steps // settings.iterations)
    size = settings.round_prompts or min(len(prompts), every * settings.batch)
    rounds = Rounds(prompts, sample, scorer, size, settings.batch, every, settings.n, law, seed=settings.seed)
    rounds.folder, rounds.watch = context.folder / "rounds", watch
    if settings.replay:
        rounds.folder, rounds.stored = context.resolve(settings.replay, want="") / "rounds", True
    return rounds, steps


def scorer_of(
    context: StageContext, settings: Any, models: Models, prompts: Sequence[Prompt]
) -> Callable[[Any, list[Group]], list[Group]]:
    """Who scores: a reward model, or the rules of the embedded world."""
    if settings.reward != GOLD:
        return RewardScorer(models.get("reward"), settings.micro_tokens)
    for prompt in prompts:
        if not is_world(Group(prompt, ())):
            raise ConfigError(
                "gold scores belong to the embedded world, and this prompt is not about it",
                where=f"{context.name}.reward",
                got=prompt.id,
                fix="name a reward model, or use the prompts that the stage `world` wrote",
            )
    return RuleScorer(lambda prompt, response: gold(prompt.meta, response.text).total)


def reward_of(context: StageContext, settings: Any, common: dict[str, Any]) -> ScalarModel | None:
    """The reward model that a stage names, frozen; None where the world's rules score."""
    if settings.reward == GOLD:
        return None
    model = load_scalar_model(model_folder(context, settings.reward), **common)
    model.module.requires_grad_(False)
    return model


def gold_metrics(groups: list[Group]) -> Metrics:
    """The gold score of every answer: what the proxy stands for, shown beside it and never trained on."""
    totals = [gold(g.prompt.meta, r.text).total for g in groups for r in g.responses]
    return {"gold": (float(sum(totals)), float(len(totals)))}

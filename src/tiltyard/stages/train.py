"""One stage for every method: load, compose, fit, save. What differs between methods is declared by the method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiltyard.config import arguments
from tiltyard.data import check_data
from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.methods import METHODS
from tiltyard.methods.base import Method
from tiltyard.methods.mlm import Mask
from tiltyard.models.adapters import save_adapter
from tiltyard.models.language import ScalarModel
from tiltyard.models.load import freeze_bottom, save_model
from tiltyard.stages import measure
from tiltyard.stages.backend import keeps_backend, planned, settle
from tiltyard.stages.base import Stage, StageContext, register
from tiltyard.stages.data import groups_of, report
from tiltyard.stages.models import load_models
from tiltyard.stages.online import judges_model
from tiltyard.stages.plan import new_arch, plan_lines
from tiltyard.stages.settings import NEUTRAL, REFERS, WORDS, method_settings
from tiltyard.stages.sources import attach_reference, data_groups, reference_logps, second_source, source_of
from tiltyard.stages.watch import Samples
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.fit import Run, fit
from tiltyard.training.log import LiveLine, Sink, TensorBoard, Wandb
from tiltyard.types import Group


def composed(method: Method, context: StageContext, settings: Any) -> tuple[Algorithm, Models, int, Sequence[Group]]:
    """What a stage hands to the loop: the method with its source, the models, outer steps, the groups of a file."""
    processes.start()
    models = load_models(method, context, settings)
    roles = [method.trains[0], *(role for role in models if role != method.trains[0])]
    settle(context, *map(models.get, roles), planned=planned(context, settings, new_arch(method, settings)))
    for name in method.trains:
        model = models.get(name)
        freeze_bottom(model, settings.freeze_layers)
        if settings.gradient_checkpointing:
            model.checkpoint_activations()
        if not model.packed:
            report(context, "model", [f"{name} runs padded: {model.padded_reason}"])
    source, steps, groups = source_of(method, context, settings, models)
    if settings.warmup >= max(1, steps):
        report(context, "warm-up", [f"{settings.warmup:g} steps of {steps:,}: the rate stays below {settings.lr:g}"])
    second = second_source(method, context, settings, models)
    algorithm = method.build(source, *second, **arguments(method.build, settings))
    attach_reference(method, algorithm, context, settings, models, steps)
    return algorithm, models, steps, groups


def train(method: Method, context: StageContext, settings: Any) -> dict[str, Any]:
    """Trains one method and writes `model/` (for an actor-critic also `value/`), metrics, groups and checkpoints."""
    algorithm, models, steps, groups = composed(method, context, settings)
    trained = models.get(method.trains[0])
    measured: dict[int, dict[str, float]] = {}
    held_out = _held_out(method, context, settings, models, measured, groups)
    watchers: list[Sink] = []
    if settings.sample_every and "policy" in method.trains:
        source: Any = algorithm.source
        asked = tuple(source.prompts[:3]) if method.online else tuple(g.prompt for g in groups[:3])
        watchers.append(Samples(context.console, models, settings.sample_every, context.folder, asked))
    with LiveLine(context.console, context.name, steps) as line:
        fit(algorithm, models, run_of(method, context, settings, steps, held_out, [line, *watchers]))
    result: dict[str, Any] = {"steps": steps, "models_in_memory": models.in_memory + judges_model(settings)}
    if held_out is not None:  # of the model as the loop measured it: what follows may shift and scale its scores
        result |= measured.get(steps) or held_out(models, steps)
    if method.family == "reward":
        trained.compares = not method.pointwise
    if method.pointwise:
        result |= _normalise(context, settings, trained, groups)
    if method.samples != "no":
        result |= spent(context.folder / "metrics.jsonl", settings)
    if processes.is_main():
        save_model(trained, context.folder / "model")
        if settings.lora is not None:
            save_adapter(trained, context.folder / "adapter")
        if "value" in method.trains:
            save_model(models.get("value"), context.folder / "value")
    processes.barrier()
    return result


def spent(metrics: Path, settings: Any) -> dict[str, Any]:
    """How many answers were sampled, and how often a judge or reward model was asked about one, over the run."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    sampled = sum(row.get("sampled", 0.0) for row in rows)
    calls = sum(row["judge_calls"] for row in rows if "judge_calls" in row)
    scored = bool(getattr(settings, "reward", "")) and not getattr(settings, "replay", "")
    found = {"samples": int(sampled), "judge_calls": int(calls or (sampled if scored else 0))}
    return found | {"judge_cost": sum(row.get("judge_cost", 0.0) for row in rows)} if calls else found


def _held_out(
    method: Method,
    context: StageContext,
    settings: Any,
    models: Models,
    measured: dict[int, dict[str, float]],
    train_groups: Sequence[Group],
) -> measure.Measure | None:
    """The held-out measurement of a method's kind; what it finds is also kept in `measured`, by step."""
    if method.online or not settings.held_out:
        return None
    limits = settings.model_copy(update={"limit": 0, "split": ""})
    chat = models.get(method.trains[0]).chat
    groups = data_groups(method, context, "held_out", settings.held_out, limits, chat)
    if method.eats != "text":
        report(context, "check", check_data(train_groups, groups).lines())
    if "encoder" in method.trains:
        chosen = Mask(settings.mask, settings.to_mask, settings.to_random, settings.seed)
        find = measure.cloze(groups, settings.tokens_per_microbatch, chosen)
    elif method.family == "reward":
        find = measure.ranking(groups, settings.tokens_per_microbatch)
    elif method.eats in ("comparisons", "labelled"):
        find = measure.preference(
            groups, settings.tokens_per_microbatch, reference_logps(context, settings, models, groups)
        )
    else:
        find = measure.likelihood(groups, settings.tokens_per_microbatch)

    def remember(models: Models, step: int) -> dict[str, float]:
        measured[step] = find(models, step)
        return measured[step]

    return remember


def run_of(
    method: Method,
    context: StageContext,
    settings: Any,
    steps: int,
    held_out: measure.Measure | None,
    sinks: list[Sink],
) -> Run:
    """The loop's settings from the stage's."""
    if processes.is_main():
        if "tensorboard" in settings.log_to:
            sinks.append(TensorBoard(context.folder / "tensorboard"))
        if "wandb" in settings.log_to:
            sinks.append(Wandb("tiltyard", f"{context.run_name}/{context.name}", settings.model_dump()))
    lr: Any = settings.lr
    if "value" in method.trains:
        lr = {"policy": settings.lr, "value": settings.value_lr or settings.lr}
    return Run(
        steps=steps,
        lr=lr,
        schedule=settings.schedule,
        final_lr=settings.final_lr,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        max_grad_norm=settings.max_grad_norm,
        dropout=settings.dropout,
        tokens_per_microbatch=settings.tokens_per_microbatch,
        seed=settings.seed,
        folder=context.folder,
        save_every=settings.save_every,
        keep_groups=method.samples != "no",
        evaluate=held_out,
        eval_every=settings.eval_every,
        sinks=sinks,
    )


def _normalise(context: StageContext, settings: Any, model: ScalarModel, groups: Sequence[Group]) -> dict[str, Any]:
    """Shifts rewards so that demonstrations average 0 (Stiennon et al. 2020), and scales them to variance 1 if asked.

    A shift changes no preference and no pi*; a factor a does: pi*(a r, beta) is pi*(r, beta / a), so a KL coefficient
    that was chosen for one scale means another on the other (Ziegler et al. 2019 normalise for that reason).
    """
    if settings.normalise == "none":
        return {}
    if settings.demonstrations:
        groups = groups_of(context, "demonstrations", settings.demonstrations, "demonstrations", model.chat, settings)
    every = measure.each_score(model, groups, settings.tokens_per_microbatch)
    scores = np.fromiter((s for row in every for s in row), dtype=np.float64)
    mean, spread = float(scores.mean()), float(scores.std())
    model.bias += mean / model.gain
    found: dict[str, Any] = {"reward_bias": model.bias}
    if settings.normalise == "unit":
        if spread < 1e-8:
            raise DataError(
                "all demonstrations score alike, so rewards cannot be scaled by their spread",
                where=f"{context.name}.normalise",
                got=f"a standard deviation of {spread:g}",
                fix="set normalise=mean, or train longer",
            )
        model.gain /= spread
        found["reward_gain"] = model.gain
    return {**found, "normalised_on": settings.demonstrations or "the training answers"}


def _stage(method: Method) -> Stage:
    fields = method_settings(method).model_fields
    refers = tuple(key for key in REFERS if key in fields)

    def run(context: StageContext, settings: Any) -> dict[str, Any]:
        return train(method, context, settings)

    def plan(context: StageContext, settings: Any) -> list[str]:
        return plan_lines(method, context, settings)

    neutral = tuple(k for k in NEUTRAL if k in fields)
    return Stage(
        name=method.name,
        run=keeps_backend(run),
        settings=method_settings(method),
        summary=method.summary,
        refers=refers,
        words=WORDS,
        plan=plan,
        neutral=neutral,
        parallel=True,
    )


for _method in METHODS.values():
    register(_stage(_method))

__all__ = ["load_models", "train"]

"""One stage for every method: load, build, fit, save. What differs between methods is in what they declare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tiltyard.config import arguments
from tiltyard.distributed import processes
from tiltyard.distributed.parts import gathered
from tiltyard.feedback.scorers import counted
from tiltyard.inputs.base import Opened
from tiltyard.inputs.contexts import check_contexts
from tiltyard.inputs.measure import Measure
from tiltyard.inputs.offline import FileSource
from tiltyard.inputs.reference import attach_reference
from tiltyard.inputs.roles import Value
from tiltyard.inputs.scores import (
    WORDS,
    ScoreSettings,
    Scoring,
    judge_in_memory,
    load_reward,
    open_scoring,
)
from tiltyard.inputs.settings import PromptSettings, StageSettings
from tiltyard.methods import METHODS
from tiltyard.methods.base import Method
from tiltyard.methods.from_file import load_method
from tiltyard.models.adapters import save_adapter
from tiltyard.models.backbone import Backbone
from tiltyard.models.finite import require_finite
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import check_saving, freeze_bottom, save_model
from tiltyard.models.saving import SaveDType, save_spread, saved_width
from tiltyard.models.written import check_written
from tiltyard.runs.reader import read_alarms
from tiltyard.stages.alarm_log import AlarmLog
from tiltyard.stages.backend import keeps_backend, planned, report_model, settle
from tiltyard.stages.base import STAGES, Stage, StageContext, register
from tiltyard.stages.card import write_card
from tiltyard.stages.kept_models import ModelKeeper
from tiltyard.stages.methods import FILE_METHODS
from tiltyard.stages.penalty_note import PenaltyNote
from tiltyard.stages.plan import plan_lines
from tiltyard.stages.rehearsal import pace, rehearse
from tiltyard.stages.sample_logger import SampleLogger
from tiltyard.stages.settings import REFERS, method_settings
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.fit import chosen_strategy, fit
from tiltyard.training.log import LiveLine, Sink, TensorBoard, Wandb, closing


class Composed(NamedTuple):
    """The algorithm, the models and the opened source of a training stage."""

    algorithm: Algorithm
    models: Models
    opened: Opened
    extra_models: int  # in memory, besides `models`: a judge, further rewards


def load(method: Method, context: StageContext, settings: StageSettings) -> tuple[Models, Scoring | None, int]:
    """(the models of a method, what scores its samples, further models in memory)."""
    check_contexts(context, settings)  # in every process; the plan has printed its lines
    models = Models()
    models[method.start.name] = method.start.load(context, settings)
    scoring, extra = None, 0
    if isinstance(settings, PromptSettings):
        rewards = load_reward(context, settings, models.get("policy"))
        for number, (name, model) in enumerate(rewards.items()):
            models[f"reward/{name}" if number else "reward"] = model
        scoring = open_scoring(context, settings, models, rewards)
        extra = int(judge_in_memory(settings))
    for role in method.roles:
        if isinstance(role, Value):
            models.value = role.load(context, settings, models)
    roles = [method.start.name, *(role for role in models if role != method.start.name)]
    require_finite(models.present())
    for name in roles:
        if notes := models.get(name).origin.notes:
            context.report(name, list(notes))
    settle(context, *map(models.get, roles), planned=planned(context, settings))
    if settings.models.shard and processes.world() == 1:
        context.report("shard", ["one process keeps all weights; torchrun --nproc-per-node N spreads them over N"])
    for name in method.trains:
        model = models.get(name)
        freeze_bottom(model, settings.models.freeze_layers)
        if settings.models.gradient_checkpointing:
            model.checkpoint_activations()
        samples = name == method.start.name and method.source.samples != "no"
        report_model(context, name, model, samples=samples)
    return models, scoring, extra


def compose(method: Method, context: StageContext, settings: StageSettings) -> Composed:
    """Loads the models, opens the data and builds the algorithm of a stage."""
    processes.start()
    models, scoring, extra = load(method, context, settings)
    chat = models.get(method.start.name).chat
    opened = method.source.open(context, settings, chat, scoring)
    for line in pace(settings, opened):
        key, _, rest = line.partition(": ")
        context.report(key, [rest])
    aux = () if method.aux_data is None else (method.aux_data.open(context, settings, chat),)
    algorithm = method.build(opened.source, *aux, **arguments(method.build, settings))
    attach_reference(algorithm, context, settings, models, opened.steps)
    return Composed(algorithm, models, opened, extra)


def train(method: Method, context: StageContext, settings: StageSettings) -> dict[str, Any]:
    """Trains one method and writes `model/` (for an actor-critic also `value/`), metrics, groups and checkpoints."""
    work = compose(method, context, settings)
    models, steps = work.models, work.opened.steps
    width = settings.models.save_dtype
    for trained in (models.get(method.start.name), models.value):
        if trained is not None and processes.is_main():
            check_saving(trained, dtype=width)
    held_out = HeldOut(method, context, settings, work)
    strategy = chosen_strategy(settings)
    with (
        LiveLine(context.console, context.name, steps) as line,
        closing(_sinks(method, context, settings, work)) as sinks,
    ):
        fit(
            work.algorithm,
            models,
            settings.model_copy(update={"steps": steps}),
            strategy=strategy,
            folder=context.folder,
            keep_groups=method.samples_policy,
            evaluate=held_out.evaluate,
            sinks=[line, *sinks],
        )
    result: dict[str, Any] = {"steps": steps, "models_in_memory": models.in_memory + work.extra_models}
    model = models.get(method.start.name)
    figures = dict(held_out.last(models, steps))  # of the model as the loop measured it: scores are normalised below
    with gathered(model.module) if method.start.measures else nullcontext():
        figures |= method.start.finish(context, settings, model, work.opened.groups)
    result |= figures
    if method.samples_policy:
        result |= spent(context.folder / "metrics.jsonl", settings)
        if result.get("judge_missing"):
            context.report("judge", [f"without a verdict: {counted(result['judge_missing_causes'])}"])
    context.report("saving", [f"{method.start.name} to {context.folder / 'model'}"])
    saved = {"model": model} | ({} if models.value is None else {"value": models.value})
    left = {
        name: one for name, one in saved.items() if not (strategy.same_passes and _spread(context, name, one, width))
    }
    if left:
        strategy.release()
    if processes.is_main():
        for name, one in left.items():
            save_model(one, context.folder / name, dtype=width)
            if name == "model" and strategy.same_passes:
                _report_written(context, check_written(one, context.folder / name, saved_width(one, width)))
        write_card(context, method, settings, model, work.opened, figures, result)
        if settings.models.lora is not None:
            save_adapter(model, context.folder / "adapter")
        if alarms := read_alarms(context.folder / "alarms.jsonl"):
            result["alarms"] = [{key: row[key] for key in ("step", "kind", "text")} for row in alarms]
    processes.barrier()
    return result


def _spread(context: StageContext, name: str, model: Backbone, width: SaveDType) -> bool:
    """Writes a model that is spread over processes and compares the trained one with what was written; see there."""
    folder = context.folder / name
    if not save_spread(model, folder, dtype=width):
        return False
    if name == "model":
        _report_written(context, check_written(model, folder, saved_width(model, width)))
    return True


def _report_written(context: StageContext, gap: float | None) -> None:
    if processes.is_main():
        context.report("saved", [] if gap is None else [f"read again, its outputs differ by {gap:.2g}"])


class HeldOut:
    """The measurement on held-out groups, where the settings name some, and what it gave at each step."""

    def __init__(self, method: Method, context: StageContext, settings: StageSettings, work: Composed):
        self.results: dict[int, dict[str, float]] = {}
        self._measure: Measure | None = None
        self._report, self._steps = context.report, work.opened.steps
        groups = method.source.held_out(context, settings, work.models.get(method.start.name).chat)
        if groups is None:
            return
        if isinstance(method.source, FileSource):
            context.report("check", method.source.overlap(work.opened.groups, groups))
        self._size, budget = len(groups), settings.run.tokens_per_microbatch
        self._measure = method.start.measure(work.algorithm, groups, budget) or method.source.measure(
            context, settings, work.models, groups
        )

    @property
    def evaluate(self) -> Measure | None:
        """The function that the loop calls; None without held-out groups."""
        return None if self._measure is None else self._remember

    def _remember(self, models: Models, step: int) -> dict[str, float]:
        assert self._measure is not None
        if step == self._steps:  # nothing else is printed while it takes its time
            self._report("measuring", [f"after the last step, on {self._size:,} held-out groups"])
        self.results[step] = self._measure(models, step)
        return self.results[step]

    def last(self, models: Models, step: int) -> dict[str, float]:
        """The result at a step, measured now if the loop did not."""
        return {} if self._measure is None else self.results.get(step) or self._remember(models, step)


def _sinks(method: Method, context: StageContext, settings: StageSettings, work: Composed) -> Sequence[Sink]:
    """Returns the sinks for samples on the console, TensorBoard and W&B that the settings select."""
    sinks: list[Sink] = []
    if settings.run.sample_every and "policy" in method.trains:
        prompts = tuple(work.opened.prompts)
        sinks.append(SampleLogger(context.console, work.models, settings.run.sample_every, context.folder, prompts))
    if processes.is_main():
        if settings.run.models_every and isinstance(policy := work.models.get(method.start.name), LanguageModel):
            every, width = settings.run.models_every, settings.models.save_dtype
            sharded = settings.models.shard and processes.world() > 1
            sinks.append(ModelKeeper(policy, every, context.folder, width, sharded=sharded))
        if isinstance(settings, PromptSettings):
            sinks.append(AlarmLog(context.console, context.name, context.folder, settings))
        rule, penalty = (getattr(settings, key, None) for key in ("missing_eos", "missing_eos_penalty"))
        if rule is not None and penalty is not None:
            sinks.append(PenaltyNote(context.console, rule, penalty))
        if "tensorboard" in settings.run.log_to:
            sinks.append(TensorBoard(context.folder / "tensorboard"))
        if "wandb" in settings.run.log_to:
            name, values = f"{context.run_name}/{context.name}", settings.model_dump()
            sinks.append(Wandb("tiltyard", name, values, context.execution))
    return sinks


def spent(metrics: Path, settings: StageSettings) -> dict[str, Any]:
    """Counts the responses sampled and the calls of judges and rewards over the run."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    sampled = sum(row.get("sampled", 0.0) + row.get("ref_sampled", 0.0) for row in rows)
    calls = sum(row["judge_calls"] for row in rows if "judge_calls" in row)
    scored = isinstance(settings, ScoreSettings) and bool(settings.reward)
    replayed = isinstance(settings, PromptSettings) and bool(settings.replay)
    result: dict[str, Any] = {
        "samples": int(sampled),
        "judge_calls": int(calls or (sampled if scored and not replayed else 0)),
    }
    if calls:
        result["judge_cost"] = sum(row.get("judge_cost", 0.0) for row in rows)
        result["judge_missing"] = int(sum(row.get("judge_missing", 0.0) for row in rows))
        causes = sorted({key for row in rows for key in row if key.startswith("judge_missing/")})
        result["judge_missing_causes"] = {
            key.partition("/")[2]: int(sum(r.get(key, 0.0) for r in rows)) for key in causes
        }
    return result


def stage_of(method: Method) -> Stage:
    """The stage that trains a method."""
    model = method_settings(method)

    def run(context: StageContext, settings: StageSettings) -> dict[str, Any]:
        return train(method, context, settings)

    def plan(context: StageContext, settings: StageSettings) -> list[str]:
        if not context.dry_run:
            return plan_lines(method, context, settings)
        data, lengths = rehearse(method, stage, context, settings)
        return [*plan_lines(method, context, settings, lengths), *data]

    stage = Stage(
        name=method.name,
        run=keeps_backend(run),
        settings=model,
        summary=method.summary,
        refers=tuple(key for key in REFERS if key in model.model_fields),
        words=WORDS,
        plan=plan,
        parallel=True,
    )
    return stage


def stage_of_file(spec: str, folder: Path | None, where: str) -> Stage:
    """The stage that trains a method of a user's own file; the file is part of its fingerprint.

    Args:
        spec: `file.py:function`. folder, where: see `load_method`.
    """
    method, path = load_method(spec, folder, where=where)
    stage = replace(stage_of(method), name=spec, files=((spec, path),))
    FILE_METHODS[spec] = method
    STAGES[spec] = stage
    return stage


for _method in METHODS.values():
    register(stage_of(_method))

"""Cost of a model of a run: its own stage's responses and seconds, and the judgements that it depends on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tiltyard.methods import METHODS
from tiltyard.runs import Ref, StageReader
from tiltyard.stages.base import STAGES, StageContext, references


def cost_of(context: StageContext, model: str, diversity: float | None) -> dict[str, Any]:
    """Returns the cost of a model of this run; null where unknown, as for a model from elsewhere.

    `samples` and `seconds` are its own stage's. `judge_calls` counts responses that a reward model scored and questions
    that an AI judge answered, and `rankings` those that people made, in the stage and in all those that it builds on:
    RLAIF calls its judge before it trains. `judge_missing`: questions of those that got no verdict.
    """
    stage = _stage_of(context, model)
    known: dict[str, Any] = dict.fromkeys(("samples", "judge_calls", "judge_missing", "rankings"))
    if stage:
        behind = [context.results.get(name, {}) for name in {stage, *builds_on(context, stage)}]
        known = {"samples": context.results.get(stage, {}).get("samples", 0)}
        known |= {key: sum(result.get(key, 0) for result in behind) for key in ("judge_calls", "rankings")}
        known["judge_missing"] = sum(result.get("judge_missing", result.get("missing", 0)) for result in behind)
    config = StageReader(context.outputs[stage]).config if stage else None
    method = METHODS.get(config.kind) if config else None
    if method is not None:
        kept = [name for name in method.frozen if name not in method.cached]
        known["models_in_memory"] = context.results[stage].get("models_in_memory", len(method.trains) + len(kept))
    return {**known, "seconds": context.seconds.get(stage), "diversity": diversity}


def builds_on(context: StageContext, name: str) -> Iterator[str]:
    """The stages of the run that a stage refers to, and theirs; one may come more than once."""
    config = StageReader(context.outputs[name]).config
    kind = STAGES.get(config.kind) if config else None
    if config is None or kind is None:
        return
    settings = kind.settings.model_validate_json(json.dumps(config.settings))  # a tuple comes back as a list
    for _, value in references(kind, settings):
        earlier = _stage_of(context, value)
        if earlier and earlier != name:
            yield earlier
            yield from builds_on(context, earlier)


def _stage_of(context: StageContext, value: str) -> str:
    """The stage of this run that a setting refers to; "" if it is something else."""
    ref = Ref.find(value, stages=context.outputs)
    return ref.name if ref is not None and ref.kind == "stage" else ""

"""The backend of a stage's models: planned, chosen with its first model, kept in config.json, compared on a resume.

A stage that is resumed keeps the backend that it was started with where the machine has it: backends differ in the last
bits. Where the machine lacks it (no compiler any more, another processor, another version of torch) the stage goes on;
that is printed and kept under `backend_changes`. A finished stage is never run again because of its backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from pydantic import BaseModel

from tiltyard.distributed import processes
from tiltyard.errors import ConfigError, TiltyardError
from tiltyard.files import read_json, write_json
from tiltyard.inputs.contexts import config_of
from tiltyard.inputs.settings import Arch, PretrainSettings, StageSettings
from tiltyard.kernels import backend, measure
from tiltyard.kernels.base import Backend
from tiltyard.models.backbone import Backbone
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import PRESETS, pick_device
from tiltyard.sampling.ways import decoding_note
from tiltyard.stages.base import StageContext

FAMILY = ("llama", "mistral", "qwen2", "qwen3")  # model types whose decoding steps are computed by a decoder
Run = Callable[[StageContext, Any], dict[str, Any]]


def keeps_backend(run: Run) -> Run:
    """Makes a stage load its models with the backend that it was started with, where it is resumed."""

    @wraps(run)
    def wrapped(context: StageContext, settings: BaseModel) -> dict[str, Any]:
        with backend.preferred(backend.from_record(_kept(context).get("backend"))):
            return run(context, settings)

    return wrapped


def settle(context: StageContext, *models: Backbone, planned: Backend | None = None) -> None:
    """Prints the backend of a stage's models, which share one library of linear layers, and keeps it in config.json.

    Args:
        models: the first one decides. With several processes rank 0's decides. planned: as the plan has shown it.
    """
    chosen = processes.broadcast_object(models[0].backend)
    backend.prefer(chosen)  # for the models that are loaded later
    for model in models:
        if model.backend.linear != chosen.linear and model.device.type == "cpu":
            model.use_backend(replace(model.backend, linear=chosen.linear, why_linear=chosen.why_linear))
    if not processes.is_main():
        return
    if planned is None or planned.describe() != chosen.describe():
        context.report("backend", [chosen.describe()])
    config, now = _kept(context), backend.record(chosen)
    if not config:
        return
    if changed := backend.changes(config.get("backend") or {}, now):
        line = "the results may differ in the last bits from those of an uninterrupted run"
        context.report("backend", [f"resumed on another one ({', '.join(changed)}): {line}"])
        at = datetime.now(UTC).isoformat(timespec="seconds")
        config["backend_changes"] = [*config.get("backend_changes", []), {"at": at, "changes": changed}]
    write_json(context.folder / "config.json", {**config, "backend": now})


def report_model(context: StageContext, name: str, model: Backbone, *, samples: bool) -> None:
    """Prints what is unusual about a model: its chat template, padded passes, a slower way of sampling.

    Args:
        samples: the stage samples from it, so the way is tried here, before anything is computed.

    Raises:
        ModelError: it cannot be sampled from.
    """
    lines = [f"{name}: chat template {note}" for note in model.chat.notes]
    if not model.packed:
        lines.append(f"{name} runs padded: {model.padded_reason}")
    if model.rows_alone:
        lines.append(f"{name} runs row by row: {model.rows_alone}")
    if samples and isinstance(model, LanguageModel) and (note := decoding_note(model)):
        lines.append(f"{name} is {note}")
    context.report("model", lines)


def _kept(context: StageContext) -> dict[str, Any]:
    return read_json(context.folder / "config.json") or {}


def planned(context: StageContext, settings: StageSettings) -> Backend:
    """Returns the backend that a stage's model will get, as far as that is known before it is loaded."""
    arch = new_arch(settings)
    shapes: measure.Shapes | None = None
    supported = True
    try:
        if arch is not None:
            width, _, heads, kv_heads, inner = PRESETS[arch.preset]
            shapes = measure.shapes_of_decoder(width, heads, kv_heads, inner)
        else:
            config = config_of(context, settings.model)
            supported = config.get("model_type") in FAMILY
            shapes = _shapes(config) if supported else None
        device = pick_device(settings.models.device).type
    except (OSError, KeyError, TypeError, ValueError, TiltyardError) as error:
        if isinstance(error, ConfigError) and error.where == "device":
            raise
        device = "cpu"
    return backend.expected(shapes, dtype=settings.models.dtype, device=device, supported=supported)


def new_arch(settings: StageSettings) -> Arch | None:
    """The architecture of a model that the stage makes from scratch, or None."""
    return settings.arch if isinstance(settings, PretrainSettings) and not settings.model else None


def _shapes(config: Mapping[str, Any]) -> measure.Shapes:
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    sizes = (config["hidden_size"], heads, kv_heads, config["intermediate_size"])
    return measure.shapes_of_decoder(*sizes, head_dim=config.get("head_dim"))

"""The model card of a training stage: its facts, collected from the settings, the data and the models."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from tiltyard.config import REQUIRED, describe
from tiltyard.distributed import processes
from tiltyard.files import jsonable, read_json, write_atomic
from tiltyard.inputs.base import Opened
from tiltyard.inputs.settings import StageSettings
from tiltyard.inputs.workspace import Workspace
from tiltyard.methods.base import Method
from tiltyard.models import gguf_files
from tiltyard.models.backbone import Backbone
from tiltyard.models.encoder import MaskedModel
from tiltyard.models.language import LanguageModel
from tiltyard.models.lora import Lora
from tiltyard.records import execution_keys, flattened
from tiltyard.report.card import Base, Card, front_matter, render
from tiltyard.report.html.cost import cost_of
from tiltyard.runs import Ref, read_alarms, read_metric_rows
from tiltyard.runs.model_card import NAME
from tiltyard.stages.base import texts
from tiltyard.stages.settings import REFERS
from tiltyard.training.log import duration

DATA = ("data", "prompts", "demonstrations", "replay")
PACKAGES = ("tiltyard", "torch", "transformers")


def write_card(
    work: Workspace,
    method: Method,
    settings: StageSettings,
    model: Backbone,
    opened: Opened,
    figures: Mapping[str, Any],
    result: Mapping[str, Any],
) -> None:
    """Writes the card beside the model of a stage. Equal facts give equal bytes: a resumed run writes the same card.

    Args:
        figures: what was measured of the model. result: of the stage, with what it sampled and asked.
    """
    data = [found for key in keys_of(method) for found in texts(key, getattr(settings, key, None))]
    lora = settings.models.lora
    card = Card(
        title=f"{work.run_folder.name}/{work.name}",
        pipeline=_pipeline(model),
        method=method.name,
        summary=method.summary,
        formula=method.formula,
        paper=method.paper,
        base=base_of_card(str(getattr(model.module.config, "_name_or_path", "") or "")),
        lora="" if lora is None else f"rank {lora.rank}, alpha {lora.alpha:g}",
        data=[(key, called(text), _digest(work, text)) for key, text in data],
        datasets=sorted({text for _, text in data if _kind(work, text) == "hub"}),
        counts={"steps": opened.steps, **({"groups": len(opened.groups)} if opened.groups else {})},
        settings=changed(type(settings), settings, left_out={"model", "seed", *(key for key, _ in data)}),
        figures={key: float(value) for key, value in figures.items() if _is_number(value)},
        cost=_cost(work, model, result),
        seed=settings.seed,
        alarms=[(int(row["step"]), row["text"]) for row in read_alarms(work.folder / "alarms.jsonl")],
        versions={name: _version(name) for name in PACKAGES} | {"Python": platform.python_version()},
    )
    write_atomic(work.folder / "model" / NAME, render(card).encode())


def _cost(work: Workspace, model: Backbone, result: Mapping[str, Any]) -> dict[str, str]:
    """The cost of training as text: time of all steps, energy estimated from it, responses and judgements."""
    path = work.folder / "metrics.jsonl"
    rows = read_metric_rows(path) if path.exists() else []
    seconds = sum(float(row["time/seconds"]) for row in rows if _is_number(row.get("time/seconds")))
    device, count = model.device.type, processes.world()
    machine = f"{count} x {device}" if count > 1 else device
    threads = torch.get_num_threads()
    machine += f", {threads} {'thread' if threads == 1 else 'threads'}" if device == "cpu" else ""
    cost = cost_of([{"seconds": seconds * count, "threads": torch.get_num_threads(), "device": device}], None, None)
    spent = {key: f"{result[key]:,}" for key in ("samples", "judge_calls") if result.get(key)}
    return {
        "time of the steps": f"{duration(seconds)} ({machine})",
        "energy": f"about {cost['energy']}, estimated from the time" if seconds else "not known",
        **{key.replace("_", " "): value for key, value in spent.items()},
    }


def base_of_card(source: str) -> Base:
    """The facts about a base: its name without the path of a machine; name on the hub and licence by its own files."""
    if not source:
        return Base()
    path = Path(source)
    if not path.exists():
        return Base(source, source)
    head = front_matter(path) if path.is_dir() else {}
    file = gguf_files.gguf_of(path)
    facts = read_json((path if file is None else gguf_files.converted(file)) / gguf_files.SOURCE) or {}
    hub = head.get("base_model") or facts.get("hub") or ""
    licence = head.get("license") or facts.get("licence") or ""
    return Base(called(source), hub if isinstance(hub, str) else "", licence if isinstance(licence, str) else "")


def called(text: str) -> str:
    """A model or file by name: RUN/STAGE of a stage and its model, the last part of another path, else as it is."""
    path = Path(text)
    if not path.is_absolute() and not path.exists():
        return text
    if path.name == "model" and (path.parent / "config.json").exists():
        path = path.parent
    return "/".join(path.parts[-2:]) if (path / "metrics.jsonl").exists() else path.name


def keys_of(method: Method) -> list[str]:
    """The settings that name the data of a method."""
    return [*DATA, *([method.aux_data.key] if method.aux_data is not None else [])]


def changed(kind: type[BaseModel], settings: BaseModel, left_out: set[str]) -> list[tuple[str, str, str]]:
    """(key, value, default) of the settings that are not at their defaults and may change the result; paths by name."""
    usual = {row.key: row.default for row in describe(kind)}
    usual |= {f"models.lora.{key}": value for key, value in Lora.model_validate({}).model_dump().items()}
    values = {key: getattr(settings, key) for key in type(settings).model_fields}
    flat = flattened(jsonable({key: _dumped(value) for key, value in values.items()}))
    silent = {*execution_keys(kind), *left_out}
    rows = []
    for key, value in flat.items():
        default = usual.get(key, usual.get(key.partition(".")[0], REQUIRED))
        required = default is REQUIRED
        if key in silent or key.partition(".")[0] in silent or (not required and jsonable(_dumped(default)) == value):
            continue
        known = "" if required or key not in usual else _shown(jsonable(_dumped(default)), key)
        rows.append((key, _shown(value, key), known))
    return rows


def _dumped(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _shown(value: Any, key: str) -> str:
    """A value in one line; of what may be a path the name alone."""
    if value in ("", [], {}):
        return "empty"
    if isinstance(value, str):
        return called(value) if key.partition(".")[0] in REFERS or "/" in value else value
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_shown(inner, key)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_shown(inner, key) for inner in value)
    return json.dumps(value, ensure_ascii=False)


def _kind(work: Workspace, text: str) -> str:
    ref = Ref.find(text, folder=work.recipe_folder)
    return "" if ref is None else ref.kind


def _digest(work: Workspace, text: str) -> str:
    """sha256 of a file; "" for a folder or a data set of the hub."""
    try:
        path = Path(work.resolve(text, want=""))
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def _pipeline(model: Backbone) -> str:
    if isinstance(model, LanguageModel):
        return "text-generation"
    return "fill-mask" if isinstance(model, MaskedModel) else "text-classification"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"

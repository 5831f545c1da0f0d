"""Toy stages: they write small files, count how often they ran, and can be slow or fail on demand.

`python -m tests.pipeline.toys RECIPE ROOT [OVERRIDE ...]` runs a recipe of them in a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tiltyard.config import settings_model
from tiltyard.records import EXECUTION, Settings
from tiltyard.stages import base
from tiltyard.stages.base import STAGES, Stage, StageContext, register

MODULES = base.MODULES
Pause = Annotated[float, EXECUTION]
FailAt = Annotated[int, EXECUTION]


class Common(Settings):
    """What every toy has."""

    seed: int = Field(0, description="seeds everything")
    log: Annotated[str, EXECUTION] = "none"


class Arch(Settings):
    """A nested record."""

    preset: Literal["1m", "12m"] = "1m"
    layers: int = 2


def make(*, text: str = "hello", size: Annotated[int, Field(gt=0)] = 3) -> None:
    """Make a file.

    Args:
        text: what is written
            on every line
        size: how many lines
    """


def learn(*, data: str, arch: Arch | None = None, steps: int = 4, pause: Pause = 0.0, fail_at: FailAt = -1) -> None:
    """Learn something."""


def tune(*, model: str, reward: str = "gold", kl: Annotated[float, Field(ge=0)] = 0.05) -> None:
    """Tune a model."""


def measure(*, models: list[str], seed: int = 0) -> None:
    """Measure models."""


def run_make(context: StageContext, settings: Any) -> dict[str, Any]:
    (context.folder / "lines.jsonl").write_text(f"{settings.text}\n" * settings.size)
    return {"lines": settings.size}


def run_learn(context: StageContext, settings: Any) -> dict[str, Any]:
    """Adds 1 a step, keeping the sum in a checkpoint; what each process did goes to `steps.log`."""
    data = context.resolve(settings.data, want="lines.jsonl").read_text()
    checkpoint = context.folder / "checkpoint.json"
    step, total = json.loads(checkpoint.read_text()) if checkpoint.exists() else (0, 0)
    while step < settings.steps:
        if step == settings.fail_at and not context.resumed:
            raise FloatingPointError("the toy fails here")
        step, total = step + 1, total + len(data)
        temporary = context.folder / "checkpoint.tmp"
        temporary.write_text(json.dumps([step, total]))
        temporary.replace(checkpoint)
        with (context.folder / "steps.log").open("a") as log:
            log.write(f"{os.getpid()} {step}\n")
        time.sleep(settings.pause)
    save_model(context, str(total))
    return {"total": total, "loss": float("nan")}


def run_tune(context: StageContext, settings: Any) -> dict[str, Any]:
    before = (context.resolve(settings.model) / "weights").read_text()
    save_model(context, f"{before}*{settings.kl}")
    return {"from": before}


def run_measure(context: StageContext, settings: Any) -> dict[str, Any]:
    weights = {name: (context.resolve(name) / "weights").read_text() for name in settings.models}
    return {"weights": weights, "seconds": dict(context.seconds)}


def save_model(context: StageContext, text: str) -> None:
    (context.folder / "model").mkdir(exist_ok=True)
    (context.folder / "model" / "weights").write_text(text)


def plan_tune(context: StageContext, settings: Any) -> list[str]:
    return [f"tunes {context.resolve(settings.model).name}, dry_run={context.dry_run}"]


def install() -> None:
    """Register the toys; the real stages, which import torch, stay out."""
    base.MODULES = ()
    register(Stage("make", run_make, settings_model("make", Common, make), "makes data"))
    learned = settings_model("learn", Common, learn)
    register(Stage("learn", run_learn, learned, "learns", refers=("data",)))
    tuned = settings_model("tune", Common, tune)
    register(Stage("tune", run_tune, tuned, "tunes", refers=("model", "reward"), words=("gold",), plan=plan_tune))
    measured = settings_model("measure", measure)
    register(Stage("measure", run_measure, measured, "measures", refers=("models",)))


def remove() -> None:
    """Forget the toys."""
    base.MODULES = MODULES
    for name in ("make", "learn", "tune", "measure"):
        STAGES.pop(name, None)


RECIPE = """name: toy
defaults: {seed: 1}
stages:
  - make: {text: abc}
  - learn:
      data: make
      steps: 4
  - tune: {model: learn, kl: 0.1}
  - tune_free: {method: tune, model: learn, kl: 0}
  - measure:
      models: [learn, tune, tune_free]
"""


if __name__ == "__main__":
    from tiltyard.pipeline import run_recipe

    install()
    outcome = run_recipe(sys.argv[1], sys.argv[3:], runs_root=Path(sys.argv[2]))
    if os.environ.get("RANK"):  # a process may run more than once
        run_recipe(sys.argv[1], sys.argv[3:], runs_root=Path(sys.argv[2]))
    print(json.dumps({name: stage["status"] for name, stage in outcome["stages"].items()}))

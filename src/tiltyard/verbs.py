"""What the verbs of the command line share: where models are, running one stage, showing what it found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from tiltyard.errors import ConfigError, ModelError, nearest


def console_for(json_output: bool) -> Console:
    """For progress: standard error where standard output is to be JSON alone."""
    return Console(stderr=json_output)


def emit(value: Any) -> None:
    """Print JSON."""
    from tiltyard.files import jsonable

    typer.echo(json.dumps(jsonable(value), indent=2, ensure_ascii=False))


def one_stage(
    kind: str, pairs: Sequence[str] | None, *, dry_run: bool, json_output: bool, runs: Path
) -> dict[str, Any]:
    """Run one kind of stage with `KEY=VALUE` words; `name=` is the run's name."""
    from tiltyard.pipeline import run_stage
    from tiltyard.pipeline.recipe import COMMAND_LINE
    from tiltyard.stages.base import get_stage

    get_stage(kind)  # an unknown method is said before its settings are read
    words = list(pairs or ())
    names = [word for word in words if word.partition("=")[0].strip() == "name"]
    values = values_of([word for word in words if word not in names])
    name = names[-1].partition("=")[2].strip() if names else None
    console = console_for(json_output)
    return run_stage(kind, values, name=name, dry_run=dry_run, runs_root=runs, console=console, place=COMMAND_LINE)


def values_of(words: Sequence[str]) -> dict[str, Any]:
    """The settings that `KEY=VALUE` words mean; dotted keys are settings of settings."""
    from tiltyard.config import split_assignment
    from tiltyard.pipeline.recipe import COMMAND_LINE, set_key

    values: dict[str, Any] = {}
    for word in words:
        key, value = split_assignment(word)
        values = set_key(values, key, value, f"{COMMAND_LINE}: {word}")
    return values


def bench_values(method: str, model: Path, data: str, prompts: str, words: Sequence[str] | None) -> dict[str, Any]:
    """The settings of the stage that `bench` measures.

    Raises:
        ConfigError: data for a method that takes prompts, or prompts for one that takes data.
    """
    from tiltyard.methods import METHODS

    wanted = "prompts" if method in METHODS and METHODS[method].online else "data"
    given = {"data": data, "prompts": prompts}
    for key, value in given.items():
        if value and key != wanted and method in METHODS:
            raise ConfigError(f"{method} takes no {key}", where=f"--{key}", got=value, fix=f"give it --{wanted}")
    return {"model": str(model), **{k: v for k, v in given.items() if v}, **values_of(words or ())}


def show_result(outcome: dict[str, Any], stage: str) -> None:
    """The numbers that a stage gave, and where its files are."""
    from tiltyard.pipeline.ranks import is_main

    if not is_main():
        return
    console = console_for(False)
    for key, value in outcome["stages"][stage]["result"].items():
        if not isinstance(value, dict | list):
            console.print(f"  {key}: {value}", markup=False, highlight=False)
    console.print(f"everything is in {outcome['stages'][stage]['folder']}", highlight=False, soft_wrap=True)


def sampled(prompt: str, group: Any) -> dict[str, Any]:
    """The answers to one prompt as JSON."""
    responses = [
        {
            "text": r.text,
            "finish": r.finish,
            "tokens": len(r.ids),
            "logp": None if r.logps is None else sum(r.logps),
        }
        for r in group.responses
    ]
    return {"prompt": prompt, "responses": responses}


def find_model(name: str, runs: Path = Path("runs")) -> Path:
    """The folder of a model: a path, a stage's folder (its `model/`), RUN/STAGE below `runs`, or a hub name."""
    from tiltyard.stages.base import find_path, looks_like_hub, stage_output

    for candidate in (name, str(runs / name)):
        path = find_path(candidate)
        if path is None:
            continue
        model = stage_output(path)
        inside = sorted(str(p.parent) for p in path.glob("*/model") if p.is_dir()) if model == path else []
        if inside:
            raise ConfigError("this is a whole run; name one of its stages", where=name, expected=", ".join(inside))
        if model == path and (path / "done.json").exists():
            raise ConfigError("this stage made no model", where=name)
        return model
    if looks_like_hub(name) and not (runs / name.partition("/")[0]).is_dir():
        return Path(name)
    known = [str(p.parent) for p in sorted(runs.glob("*/*/model"))]
    fix = nearest(name, known) if known else f"no model is in {runs} yet: run a recipe first"
    raise ModelError("there is no such model", where=name, fix=fix)


def replay_words(stage: Path, words: Sequence[str] | None) -> tuple[str, list[str]]:
    """(kind, `KEY=VALUE` words) that train a stage again on the answers it stored; later words win.

    Settings that name other stages of the run become their folders.
    """
    from tiltyard.files import read_json
    from tiltyard.stages.base import get_stage

    config = read_json(stage / "config.json")
    if not config or "kind" not in config:
        raise ConfigError(
            "this is no stage of a run", where=str(stage), expected="a folder like runs/NAME/ppo", fix="see `ls runs/*`"
        )
    kind = get_stage(config["kind"])
    if "replay" not in kind.settings.model_fields:
        raise ConfigError("a stage that does not sample has nothing to replay", where=str(stage), got=config["kind"])
    settings = {**config["settings"], "replay": str(stage)}
    for key in kind.refers:
        value = settings.get(key)
        if isinstance(value, str) and value and key != "replay" and (stage.parent / value.partition("/")[0]).is_dir():
            settings[key] = str(stage.parent / value)
    given = {word.partition("=")[0] for word in words or ()}
    name = [] if "name" in given else [f"name={config['run']}-replay"]
    kept = [f"{key}={json.dumps(value)}" for key, value in settings.items() if key not in given]
    return config["kind"], [*kept, *name, *(words or ())]


def eval_words(reward: str, words: Sequence[str] | None, runs: Path) -> tuple[str, list[str]]:
    """(stage, its `KEY=VALUE` words) that `tiltyard eval` means: `evaluate`, or with --reward MODEL `reward_eval`.

    With --reward the first word is the data, unless `data=` is among the words.
    """
    words = list(words or ())
    if not reward:
        return "evaluate", words
    if not any(word.startswith("data=") for word in words):
        if not words:
            raise ConfigError(
                "there is nothing to judge the reward model on",
                where="eval --reward",
                expected="tiltyard eval --reward MODEL DATA",
                fix="name a file of comparisons after the model",
            )
        words[0] = f"data={words[0]}"
    return "reward_eval", [f"model={find_model(reward, runs)}", *words]

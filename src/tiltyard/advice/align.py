"""From nothing to an evaluated model: advice once, then its recipe, which goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from tiltyard.advice.advise import advise
from tiltyard.advice.request import Request
from tiltyard.errors import ConfigError
from tiltyard.files import exists, read_json, write_atomic, write_json
from tiltyard.pipeline import run_recipe
from tiltyard.report.text import plain

RECIPE, REQUEST = "recipe.yaml", "request.json"


def align(request: Request, *, runs_root: Path, console: Console, dry_run: bool = False) -> dict[str, Any]:
    """Aligns a model: chooses, trains, and compares before with after; a run that was begun goes on.

    The recipe is written once, into the run's folder: measured again, it might be another one.

    Raises:
        ConfigError: a run of this name was begun with another model, other data or another wish.
        ModelError, DataError: see `advise`.
    """
    folder = runs_root / request.run_name
    recipe = folder / RECIPE
    if exists(recipe):
        _check_same(request, folder)
        console.print(f"going on with {recipe}", markup=False, highlight=False, soft_wrap=True)
    else:
        advice = advise(request, lambda line: say(console, line))
        for line in [*advice.facts(), *advice.estimate()]:
            say(console, line)
        if dry_run:
            return {**advice.to_dict(), "recipe": advice.recipe()}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / REQUEST, {"request": request.to_dict(), "trained": advice.trained})
        write_atomic(recipe, advice.recipe().encode())
        say(console, f"the recipe, with the reason for every choice: {recipe}")
    outcome = run_recipe(recipe, dry_run=dry_run, runs_root=runs_root, console=console)
    if outcome["name"] != request.run_name:
        raise ConfigError(
            "the recipe was given another name",
            where=str(recipe),
            got=outcome["name"],
            expected=request.run_name,
            fix="set name: back, or run it with: tiltyard run",
        )
    model = folder / str((read_json(folder / REQUEST) or {}).get("trained", "")) / "model"
    return {**outcome, "model": str(model), "recipe": str(recipe)}


def say(console: Console, line: str) -> None:
    """Prints a line of untrusted words literally."""
    console.print(Text(plain(line)), soft_wrap=True)


def _check_same(request: Request, folder: Path) -> None:
    """Compares a request with the one that the run was begun with."""
    kept = (read_json(folder / REQUEST) or {}).get("request") or {}
    now = json.loads(json.dumps(request.to_dict()))
    changed = [key for key, value in now.items() if kept.get(key, value) != value and key != "name"]
    if changed:
        raise ConfigError(
            f"the run '{request.run_name}' was begun with other wishes",
            where=str(folder / RECIPE),
            got="; ".join(f"{key}: {now[key]!r}" for key in changed),
            expected="; ".join(f"{key}: {kept[key]!r}" for key in changed),
            fix="give this run another name (--name NAME), or delete that recipe to make a new one of the same name",
        )


def next_steps(outcome: dict[str, Any]) -> list[str]:
    """Lines about what to do with the model."""
    folder, model = Path(outcome["folder"]), outcome["model"]
    return [
        f"the model: {model} (an ordinary folder: transformers and vLLM load it)",
        f"talk to it: tiltyard chat {Path(model).parent}",
        f"the comparison: {folder / 'before_after' / 'before_after.md'}",
        f"answers of both: {folder / 'before_after' / 'samples.md'}",
        f"change a choice: edit {outcome['recipe']}, then tiltyard run {outcome['recipe']}",
    ]

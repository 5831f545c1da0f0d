"""Running a recipe: check everything, decide for every stage, then do what is left."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tiltyard.errors import ConfigError
from tiltyard.files import sweep
from tiltyard.pipeline import ranks, state
from tiltyard.pipeline.recipe import Entry, Recipe, Step, check, read_recipe
from tiltyard.pipeline.show import show_plan, show_start
from tiltyard.stages.base import StageContext, jsonable, read_json


def run_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    runs_root: str | Path = "runs",
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a recipe file; finished stages are skipped, an interrupted one is resumed.

    Args:
        path: the YAML file, or the bare name of a recipe that comes with the package.
        overrides: `stage.key=value`, `defaults.key=value`, `name=value`.
        dry_run: check everything and print the plan; nothing is written.
        runs_root: the run lives in `runs_root/NAME/STAGE/`.
        console: where progress goes.

    Returns:
        `name`, `folder` and, per stage, `kind`, `status`, `why`, `folder`, and `seconds` and `result` or `plan`.
    """
    return run(read_recipe(path, overrides), dry_run=dry_run, runs_root=runs_root, console=console)


def run_stage(
    kind: str,
    settings: Mapping[str, Any],
    *,
    name: str | None = None,
    dry_run: bool = False,
    runs_root: str | Path = "runs",
    console: Console | None = None,
    place: str = "",
) -> dict[str, Any]:
    """Run one stage by itself, in `runs_root/NAME/KIND/`; `name` is the kind unless given."""
    places = dict.fromkeys(settings, place) if place else {}
    entry = Entry(kind, kind, dict(settings), place, places)
    return run(Recipe(name or kind, (entry,)), dry_run=dry_run, runs_root=runs_root, console=console)


def run(
    recipe: Recipe, *, dry_run: bool = False, runs_root: str | Path = "runs", console: Console | None = None
) -> dict[str, Any]:
    """Run a recipe that is already in memory."""
    steps = check(recipe)
    console = (console or Console()) if ranks.is_main() else Console(quiet=True)
    work = _Run(recipe, Path(runs_root) / recipe.name, console, steps)
    if dry_run:
        return work.plan()
    with state.locked(work.folder) if ranks.is_main() else contextlib.nullcontext():
        outcome = work.execute()
    ranks.rest()
    return outcome


@dataclass
class _Run:
    recipe: Recipe
    folder: Path
    console: Console
    steps: list[Step]
    prints: dict[str, state.Print] = field(default_factory=dict)
    decisions: dict[str, state.Decision] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def decide(self, *, keep: bool) -> None:
        """Fingerprints and decisions of all stages, from what the folder holds now."""
        files = state.FileHashes(self.folder / ".files.json")
        for step in self.steps:
            self.prints[step.name] = state.fingerprint(step, self.prints, files)
            ids = {name: self._identity(name) for name in step.uses}
            self.decisions[step.name] = state.decide(step, self.folder / step.name, self.prints[step.name], ids)
        if keep:
            files.save()

    def _identity(self, name: str) -> str | None:
        return None if self.decisions[name].action == "run" else state.execution_id(self.folder / name)

    def context(self, step: Step, *, dry_run: bool = False) -> StageContext:
        return StageContext(
            run_name=self.recipe.name,
            name=step.name,
            folder=self.folder / step.name,
            run_folder=self.folder,
            outputs=dict(self.outputs),
            console=self.console,
            dry_run=dry_run,
            seconds=dict(self.seconds),
            results=dict(self.results),
            recipe_folder=self.recipe.folder,
            resumed=self.decisions[step.name].action == "resume",
        )

    def plan(self) -> dict[str, Any]:
        """The dry run: what every stage would do."""
        self.decide(keep=False)
        stages = {}
        for step in self.steps:
            context = self.context(step, dry_run=True)
            lines = step.stage.plan(context, step.settings) if step.stage.plan else []
            decision = self.decisions[step.name]
            show_plan(self.console, step, decision, lines)
            settings = jsonable(step.settings)
            stages[step.name] = {**self._head(step), "settings": settings, "uses": list(step.uses), "plan": lines}
            self.outputs[step.name] = self.folder / step.name
        return {"name": self.recipe.name, "folder": str(self.folder), "dry_run": True, "stages": stages}

    def _head(self, step: Step) -> dict[str, Any]:
        decision = self.decisions[step.name]
        folder = str(self.folder / step.name)
        return {"kind": step.stage.name, "status": decision.action, "why": decision.why, "folder": folder}

    def execute(self) -> dict[str, Any]:
        """The stages one after the other."""
        if ranks.is_main():
            sweep(self.folder)
            self.decide(keep=True)
        self.prints, self.decisions = ranks.share((self.prints, self.decisions))
        stages = {}
        for step in self.steps:
            if self.decisions[step.name].action == "skip":
                self.console.print(f"[bold]{step.name}[/]: {self.decisions[step.name].why}, skipped", highlight=False)
            else:
                self._do(step)
            done = read_json(self.folder / step.name / "done.json") or {}
            self.outputs[step.name] = self.folder / step.name
            self.seconds[step.name] = float(done.get("seconds", 0.0))
            self.results[step.name] = done.get("result") or {}
            result = {"seconds": self.seconds[step.name], "result": self.results[step.name]}
            stages[step.name] = {**self._head(step), **result}
        return {"name": self.recipe.name, "folder": str(self.folder), "stages": stages}

    def _do(self, step: Step) -> None:
        """One stage, from `config.json` to `done.json`."""
        folder, decision, new = self.folder / step.name, self.decisions[step.name], self.prints[step.name]
        execution = ""
        if ranks.is_main():
            inputs = {name: state.execution_id(self.folder / name) or "" for name in step.uses}
            execution = state.begin(step, folder, new, decision=decision, inputs=inputs, run=self.recipe.name)
        ranks.share(None)  # the folder is ready
        context = self.context(step)
        started = time.monotonic()
        try:
            lines = step.stage.plan(context, step.settings) if step.stage.plan and ranks.is_main() else []
            show_start(self.console, step, decision, lines)
            result = step.stage.run(context, step.settings) if step.stage.parallel or ranks.is_main() else {}
        except BaseException as error:
            if ranks.is_main():
                self._stopped(step, error)
            raise
        if ranks.is_main():
            seconds = time.monotonic() - started
            resumed = decision.action == "resume"
            result = _checked(step, result)
            state.finish(folder, new, execution=execution, result=result, seconds=seconds, resumed=resumed)
            (folder / "error.txt").unlink(missing_ok=True)
            self.console.print(f"[bold]{step.name}[/]: done ({state.duration(seconds)})", highlight=False)
        ranks.share(None)  # done.json is there

    def _stopped(self, step: Step, error: BaseException) -> None:
        """Say how to go on, and keep the traceback in the stage's folder."""
        with contextlib.suppress(OSError):
            (self.folder / step.name / "error.txt").write_text(
                "".join(traceback.format_exception(error)), encoding="utf-8"
            )
        self.console.print(
            f"[bold red]{step.name} stopped[/]; the same command goes on from its last checkpoint "
            f"(traceback: {self.folder / step.name / 'error.txt'})",
            highlight=False,
            soft_wrap=True,
        )


def _checked(step: Step, result: Any) -> dict[str, Any]:
    if not isinstance(result, Mapping):
        got = type(result).__name__
        raise ConfigError("a stage returns a mapping", where=step.name, got=got, expected="a small JSON result")
    return dict(result)

"""Running a recipe: check everything, decide for every stage, then do what is left."""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from tiltyard.distributed import processes
from tiltyard.errors import WRONG_INPUT, ConfigError, TiltyardError
from tiltyard.files import jsonable, remove_partial_files
from tiltyard.pipeline import state
from tiltyard.pipeline.jobs import worker_pool
from tiltyard.pipeline.recipe import Entry, Recipe, Step, check, read_recipe
from tiltyard.pipeline.schedule import chain_lengths, threads_for
from tiltyard.pipeline.show import show_plan, show_start
from tiltyard.runs import StageDone, StageReader
from tiltyard.stages.base import StageContext
from tiltyard.stopping import Stopped, installed, stop


def run_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    dry_run: bool = False,
    runs_root: str | Path = "runs",
    jobs: int = 1,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a recipe file; finished stages are skipped, an interrupted one is resumed.

    Args:
        path: the YAML file, or the bare name of a recipe that comes with the package.
        overrides: `stage.key=value`, `defaults.key=value`, `name=value`.
        dry_run: check everything and print the plan; nothing is written.
        runs_root: the run lives in `runs_root/NAME/STAGE/`.
        jobs: stages at a time; stages that need each other wait for each other. Each has its share of the cores.
        console: where progress goes.

    Returns:
        `name`, `folder` and, per stage, `kind`, `status`, `why`, `folder`, and `seconds` and `result` or `plan`.
    """
    return run(read_recipe(path, overrides), dry_run=dry_run, runs_root=runs_root, jobs=jobs, console=console)


def do_stage(recipe: Recipe, folder: Path, console: Console, request: Mapping[str, Any]) -> None:
    """Runs one stage in a worker process, as its parent (`jobs`) requested."""
    import torch

    work = _Run(recipe, folder, console, check(recipe))
    step = next(step for step in work.steps if step.name == request["stage"])
    work.fingerprints[step.name] = state.Fingerprint(**request["fingerprint"])
    work.decisions[step.name] = state.Decision(**request["decision"])
    for name in request["finished"]:
        work.finished(name)
    torch.set_num_threads(request["threads"])
    with installed():
        work.do(step)


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
    """Run one stage by itself, in `runs_root/NAME/KIND/`; `name` is the kind unless given.

    The kind `file.py:function`, a method of a user's own file, has the function's name. What the settings name is also
    looked up below `runs_root`, so that `demo/sft` is what it is for `tiltyard sample`.
    """
    places = dict.fromkeys(settings, place) if place else {}
    stage = kind.rpartition(":")[2]
    entry = Entry(stage, kind, dict(settings), place, places)
    recipe = Recipe(stage if name is None else name, (entry,), folder=Path(runs_root))
    return run(recipe, dry_run=dry_run, runs_root=runs_root, console=console)


def run(
    recipe: Recipe,
    *,
    dry_run: bool = False,
    runs_root: str | Path = "runs",
    jobs: int = 1,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run a recipe that is already in memory.

    SIGTERM and Ctrl-C stop it at the end of a step, with a checkpoint; a second one stops it at once (`stopping`).

    Raises:
        Stopped: a `SystemExit` with the status 128 + the signal.
    """
    if jobs < 1 or (jobs > 1 and processes.is_distributed()):
        expected = "at least 1; under torchrun 1, for there every stage has all processes"
        raise ConfigError("this number of parallel stages is not possible", where="jobs", got=jobs, expected=expected)
    steps = check(recipe)
    console = (console or Console()) if processes.is_main() else Console(quiet=True)
    work = _Run(recipe, Path(runs_root) / recipe.name, console, steps)
    if dry_run:
        return work.plan()
    main = processes.is_main()
    with installed(say=main), state.locked(work.folder) if main else contextlib.nullcontext() as lock:
        outcome = work.execute() if jobs == 1 or lock is None else work.execute_together(jobs, lock)
    processes.finish()
    return outcome


@dataclass
class _Run:
    recipe: Recipe
    folder: Path
    console: Console
    steps: list[Step]
    fingerprints: dict[str, state.Fingerprint] = field(default_factory=dict)
    decisions: dict[str, state.Decision] = field(default_factory=dict)
    outputs: dict[str, Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    def decide(self, *, keep: bool) -> None:
        """Fingerprints and decisions of all stages, from what the folder holds now."""
        files = state.FileHashes(self.folder / ".files.json")
        for step in self.steps:
            self.fingerprints[step.name] = state.fingerprint(step, self.fingerprints, files)
            ids = {name: self._identity(name) for name in step.uses}
            self.decisions[step.name] = state.decide(step, self.folder / step.name, self.fingerprints[step.name], ids)
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
        if processes.is_main():
            remove_partial_files(self.folder)
            self.decide(keep=True)
        self.fingerprints, self.decisions = processes.broadcast_object((self.fingerprints, self.decisions))
        for step in self.steps:
            stop()  # a signal that came in the last step of the stage before
            if not self._skipped(step):
                self.do(step)
            self.finished(step.name)
        return self._outcome()

    def execute_together(self, jobs: int, lock: IO[str]) -> dict[str, Any]:
        """Up to `jobs` stages at a time, each as soon as those it needs are done. One that fails lets those that run
        end, and no other begins."""
        import torch

        remove_partial_files(self.folder)
        self.decide(keep=True)
        threads = threads_for(self.steps, jobs, torch.get_num_threads())
        length = chain_lengths(self.steps)
        waiting = sorted((step for step in self.steps if not self._skipped(step)), key=lambda step: -length[step.name])
        done = {step.name for step in self.steps} - {step.name for step in waiting}
        failed: TiltyardError | None = None
        with worker_pool(self.recipe, self.folder, min(jobs, max(1, len(waiting))), lock, self.console) as pool:
            while pool.busy or (waiting and not failed):
                ready = [] if failed else [step for step in waiting if done.issuperset(step.uses)]
                for step in ready[: len(pool.free)]:
                    waiting.remove(step)
                    pool.start(step.name, self._request(step, done, threads[step.name]))
                name, error = pool.next_done()
                failed = failed or error
                done |= {name} if error is None else set()
        if failed:
            raise failed
        for step in self.steps:
            self.finished(step.name)
        return self._outcome()

    def _request(self, step: Step, done: Collection[str], threads: int) -> dict[str, Any]:
        """The request to a worker: what one stage needs to run as it would in this process."""
        names = [one.name for one in self.steps]
        earlier = [name for name in names[: names.index(step.name)] if name in done]
        told = {"fingerprint": asdict(self.fingerprints[step.name]), "decision": asdict(self.decisions[step.name])}
        return {**told, "finished": earlier, "threads": threads}

    def _skipped(self, step: Step) -> bool:
        if self.decisions[step.name].action != "skip":
            return False
        self.console.print(f"[bold]{step.name}[/]: {self.decisions[step.name].why}, skipped", highlight=False)
        return True

    def finished(self, name: str) -> None:
        """Records what a finished stage left: its folder, seconds and result."""
        done = StageReader(self.folder / name).done or StageDone()
        self.outputs[name] = self.folder / name
        self.seconds[name] = done.seconds
        self.results[name] = dict(done.result)

    def _outcome(self) -> dict[str, Any]:
        stages = {
            step.name: self._head(step) | {"seconds": self.seconds[step.name], "result": self.results[step.name]}
            for step in self.steps
        }
        return {"name": self.recipe.name, "folder": str(self.folder), "stages": stages}

    def do(self, step: Step) -> None:
        """One stage, from `config.json` to `done.json`."""
        folder, decision, new = self.folder / step.name, self.decisions[step.name], self.fingerprints[step.name]
        execution = ""
        if processes.is_main():
            inputs = {name: state.execution_id(self.folder / name) or "" for name in step.uses}
            execution = state.begin(step, folder, new, decision=decision, inputs=inputs, run=self.recipe.name)
        processes.broadcast_object(None)  # the folder is ready
        context = self.context(step)
        started = time.monotonic()
        try:
            lines = step.stage.plan(context, step.settings) if step.stage.plan and processes.is_main() else []
            show_start(self.console, step, decision, lines)
            result = step.stage.run(context, step.settings) if step.stage.parallel or processes.is_main() else {}
        except BaseException as error:
            if processes.is_main():
                self._stopped(step, error)
            if lost := processes.lost_process(error):
                raise lost from error
            raise
        if processes.is_main():
            seconds = time.monotonic() - started
            resumed = decision.action == "resume"
            result = _checked(step, result)
            state.finish(folder, new, execution=execution, result=result, seconds=seconds, resumed=resumed)
            (folder / "error.txt").unlink(missing_ok=True)
            self.console.print(f"[bold]{step.name}[/]: done ({state.duration(seconds)})", highlight=False)
        processes.broadcast_object(None)  # done.json is there

    def _stopped(self, step: Step, error: BaseException) -> None:
        """Prints how to continue, and writes the traceback to a file in the stage's folder.

        What was wrong with the input would be wrong again: only its error says how to continue.
        """
        with contextlib.suppress(OSError):
            (self.folder / step.name / "error.txt").write_text(
                "".join(traceback.format_exception(error)), encoding="utf-8"
            )
        by = f" by {signal.Signals(error.number).name}" if isinstance(error, Stopped) else ""
        go_on = "" if isinstance(error, WRONG_INPUT) else "; the same command goes on where it stopped"
        self.console.print(
            f"[bold red]{step.name} stopped{by}[/]{go_on} (traceback: {self.folder / step.name / 'error.txt'})",
            highlight=False,
            soft_wrap=True,
        )


def _checked(step: Step, result: Any) -> dict[str, Any]:
    if not isinstance(result, Mapping):
        got = type(result).__name__
        raise ConfigError("a stage returns a mapping", where=step.name, got=got, expected="a small JSON result")
    return dict(result)

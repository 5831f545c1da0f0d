"""`Stage`: a name, a settings model and a function from (context, settings) to a small JSON result."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from tiltyard.config import describe
from tiltyard.errors import ConfigError, nearest
from tiltyard.records import execution_keys
from tiltyard.runs import Ref, StageReader, written_by_stage

RESERVED = ("name", "method")  # keys of a recipe's stage that are never settings


@dataclass(frozen=True)
class Stage:
    """A kind of stage, e.g. `sft`, `ppo`, `world`, `label`, `evaluate`.

    Args:
        name: what recipes and `tiltyard train` call it.
        run: does the work; what it returns is kept in `done.json` and in the run's results.
        settings: from `settings_model`.
        summary: one line for `tiltyard stages`.
        refers: settings whose value (a text, a list or a mapping of texts) is a `Ref`: an EARLIER stage, a file of one,
            a path, a hub name, a function. A nested settings model names those of its values with `folders()`.
        words: values of those settings that refer to nothing, e.g. `gold`.
        plan: returns the lines of the resolved plan (tokens per step, groups, memory); under `context.dry_run` earlier
            stages may not have run.
        version: raised when the stage's code gives another result, so that old results are computed again.
        parallel: under torchrun every rank runs it; otherwise rank 0 alone does, and the others wait.
        files: (as written, path) of files that its code comes from, besides the package's own.
    """

    name: str
    run: Callable[[StageContext, Any], dict[str, Any]]
    settings: type[BaseModel]
    summary: str = ""
    refers: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    plan: Callable[[StageContext, Any], list[str]] | None = None
    version: str = "1"
    parallel: bool = False
    files: tuple[tuple[str, Path], ...] = ()

    @cached_property
    def neutral(self) -> tuple[str, ...]:
        """Dotted keys of the settings of execution (`records.ExecutionOnly`)."""
        return execution_keys(self.settings)


@dataclass
class StageContext:
    """The environment of a running stage. `folder` exists (not in a dry run) with what an interrupted attempt left.

    Args:
        run_name: the recipe's name.
        name: the stage's own name in the recipe.
        folder: where it writes.
        run_folder: the folder of the whole run.
        outputs: the folder of every earlier stage, by name.
        console: for progress; quiet on ranks other than 0.
        dry_run: only the plan is made.
        seconds: duration of each finished stage.
        results: the result of each finished stage.
        recipe_folder: relative paths are also looked up there.
        resumed: `folder` holds an interrupted attempt with the same settings.
    """

    run_name: str
    name: str
    folder: Path
    run_folder: Path
    outputs: Mapping[str, Path] = field(default_factory=dict)
    console: Console = field(default_factory=Console)
    dry_run: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recipe_folder: Path | None = None
    resumed: bool = False

    @property
    def execution(self) -> str:
        """The id of this execution of the stage, which it keeps when it is resumed; "" if nothing was run."""
        config = StageReader(self.folder).config
        return config.id if config else ""

    def resolve(self, value: str, *, want: str = "model") -> Path | str:
        """Resolves a setting's value to a path, or to a hub name, which is returned as a text.

        Args:
            value: anything that `Ref` reads.
            want: the file or folder that is used of a stage's folder; "" for the folder itself.

        Raises:
            ConfigError: there is no such stage, file of a stage, or path.
        """
        ref = Ref.of(value, stages=self.outputs, folder=self.recipe_folder, where=self.name)
        if ref.kind == "stage":
            path = self.outputs[ref.name] / (ref.rest or want)
            if not self.dry_run and not path.exists():
                names = sorted(p.name for p in self.outputs[ref.name].glob("*") if not p.name.startswith("."))
                raise ConfigError(
                    f"the stage '{ref.name}' has no '{ref.rest or want}'",
                    where=f"{self.name}: {value}",
                    expected=f"one of: {', '.join(names) or 'nothing (the folder is empty)'}",
                )
            return path
        return value if ref.path is None else written_by_stage(ref.path, want)

    def resolve_folder(self, value: str) -> Path:
        """Resolves a setting's value to the folder of a stage.

        Raises:
            ConfigError: it is none.
        """
        folder = self.resolve(value, want="")
        if isinstance(folder, str):
            raise ConfigError("a stage's folder is needed, not a hub name", where=self.name, got=value)
        return folder

    def report(self, key: str, lines: Iterable[str]) -> None:
        """Prints lines about one setting, e.g. what was kept of its data."""
        for line in lines:
            self.console.print(f"  {key}: {line}", markup=False, highlight=False)


def references(stage: Stage, settings: BaseModel) -> Iterator[tuple[str, str]]:
    """Yields (key, text) of every setting that refers to a stage or path, those inside lists and mappings too."""
    for key in stage.refers:
        for name, text in texts(key, getattr(settings, key, None)):
            if text not in stage.words:
                yield name, text


def texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in a setting's value."""
    if hasattr(value, "folders"):
        for inner, item in value.folders().items():
            yield from texts(f"{key}.{inner}", item)
    elif isinstance(value, str | Path):
        yield from ((key, text) for text in [str(value)] if text)
    elif isinstance(value, Mapping):
        for inner, item in value.items():
            yield from texts(f"{key}.{inner}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(key, item)


# ---------------------------------------------------------------------------------------------------- the registry

STAGES: dict[str, Stage] = {}
MODULES: tuple[str, ...] = (
    "world",
    "clean",
    "split",
    "train",
    "label",
    "ai_label",
    "collect",
    "calibrate",
    "candidates",
    "distill",
    "new_prompts",
    "judge_skill",
    "evaluate",
    "reward_eval",
    "reward_stability",
    "wordings",
    "before_after",
    "infer",
    "gap",
)


def register(stage: Stage) -> Stage:
    """Registers a kind of stage.

    Raises:
        ConfigError: its name is taken, or it refers to settings that it does not have.
    """
    if stage.name in STAGES and STAGES[stage.name] is not stage:
        raise ConfigError(f"two kinds of stage are called '{stage.name}'")
    for key in RESERVED:
        if key in stage.settings.model_fields:
            raise ConfigError(f"the setting '{key}' is reserved for recipes", where=stage.name)
    known = {*stage.settings.model_fields, *(setting.key for setting in describe(stage.settings))}
    for key in stage.refers:
        if key not in known:
            raise ConfigError(f"there is no setting '{key}' to refer by", where=stage.name)
    STAGES[stage.name] = stage
    return stage


def load_all() -> dict[str, Stage]:
    """Imports every module that registers stages; returns the registry."""
    for module in MODULES:
        name = f"tiltyard.stages.{module}"
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    return STAGES


def get_stage(name: str, *, where: str = "", folder: Path | None = None) -> Stage:
    """The kind of stage called `name`.

    Args:
        name: of a stage or method, or `file.py:function` for a method of a user's own file.
        where: for errors. folder: where files are also looked up.

    Raises:
        ConfigError: there is none, with the nearest name; or the file defines no such method.
    """
    if re.fullmatch(r".+\.py:\w+", name):
        stage: Stage = importlib.import_module("tiltyard.stages.train").stage_of_file(name, folder, where)
        return stage
    if name not in STAGES:
        load_all()
    if name not in STAGES:
        fix = nearest(name, STAGES) if STAGES else "no stages are installed"
        raise ConfigError(f"unknown stage or method '{name}'", where=where, fix=fix)
    return STAGES[name]

"""What a stage is: a name, a settings model and a function from (context, settings) to a small JSON result."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from tiltyard.errors import ConfigError, nearest
from tiltyard.files import read_json

RESERVED = ("name", "method")  # keys of a recipe's stage that are never settings


@dataclass(frozen=True)
class Stage:
    """A kind of stage, e.g. `sft`, `ppo`, `world`, `label`, `evaluate`.

    Args:
        name: what recipes and `tiltyard train` call it.
        run: does the work; what it returns is kept in `done.json` and in the run's results.
        settings: from `settings_model`.
        summary: one line for `tiltyard stages`.
        refers: settings whose value (a text, a list or a mapping of texts) names an EARLIER stage, a file of one
            (`stage/file.jsonl`), a path or a hub name (`owner/name`). A settings model of its own (a judge) says
            with `folders()` which of its values do.
        words: values of those settings that stand for themselves, e.g. `gold`.
        plan: the lines of the resolved plan (tokens per step, groups, memory); `context.dry_run` tells that earlier
            stages may not have run.
        neutral: settings that cannot change the result (devices, logging); changing them re-runs nothing.
        version: raise it when the stage's code gives another result, so that old results are made again.
        parallel: under torchrun every rank runs it; otherwise rank 0 alone does, and the others wait.
    """

    name: str
    run: Callable[[StageContext, Any], dict[str, Any]]
    settings: type[BaseModel]
    summary: str = ""
    refers: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    plan: Callable[[StageContext, Any], list[str]] | None = None
    neutral: tuple[str, ...] = ()
    version: str = "1"
    parallel: bool = False


@dataclass
class StageContext:
    """Where a stage runs. `folder` exists (not in a dry run) and holds what an interrupted attempt left.

    Args:
        run_name: the recipe's name.
        name: the stage's own name in the recipe.
        folder: where it writes.
        run_folder: the folder of the whole run.
        outputs: the folder of every earlier stage.
        console: for progress; quiet on ranks other than 0.
        dry_run: only the plan is asked for.
        seconds: how long each finished stage took.
        results: what each finished stage returned.
        recipe_folder: relative paths are also looked up there.
        resumed: `folder` holds an interrupted attempt with these very settings.
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
        """The number of this execution of the stage, kept when it resumes; empty where nothing was run."""
        return str((read_json(self.folder / "config.json") or {}).get("id", ""))

    def resolve(self, value: str, *, want: str = "model") -> Path:
        """The path that a setting's value means.

        Args:
            value: `stage` (its folder's `want`), `stage/file`, a path (relative to here, then to the recipe; of a
                folder that a stage wrote, its `want`) or a hub name, which comes back as it is.
            want: the file or folder wanted of a stage's folder; "" for the folder itself.
        """
        stage, rest = split_reference(value, self.outputs)
        if stage:
            found = self.outputs[stage] / (rest or want)
            if not self.dry_run and not found.exists():
                there = sorted(p.name for p in self.outputs[stage].glob("*") if not p.name.startswith("."))
                raise ConfigError(
                    f"the stage '{stage}' has no '{rest or want}'",
                    where=f"{self.name}: {value}",
                    expected=f"one of: {', '.join(there) or 'nothing (the folder is empty)'}",
                )
            return found
        path = find_path(value, self.recipe_folder)
        if path is None:
            if looks_like_hub(value):
                return Path(value)
            raise nowhere(value, self.name, self.outputs)
        return stage_output(path, want)


def split_reference(value: str, stages: Iterable[str]) -> tuple[str, str]:
    """(`stage`, `file`) of `stage` or `stage/file`; ("", value) if it names none. `./sft` is always a path."""
    head, _, rest = value.partition("/")
    return (head, rest) if head in stages else ("", value)


def find_path(value: str, recipe_folder: Path | None = None) -> Path | None:
    """An existing path: relative to the working folder, then to the recipe's."""
    path = Path(value).expanduser()
    folders = [Path(), *([recipe_folder] if recipe_folder else [])]
    return next((folder / path for folder in folders if value and (folder / path).exists()), None)


def nowhere(value: str, where: str, stages: Iterable[str] = ()) -> ConfigError:
    """The error for a value that names neither a stage nor a path, with the nearest name that there is."""
    path, stages = Path(value).expanduser(), list(stages)
    there = next(parent for parent in (*path.parents, Path()) if parent.exists())
    lost = path.relative_to(there).parts[0] if value else ""
    files = [] if not there.is_dir() else [one.name for one in there.iterdir() if not one.name.startswith(".")]
    hints = [nearest(value.partition("/")[0], stages), nearest(lost, files)]
    close = next((hint for hint in hints if hint.startswith("did you mean")), "")
    fix = close or (f"stages: {', '.join(stages)}" if stages else f"there is nothing called '{lost}' in '{there}'")
    return ConfigError(f"no such stage or path: '{value}'", where=where, fix=fix)


def stage_output(path: Path, want: str = "model") -> Path:
    """`runs/demo/sft` -> `runs/demo/sft/model`; any other path is itself."""
    return path / want if want and (path / "config.json").exists() and (path / want).exists() else path


def looks_like_hub(value: str) -> bool:
    """`owner/name` or `scheme:...`, and not a misspelt local path."""
    if re.fullmatch(r"[a-z]{2,}:\S+", value):
        return True
    data = re.search(r"\.(jsonl?|gz|parquet|txt|ya?ml|csv|safetensors)$", value)
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value)) and not data and not Path(value).parent.exists()


def references(stage: Stage, settings: BaseModel) -> Iterator[tuple[str, str]]:
    """(key, value) of every setting that may name a stage or a path, lists and mappings taken apart."""
    for key in stage.refers:
        value = getattr(settings, key, None)
        folders = getattr(value, "folders", None)
        value = folders() if folders else value
        values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        for item in values:
            if isinstance(item, str | Path) and str(item) and str(item) not in stage.words:
                yield key, str(item)


# ---------------------------------------------------------------------------------------------------- the registry

STAGES: dict[str, Stage] = {}
MODULES: tuple[str, ...] = (
    "world",
    "clean",
    "train",
    "label",
    "ai_label",
    "candidates",
    "new_prompts",
    "judge_skill",
    "evaluate",
    "reward_eval",
)


def register(stage: Stage) -> Stage:
    """Make a kind of stage known; its name must be free and its settings must fit."""
    if stage.name in STAGES and STAGES[stage.name] is not stage:
        raise ConfigError(f"two kinds of stage are called '{stage.name}'")
    for key in RESERVED:
        if key in stage.settings.model_fields:
            raise ConfigError(f"the setting '{key}' is reserved for recipes", where=stage.name)
    for key in (*stage.refers, *stage.neutral):
        if key not in stage.settings.model_fields:
            raise ConfigError(f"no setting '{key}' to refer by", where=stage.name)
    STAGES[stage.name] = stage
    return stage


def load_all() -> dict[str, Stage]:
    """Import every module that registers stages; the registry."""
    for module in MODULES:
        name = f"tiltyard.stages.{module}"
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    return STAGES


def get_stage(name: str, *, where: str = "") -> Stage:
    """The kind of stage called `name`, or an error naming the nearest."""
    if name not in STAGES:
        load_all()
    if name not in STAGES:
        fix = nearest(name, STAGES) if STAGES else "no stages are installed"
        raise ConfigError(f"unknown stage or method '{name}'", where=where, fix=fix)
    return STAGES[name]

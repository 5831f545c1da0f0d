"""The context of a stage that sources and models are opened with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from tiltyard.errors import ConfigError


class Workspace(Protocol):
    """The place where a stage runs, e.g. a `StageContext`."""

    @property
    def name(self) -> str:
        """Of the stage, for errors."""

    @property
    def folder(self) -> Path:
        """The stage's output folder."""

    @property
    def run_folder(self) -> Path:
        """The folder of the whole run; caches that runs share lie beside it."""

    @property
    def recipe_folder(self) -> Path | None:
        """The folder of the recipe, in which relative paths are looked up too."""

    @property
    def execution(self) -> str:
        """Number of this execution of the stage, kept when it resumes."""

    @property
    def dry_run(self) -> bool:
        """True if only the plan is made, so that earlier stages may not have run."""

    def resolve(self, value: str, *, want: str = "model") -> Path | str:
        """Resolves a reference of a setting: a stage, a path, or a hub name, which stays a text."""

    def report(self, key: str, lines: Iterable[str]) -> None:
        """Prints lines about one setting."""


def model_folder(work: Workspace, value: str) -> Path | str:
    """The model folder that a setting refers to, or a hub name."""
    return work.resolve(value, want="model")


def stage_folder(work: Workspace, value: str) -> Path:
    """The folder of the stage that a setting refers to.

    Raises:
        ConfigError: it refers to a hub name.
    """
    folder = work.resolve(value, want="")
    if isinstance(folder, str):
        raise ConfigError("a stage's folder is needed, not a hub name", where=work.name, got=value)
    return folder


def answers_file(work: Workspace, of: str = "") -> Path:
    """The file of a stage's paid answers, beside the stages' folders: it stays when the stage runs again.

    Args:
        of: what the answers are, where they are not a judge's.
    """
    return work.run_folder / ".answers" / (f"{work.name}.{of}.jsonl" if of else f"{work.name}.jsonl")


def cache_folder(work: Workspace, name: str = "") -> Path:
    """A folder for what all runs below one folder share."""
    return work.run_folder.parent / ".cache" / name

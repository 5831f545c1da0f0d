"""One uninterrupted run of the tiny recipe, made once for all tests of this folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from tiltyard.pipeline import run_recipe

from . import tiny


class Whole(NamedTuple):
    recipe: Path
    root: Path
    run: Path
    outcome: dict[str, Any]
    text: str

    @property
    def seconds(self) -> dict[str, float]:
        return {name: stage["seconds"] for name, stage in self.outcome["stages"].items()}


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    recipe, out = tiny.write(folder), io.StringIO()
    console = Console(file=out, width=200)
    outcome = run_recipe(recipe, runs_root=folder / "runs", console=console)
    return Whole(recipe, folder / "runs", folder / "runs" / "tiny", outcome, out.getvalue())

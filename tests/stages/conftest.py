"""Runs that are made once for all tests of this folder."""

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


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    recipe, out = tiny.write(folder), io.StringIO()
    console = Console(file=out, width=200)
    outcome = run_recipe(recipe, runs_root=folder / "runs", console=console)
    return Whole(recipe, folder / "runs", folder / "runs" / "tiny", outcome, out.getvalue())


MLM = "  - mlm: {data: world/corpus_held_out.jsonl, arch: {preset: 1m, vocab: 400, context: 96}, steps: 2, limit: 60}\n"


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages that single methods begin from."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "start.yaml").write_text(tiny.starting("start", context=320) + MLM)
    run_recipe(folder / "start.yaml", runs_root=folder, console=Console(file=io.StringIO()))
    return folder / "start"

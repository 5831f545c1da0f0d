from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.pipeline import toys

from tiltyard.pipeline import run_recipe


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    toys.install()
    yield
    toys.remove()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(toys.RECIPE)
    return path


@pytest.fixture
def go(tmp_path: Path, recipe: Path) -> Callable[..., tuple[dict[str, Any], str]]:
    """Runs the toy recipe in tmp_path/runs; (outcome, what was printed)."""

    def run(*overrides: str, text: str | None = None, **options: Any) -> tuple[dict[str, Any], str]:
        if text is not None:
            recipe.write_text(text)
        out = io.StringIO()
        console = Console(file=out, width=200)
        outcome = run_recipe(recipe, overrides, runs_root=tmp_path / "runs", console=console, **options)
        return outcome, out.getvalue()

    return run


def statuses(outcome: dict[str, Any]) -> str:
    """`skip skip run`"""
    return " ".join(stage["status"] for stage in outcome["stages"].values())

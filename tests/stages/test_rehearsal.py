"""Known before step 1, said before step 1: a dry run reads the data and ends as the run would, and writes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.stages.conftest import Whole

from tiltyard.errors import TiltyardError
from tiltyard.pipeline import run_stage


def attempt(kind: str, values: dict[str, Any], root: Path, *, dry: bool) -> tuple[str, str]:
    """(what was printed, the error)."""
    out = io.StringIO()
    console = Console(file=out, width=400)
    try:
        run_stage(kind, values, dry_run=dry, runs_root=root, console=console)
    except TiltyardError as error:
        return out.getvalue(), str(error)
    return out.getvalue(), ""


def common(whole: Whole) -> dict[str, Any]:
    return {"model": str(whole.run / "sft"), "max_length": 64, "steps": 2, "prompts_per_step": 4, "device": "cpu"}


def test_a_dry_run_prints_what_the_run_prints_about_its_data(whole: Whole, tmp_path: Path) -> None:
    data = whole.run / "world" / "demonstrations_held_out.jsonl"
    values = {**common(whole), "data": str(data), "held_out": str(data), "limit": 30, "eval_every": 50, "warmup": 9}
    planned, error = attempt("sft", values, tmp_path / "dry", dry=True)
    assert not error
    assert not (tmp_path / "dry").exists()
    done, error = attempt("sft", values, tmp_path / "wet", dry=False)
    assert not error
    for line in ("passes over", "50 is beyond the 2 steps", "9 steps of 2: the rate stays below"):
        assert line in planned
        assert line in done
    said = [line.strip() for line in done.splitlines() if line.strip().startswith(("data:", "held_out:", "check:"))]
    assert said
    assert all(line in planned for line in said)


@pytest.mark.parametrize(
    ("kind", "rows", "more"),
    [
        ("sft", [{"prompt": "a", "completion": 7}], {}),
        ("dpo", [{"prompt": "a", "chosen": "b"}], {}),
        ("sft", [{"prompt": "a " * 90, "completion": "b"}], {}),
        ("dpo", [{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}], {"pairs": "all"}),
        ("grpo", [{"prompt": "a"}], {"reward": "gold"}),
    ],
)
def test_a_dry_run_ends_with_the_error_of_the_run(
    whole: Whole, tmp_path: Path, kind: str, rows: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {**common(whole), "prompts" if kind == "grpo" else "data": str(path), **more}
    if kind == "grpo":
        del values["max_length"]
    errors = [attempt(kind, values, tmp_path / str(dry), dry=dry)[1] for dry in (True, False)]
    assert errors[0] == errors[1] != ""
    assert not (tmp_path / "True").exists()


def test_what_does_not_exist_yet_is_not_read(tmp_path: Path, whole: Whole) -> None:
    """A plan of a fresh recipe names the stage that its data wait for."""
    from tiltyard.pipeline import run_recipe

    out = io.StringIO()
    outcome = run_recipe(whole.recipe, dry_run=True, runs_root=tmp_path, console=Console(file=out, width=200))
    assert "data: not read before 'pretrain' is made" in outcome["stages"]["sft"]["plan"]
    assert "data: not read before 'world' is made" in outcome["stages"]["pretrain"]["plan"]

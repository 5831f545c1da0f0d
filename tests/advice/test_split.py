"""Held-out prompts: no prompt in both parts, limits that keep prompts, the same draw every time."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tiltyard.data.held_out import part_by_prompt
from tiltyard.errors import DataError
from tiltyard.pipeline import run_stage

from .conftest import pairs


@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    keys=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    share=st.floats(0.05, 0.9),
    most_prompts=st.integers(0, 5),
    most_rows=st.integers(0, 9),
    limit=st.integers(0, 20),
    seed=st.integers(0, 3),
)
def test_parts_share_no_prompt(
    keys: list[int], share: float, most_prompts: int, most_rows: int, limit: int, seed: int
) -> None:
    parts = part_by_prompt(keys, share, most_prompts, most_rows, limit, seed)
    assert parts == part_by_prompt(keys, share, most_prompts, most_rows, limit, seed)
    out = {keys[place] for place in parts.prompts}
    assert not out & {keys[place] for place in parts.train}
    assert {keys[place] for place in parts.held_out} <= out
    assert len(out) == len(parts.prompts)
    assert list(parts.train) == sorted(parts.train)
    if len(set(keys)) < 2:
        assert len(parts.train) == len(keys)
        return
    assert parts.train
    assert parts.held_out
    assert len(out) <= (most_prompts or len(keys))
    assert len(parts.held_out) <= (most_rows or len(keys))
    assert len(parts.train) <= (limit or len(keys))
    if most_rows >= len(out):  # a limit keeps every prompt
        assert {keys[place] for place in parts.held_out} == out
    elif not most_rows:
        assert len(parts.held_out) == sum(key in out for key in keys)


def test_a_smaller_limit_is_part_of_a_larger_one() -> None:
    keys = [number % 9 for number in range(90)]
    some, more = (part_by_prompt(keys, 0.2, 0, 0, limit, 1) for limit in (10, 30))
    assert set(some.train) < set(more.train)
    assert some.prompts == more.prompts


def test_the_stage_writes_rows_and_prompts(tmp_path: Path) -> None:
    rows = [dict(row, meta={"answer": str(number)}) for number, row in enumerate(pairs(10))]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = io.StringIO()
    settings = {"data": str(path), "held_out": 0.3, "limit": 6}
    outcome = run_stage("split", settings, runs_root=tmp_path, console=Console(file=out, width=200))
    folder = tmp_path / "split" / "split"
    train, held, prompts = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held_out", "prompts")
    )
    assert [row in rows for row in (*train, *held)] == [True] * 12
    assert len(train) == 6
    assert {row["prompt"] for row in held} == {row["prompt"][0]["content"] for row in prompts}
    assert not {row["prompt"] for row in held} & {row["prompt"] for row in train}
    assert all("answer" in row["meta"] for row in prompts)
    assert outcome["stages"]["split"]["result"] == {
        "train": 6, "held_out": 6, "prompts": 3, "read": 20, "kind": "comparisons"
    }  # fmt: skip
    assert "6 rows to train on, a sample of 14, read as comparisons" in out.getvalue()


def test_one_prompt_cannot_be_parted(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(1, 5)))
    with pytest.raises(DataError, match="only one prompt"):
        run_stage("split", {"data": str(path)}, runs_root=tmp_path, console=Console(file=io.StringIO()))

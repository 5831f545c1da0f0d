"""The stage `label`: what it records, and that a kill at any write changes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tiltyard.data import read_groups
from tiltyard.pipeline import run_recipe
from tiltyard.runs.journal import JsonlFile
from tiltyard.stages import label
from tiltyard.types import ranks_of, response_id
from tiltyard.world import ANNOTATORS

from . import tiny
from .conftest import Whole
from .planted import Place, after, half_row, killed

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label, "BLOCK", 4)


def made(whole: Whole, folder: Path, more: str = "") -> tuple[Path, dict[str, Any], str]:
    stage = (
        f"model: {whole.run}/sft, prompts: {whole.run}/world/prompts.jsonl, k: 3, limit: 10, max_tokens: 12, seed: 5"
    )
    (folder / "l.yaml").write_text(f"name: l\nstages:\n  - label: {{{stage}, max_prompt: 64, device: cpu{more}}}\n")
    out = io.StringIO()
    outcome = run_recipe(folder / "l.yaml", runs_root=folder, console=Console(file=out, width=200))
    return folder / "l" / "label", outcome["stages"]["label"]["result"], out.getvalue()


def everything(folder: Path) -> dict[str, Any]:
    judgements = [{k: v for k, v in row.items() if k != "when"} for row in tiny.rows(folder / "judgements.jsonl")]
    names = ("rankings.groups.jsonl", "rankings.jsonl", "chosen.jsonl")
    files = {name: (folder / name).read_bytes() for name in names}
    return files | {"judgements": judgements, "result": json.loads((folder / "done.json").read_text())["result"]}


@pytest.fixture(scope="module")
def uninterrupted(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label, "BLOCK", 4)
        return made(whole, tmp_path_factory.mktemp("whole"))[0]


def test_each_judgement_says_who_ranked_what(whole: Whole, uninterrupted: Path) -> None:
    groups = list(read_groups(uninterrupted / "rankings.groups.jsonl"))
    assert len(groups) > 5
    names = {a.name for a in ANNOTATORS}
    for group, row in zip(groups, tiny.rows(uninterrupted / "judgements.jsonl"), strict=True):
        assert row["ranks"] == list(ranks_of(group.preference) or ())
        assert row["responses"] == [response_id(r) for r in group.responses]
        assert (row["prompt"], row["model"], row["run"]) == (group.prompt.id, f"{whole.run}/sft", "l")
        assert row["annotator"] in names
        assert row["when"]
        assert group.preference is not None
        assert group.preference.annotator == row["annotator"]


def test_blocks_change_nothing(
    whole: Whole, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label, "BLOCK", 64)
    assert everything(made(whole, tmp_path)[0]) == everything(uninterrupted)


def test_the_chosen_responses_are_the_best_ones(uninterrupted: Path) -> None:
    rankings, chosen = (tiny.rows(uninterrupted / name) for name in ("rankings.jsonl", "chosen.jsonl"))
    for row, one in zip(rankings, chosen, strict=True):
        assert one["completion"] == row["responses"][row["ranks"].index(1)]
        assert (one["prompt"], one["meta"]) == (row["prompt"], row["meta"])
        assert not {"responses", "ranks"} & one.keys()


def test_noise_turns_rankings_over_and_nothing_else(whole: Whole, uninterrupted: Path, tmp_path: Path) -> None:
    folder, _, _ = made(whole, tmp_path, ", noise: 1")
    clean, noisy = (list(read_groups(f / "rankings.groups.jsonl")) for f in (uninterrupted, folder))
    ranks = [(ranks_of(a.preference), ranks_of(b.preference)) for a, b in zip(clean, noisy, strict=True)]
    assert any(a != b for a, b in ranks)
    for (a, b), old, new in zip(ranks, clean, noisy, strict=True):
        assert old.responses == new.responses
        assert sorted(a) == sorted(b)
        same = [(i, j) for i in range(3) for j in range(3) if old.responses[i].text == old.responses[j].text]
        assert all(b[i] == b[j] for i, j in same)


@pytest.mark.parametrize("write", [1, 3, 5, 8])
@pytest.mark.parametrize("done", [half_row, after])
def test_kill_9_at_a_write(whole: Whole, uninterrupted: Path, tmp_path: Path, write: int, done: Any) -> None:
    killed(lambda: made(whole, tmp_path), Place(JsonlFile, "write", write, done).plant)
    folder, _, text = made(whole, tmp_path)
    assert everything(folder) == everything(uninterrupted)
    assert ("rankings are done" in text) is (write > 4)

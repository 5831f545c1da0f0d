"""A reward service in a recipe: beside a classifier's label in one sum, as a monitor, and out of reach."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from tests.feedback.server import Server, serving
from tests.models.test_labels import labelled

from models import tiny
from tiltyard.errors import ConfigError
from tiltyard.pipeline import run_stage

from .tiny import rows


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        running.reply = lambda payload, n: (200, {"scores": [float(len(t)) for t in payload["responses"]]}, {})
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny.causal("llama", vocab_size=512).save_pretrained(tmp_path / "policy")
    tiny.chat().tokenizer.save_pretrained(tmp_path / "policy")
    labelled(tmp_path / "classifier", "llama", tiny.chat().tokenizer)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "what is it?", "answer": "x"}\n{"prompt": "yes"}\n')
    return tmp_path


def go(place: Path, **more: object) -> None:
    settings = {"model": str(place / "policy"), "prompts": str(place / "prompts.jsonl"), "max_prompt": 16, "steps": 2,
                "max_tokens": 4, "prompts_per_step": 2, "samples_per_prompt": 2, "device": "cpu", **more}  # fmt: skip
    run_stage("grpo", settings, runs_root=place / "runs", name="x", console=Console(quiet=True))


def test_a_sum_of_a_service_and_a_label_with_a_monitor(place: Path, server: Server) -> None:
    parts = {
        "far": {"from": server.url, "weight": 0.5},
        "near": {"from": str(place / "classifier"), "labels": {"helpful": 1.0, "verbose": -1.0}},
    }
    go(place, reward=parts, monitors={"far_too": {"from": server.url}})
    (folder,) = (place / "runs").rglob("metrics.jsonl")
    found = rows(folder)
    assert len(found) == 2
    for row in found:
        assert row["score"] == pytest.approx(0.5 * row["reward/far"] + row["reward/near"], abs=1e-5)
        assert row["reward/far"] == row["reward/far_too"] > 0
    assert server.asked[0][1]["responses"] == []  # the address was tried first
    assert sum(bool(payload["responses"]) for _, payload, _ in server.asked) == 4 + 4
    (kept,) = (place / "runs").rglob("*.rewards.jsonl")
    assert len(rows(kept)) == 4 + 4


def test_out_of_reach_before_anything_is_sampled(place: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be reached"):
        go(place, reward={"from": "http://127.0.0.1:9/score", "retries": 0})
    assert not list(place.rglob("groups.jsonl"))

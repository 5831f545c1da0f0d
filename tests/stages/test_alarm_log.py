"""Alarms during training: `alarms.jsonl` with samples, the console, the result, the card; the same after a resume."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from models import tiny
from tiltyard.inputs.settings import PromptSettings
from tiltyard.pipeline import run_stage
from tiltyard.runs.journal import JsonlFile
from tiltyard.runs.reader import read_alarms
from tiltyard.stages.alarm_log import AlarmLog

from .tiny import rows

SETTINGS = PromptSettings.model_validate({"model": "m", "prompts": {"path": "p"}})
REWARD = "def same(prompt, response):\n    return 0.5 + 0.01 * len(response.text)\n"


def group(step: int, *texts: str) -> dict:
    responses = [{"ids": list(range(len(text.split()))), "text": text} for text in texts]
    return {"step": step, "prompt": {"messages": [["user", f"question {step}"]]}, "responses": responses, "origin": ""}


def feed(folder: Path, first: int, last: int, out: io.StringIO | None = None) -> None:
    """Logs steps as the loop does: groups and metrics are written before sinks are called. Longer from step 20 on."""
    log = AlarmLog(Console(file=out or io.StringIO(), width=200), "ppo", folder, SETTINGS)
    files = [JsonlFile(folder / f"{name}.jsonl") for name in ("groups", "metrics")]
    for step in range(first, last + 1):
        words = 10 + step % 3 if step < 20 else 40 + step % 3
        files[0].write([group(step, "a b c", " ".join(["word"] * words))])
        files[1].write([{"step": step, "length": words, "time/seconds": 0.1}])
        log.log(step, {"length": float(words), "time/seconds": 0.1})
    log.close()


def test_a_row_with_samples_and_a_line(tmp_path: Path) -> None:
    out = io.StringIO()
    feed(tmp_path, 1, 19, out)
    assert not (tmp_path / "alarms.jsonl").exists()
    assert not out.getvalue()
    feed(tmp_path, 20, 40, out)
    (alarm,) = read_alarms(tmp_path / "alarms.jsonl")
    assert alarm["kind"] == "length"
    assert 20 < alarm["step"] <= 25
    longest = alarm["samples"][0]
    assert longest["tokens"] == 40 + alarm["step"] % 3
    assert longest["prompt"] == f"question {alarm['step']}"
    assert "ids" not in longest
    assert out.getvalue() == f"! alarm, ppo step {alarm['step']}: {alarm['text']}\n"


def test_resumed_runs_raise_what_unbroken_ones_do(tmp_path: Path) -> None:
    """From every step on, also where the interrupted attempt had gone further and left a half-written line."""
    whole = tmp_path / "whole"
    feed(whole, 1, 40)
    expected = (whole / "alarms.jsonl").read_bytes()
    for again in range(2, 41):
        folder = tmp_path / str(again)
        feed(folder, 1, 35)
        with (folder / "alarms.jsonl").open("ab") as file:
            file.write(b'{"step": 36, "ki')
        for name in ("groups", "metrics"):  # as the loop resumes: files are cut at the checkpoint
            lines = [line for line in rows(folder / f"{name}.jsonl") if line["step"] < again]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        feed(folder, again, 40)
        assert (folder / "alarms.jsonl").read_bytes() == expected


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "alarms.jsonl"
    assert read_alarms(path) == []
    path.write_text('{"step": 1, "kind": "kl", "text": "far"}\n[1]\n{"step": "x", "text": "y"}\n{"step": 2, "te')
    assert [row["text"] for row in read_alarms(path)] == ["far"]


@pytest.mark.parametrize("window", [2, 0])
def test_a_training_stage(tmp_path: Path, window: int) -> None:
    """Limits that anything exceeds: the alarm is in the file, the output, the result and the model card."""
    tiny.causal("llama", vocab_size=512).save_pretrained(tmp_path / "policy")
    tiny.chat().tokenizer.save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "what is it?"}\n{"prompt": "yes"}\n')
    (tmp_path / "rewards.py").write_text(REWARD)
    out = io.StringIO()
    settings = {"model": str(tmp_path / "policy"), "prompts": str(tmp_path / "prompts.jsonl"), "max_prompt": 16,
                "steps": 8, "max_tokens": 4, "prompts_per_step": 2, "samples_per_prompt": 3, "device": "cpu", "lr": 0.1,
                "reward": f"{tmp_path}/rewards.py:same", "alarm_window": window, "alarm_kl": 1e-6}  # fmt: skip
    outcome = run_stage("rloo", settings, runs_root=tmp_path / "runs", name="x", console=Console(file=out, width=200))
    folder = tmp_path / "runs/x/rloo"
    raised = read_alarms(folder / "alarms.jsonl")
    result, card = outcome["stages"]["rloo"]["result"], (folder / "model/README.md").read_text()
    if not window:
        assert raised == []
        assert "alarms" not in result
        assert "Alarms" not in card
        return
    far = next(row for row in raised if row["kind"] == "kl")
    assert [row["kind"] for row in result["alarms"]] == [row["kind"] for row in raised]
    assert f"! alarm, rloo step {far['step']}: {far['text']}" in out.getvalue()
    assert "## Alarms of training" in card
    assert far["text"] in card
    assert len(far["samples"]) == 3
    assert far["samples"][0]["score"] == max(one["score"] for one in far["samples"])
    for row in rows(folder / "metrics.jsonl"):
        assert 0 <= row["repetition"] <= 1
        assert 0 < row["unique"] <= 1
        assert 0 <= row["refusals"] <= 1

"""What every method that samples shows, as a stage: the same figures for all, their groups on disk, models counted."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from tiltyard.methods import METHODS
from tiltyard.pipeline import run_stage
from tiltyard.runs.groups import read_groups
from tiltyard.stages import evaluate_curves
from tiltyard.world import gold

from . import tiny

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

SETTINGS = """{model: START/sft, prompts: START/world/prompts.jsonl, limit: 12, max_prompt: 48, max_tokens: 8,
  monitors: [gold], steps: 4, prompts_per_step: 4, lr: 0.001, warmup: 0.0, device: cpu}"""
ONLINE = sorted(name for name, method in METHODS.items() if method.source.data_kind == "prompts")
STEPS, EVERY = 4, 2
ALWAYS = {"score", "reward/gold", "length", "truncated", "sampled", "entropy", "sampler_gap", "kl", "kl_k3", "kl_exact"}
SEVERAL = {"score_best", "score_worst", "tied_scores"}
JUDGED = {"judge_calls", "judge_tokens", "judge_cost"}
OFF_POLICY = {"kl_dpg": {"sampler_gap", "kl_k3"}}  # its answers are not the policy's: neither would be what it is
SINGLE = ("ppo", "a2c", "reinforce", "reinforce_pp")  # one answer a prompt by default
OPTIONAL = [name for name in ONLINE if METHODS[name].optional]
NO_PULL: dict[str, dict[str, Any]] = {"rft": {"restart": False}, "rest": {}, "cringe": {}}  # others: kl = 0


@pytest.fixture
def stage(start: Path, tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any], str]]:
    """A method's stage from the common start, a few answers to a few prompts: (folder, result, what was printed)."""

    def go(name: str, **more: Any) -> tuple[Path, dict[str, Any], str]:
        settings: dict[str, Any] = yaml.safe_load(SETTINGS.replace("START", str(start)))
        if METHODS[name].source.samples == "per iteration":
            settings |= {"iterations": STEPS // EVERY, "samples_per_prompt": 4} | (
                {"accepted": 2} if name == "rso" else {}
            )
            settings |= {"thresholds": [0.2]} if name == "rest" else {}
        if name == "self_rewarding":
            settings |= {"judge": {"ask": "score"}, "top_p": 1.0}
        else:
            settings |= {"reward": str(start / "reward")}
        settings |= {"dynamic_sampling": 0, "samples_per_prompt": 2} if name == "dapo" else {}
        settings |= {"samples_per_prompt": 2} if name == "dr_grpo" else {}
        settings |= {"moments": {"reward": 0.0}, "moment_prompts": 4, "moment_samples": 8} if name == "gdc" else {}
        settings |= {"ref_samples": 4} if name == "vbon" else {}
        settings |= {"samples_per_prompt": 4} if METHODS[name].family == "distribution" else {}
        settings |= more
        out = io.StringIO()
        outcome = run_stage(name, settings, runs_root=tmp_path, console=Console(file=out, width=200))
        return tmp_path / name / name, outcome["stages"][name]["result"], out.getvalue()

    return go


def shown(folder: Path, name: str) -> list[dict[str, float]]:
    """The rows of steps that sampled; finite numbers in all."""
    rows = tiny.rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(value is not None and math.isfinite(value) for row in rows for value in row.values())
    return rows if METHODS[name].source.samples == "every step" else rows[::EVERY]


def sampled(folder: Path, name: str) -> list[list[Any]]:
    """What is on disk of each sampling: every group with its scores."""
    if METHODS[name].source.samples == "every step":
        rows = tiny.rows(folder / "groups.jsonl")
        return [[g for g in rows if g["step"] == step] for step in range(1, STEPS + 1)]
    return [list(read_groups(path)) for path in sorted((folder / "rounds").glob("*.groups.jsonl"))]


@pytest.mark.parametrize("name", ONLINE)
def test_every_online_method_shows_the_same(name: str, stage: Any) -> None:
    folder, result, text = stage(name)
    rows = shown(folder, name)
    wanted = ALWAYS - OFF_POLICY.get(name, set())
    wanted |= (SEVERAL if name not in SINGLE else set()) | (JUDGED if name == "self_rewarding" else set())
    for row in rows:
        assert wanted <= row.keys()
        assert 0 <= row.get("sampler_gap", 0) < 1e-5
        assert 1 <= row["length"] <= 8
        assert 0 <= row["truncated"] <= 1
        assert row["entropy"] > 0
        assert row["kl_exact"] > -1e-5  # rounding, where the policy is still the reference
    assert [rows[0].get(key, 0) for key in ("kl", "kl_k3", "kl_exact")] == pytest.approx([0, 0, 0], abs=1e-5)
    assert rows[1]["kl_exact"] > 0
    assert "KL 0.0" in text
    assert result["models_in_memory"] == len(METHODS[name].trains) + len(METHODS[name].frozen)
    groups = sampled(folder, name)
    assert len(groups) == len(rows)
    assert sum(row["sampled"] + row.get("ref_sampled", 0) for row in rows) == result["samples"]
    if name == "self_rewarding":
        return  # its judge may leave out what it cannot read
    for row, found in zip(rows, groups, strict=True):
        scores = [s for g in found for s in (g["scores"] if isinstance(g, dict) else g.scores)]
        assert len(scores) == row["sampled"]
        assert row["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in ONLINE if name not in ("self_rewarding", "gdc")])
def test_and_with_a_judge_what_it_was_asked(name: str, stage: Any) -> None:
    few = {"steps": 2, "iterations": 1} if METHODS[name].source.samples == "per iteration" else {"steps": 2}
    folder, result, _ = stage(name, reward="", judge={"kind": "simulated", "ask": "points"}, **few)  # gold itself
    rows = tiny.rows(folder / "metrics.jsonl")
    assert rows[0].keys() >= (ALWAYS - OFF_POLICY.get(name, set())) | JUDGED
    assert rows[0]["judge_calls"] == rows[0]["sampled"] + rows[0].get("ref_sampled", 0)
    assert result["judge_calls"] == sum(row.get("judge_calls", 0) for row in rows)
    assert result["models_in_memory"] == len(METHODS[name].trains) + len(METHODS[name].frozen) - 1  # no reward model
    assert rows[0]["score"] == pytest.approx(rows[0]["reward/gold"])


@pytest.mark.parametrize("judge", ["policy", "START/sft"])
def test_a_judge_is_a_model_in_memory_unless_it_is_the_policy(judge: str, stage: Any, start: Path) -> None:
    asked = {"kind": "model", "model": judge.replace("START", str(start)), "ask": "score"}
    _, result, _ = stage("online_dpo", reward="", judge=asked, steps=1)
    assert result["models_in_memory"] == (2 if judge == "policy" else 3)


def test_dynamic_sampling_says_what_it_dropped(stage: Any) -> None:
    folder, _, _ = stage("grpo", dynamic_sampling=3, samples_per_prompt=2)
    assert all(row.keys() >= ALWAYS | {"dropped_groups"} for row in shown(folder, "grpo"))


@pytest.mark.parametrize("name", OPTIONAL)
def test_the_kl_may_be_given_up(name: str, stage: Any) -> None:
    """Where no loss or reward reads the reference; where one does, the setting changes nothing."""
    settings = NO_PULL.get(name, {"beta": 0.0})
    folder, result, text = stage(name, show_kl=False, **settings)
    kept = set(METHODS[name].frozen) - {"ref"}
    assert result["models_in_memory"] == len(METHODS[name].trains) + len(kept)
    assert f"(trained), {', '.join(sorted(kept))} (frozen)" in text
    for row in shown(folder, name):
        assert not {"kl", "kl_k3", "kl_exact"} & row.keys()
        assert {"entropy", "sampler_gap", "reward/gold"} <= row.keys()


@pytest.mark.parametrize("name", ["ppo", "grpo", "rft"])
def test_a_reference_that_is_read_stays(name: str, stage: Any) -> None:
    folder, result, text = stage(name, show_kl=False)
    assert result["models_in_memory"] == len(METHODS[name].trains) + 2
    assert "(trained), ref, reward (frozen)" in text
    assert all("kl_exact" in row for row in shown(folder, name))


@pytest.mark.parametrize("name", ["grpo", "cringe"])
def test_the_model_does_not_depend_on_what_is_shown(name: str, stage: Any, tmp_path: Path) -> None:
    settings = NO_PULL.get(name, {"beta": 0.0})
    found = []
    for show in (True, False):
        folder, result, _ = stage(name, show_kl=show, **settings)
        found.append(((folder / "model/model.safetensors").read_bytes(), result["models_in_memory"]))
        (tmp_path / name).rename(tmp_path / f"{name}-{show}")
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1] + 1


def test_methods_that_need_theirs_have_no_such_setting(stage: Any) -> None:
    from tiltyard.errors import TiltyardError

    assert OPTIONAL == [
        "a2c",
        "cringe",
        "dapo",
        "dr_grpo",
        "grpo",
        "ppo",
        "reinforce",
        "reinforce_pp",
        "rest",
        "rft",
        "rloo",
    ]
    with pytest.raises(TiltyardError, match="unknown setting 'show_kl'"):
        stage("online_dpo", show_kl=False)


def test_the_picture_has_what_was_measured_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact KL where there is one; no curve of a method in rounds, which measures now and then."""
    every = [{"step": i, "score": 0.5, "kl": 1.0 * i, "kl_exact": 2.0 * i} for i in (1, 2)]
    found = {
        "exact": every,
        "estimated": [{k: v for k, v in row.items() if k != "kl_exact"} for row in every],
        "rounds": [every[0], {"step": 2, "score": 0.5}],
        "without": [{"step": 1, "score": 0.5}],
    }
    for name, rows in found.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "groups.jsonl").touch()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(evaluate_curves, "reward_vs_kl_png", lambda path, curves: drawn.update(curves))
    context: Any = SimpleNamespace(outputs={}, folder=tmp_path)
    evaluate_curves.reward_vs_kl(context, {name: str(tmp_path / name) for name in found})
    assert {name: curve["kl"] for name, curve in drawn.items()} == {"exact": [2.0, 4.0], "estimated": [1.0, 2.0]}


def test_gold_is_that_of_the_answers(stage: Any) -> None:
    folder, _, _ = stage("rloo")
    for row, found in zip(shown(folder, "rloo"), sampled(folder, "rloo"), strict=True):
        truth = [gold(g["prompt"]["meta"], r.get("text", "")).total for g in found for r in g["responses"]]
        assert row["reward/gold"] == pytest.approx(sum(truth) / len(truth), abs=1e-9)

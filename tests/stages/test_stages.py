"""Every kind of stage on the tiny recipe: the files it promises, the numbers that must hold, what re-runs what."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tiltyard.data import load_groups, read_groups
from tiltyard.inputs.measure import scores_of
from tiltyard.models.load import load_language_model, load_scalar_model
from tiltyard.pipeline import run_recipe, run_stage
from tiltyard.types import ranks_of

from . import tiny
from .conftest import Whole

MODEL = ("model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/chat_template.jinja")
TRAINED = (*MODEL, "metrics.jsonl", "checkpoints", "config.json", "done.json")
FILES = {
    "world": ("corpus.jsonl", "demonstrations.jsonl", "prompts.jsonl", "held_out.jsonl"),
    "pretrain": TRAINED,
    "sft": TRAINED,
    "label": ("rankings.groups.jsonl", "rankings.jsonl", "judgements.jsonl", "chosen.jsonl"),
    "reward": TRAINED,
    "ppo": (*TRAINED, "groups.jsonl", "value/model.safetensors"),
    "evaluate": ("summary.json", "samples.md", "answers.jsonl", "reward_vs_kl.png"),
}


@pytest.mark.parametrize("stage", tiny.STAGES)
def test_the_files_of_a_stage(whole: Whole, stage: str) -> None:
    missing = [name for name in FILES[stage] if not (whole.run / stage / name).exists()]
    assert not missing
    assert not list((whole.run / stage).rglob("*.tmp"))
    assert not list((whole.run / stage).rglob("*.bin"))  # safetensors, never pickles
    assert not list((whole.run / stage).rglob("*.pt"))


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo"])
def test_metrics_of_every_step(whole: Whole, stage: str) -> None:
    rows = tiny.rows(whole.run / stage / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    promised = {"loss", "grad_norm", "lr", "time/seconds", "time/tokens_per_second"}
    promised |= {
        "reward": {"accuracy", "tied_groups"},
        "ppo": {
            "kl",
            "score",
            "length",
            "ratio",
            "clipped",
            "beta",
            "sampler_gap",
            "entropy",
            "truncated",
            "value_loss",
        },
    }.get(stage, {"tokens"})
    assert all(promised <= row.keys() for row in rows)
    if stage in ("pretrain", "sft"):
        assert rows[-1]["loss"] < rows[0]["loss"]
    if stage == "ppo":
        assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)  # the sampler spoke token by token
        assert all(abs(row["sampler_gap"]) < 1e-4 for row in rows)


def test_held_out_measurements(whole: Whole) -> None:
    rows = tiny.rows(whole.run / "sft" / "metrics.jsonl")
    measured = [row["step"] for row in rows if "held_out/loss" in row]
    assert measured == [4, 8, 10]
    result = whole.outcome["stages"]["sft"]["result"]
    assert result["held_out/loss"] == rows[-1]["held_out/loss"]
    assert result["held_out/bits_per_byte"] > 0


def test_models_load_with_transformers(whole: Whole) -> None:
    ids = torch.tensor([[5, 6, 7]])
    for stage in ("pretrain", "sft", "ppo"):
        folder = whole.run / stage / "model"
        model = AutoModelForCausalLM.from_pretrained(folder)
        own = load_language_model(folder)
        with own.plain(), torch.no_grad():
            torch.testing.assert_close(model(ids).logits, own.module(ids).logits)
        words = [{"role": "user", "content": "Hello"}]
        text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            words, tokenize=False, add_generation_prompt=True
        )
        assert text == own.chat.tokenizer.apply_chat_template(words, tokenize=False, add_generation_prompt=True)
        assert "<|user|>" in text
        assert text.endswith("<|assistant|>")
    reward = AutoModelForSequenceClassification.from_pretrained(whole.run / "reward" / "model")
    assert reward.config.num_labels == 1
    assert reward(ids).logits.shape == (1, 1)


def test_rewards_of_demonstrations_average_zero(whole: Whole) -> None:
    model = load_scalar_model(whole.run / "reward" / "model")
    groups, _ = load_groups(
        whole.run / "world" / "demonstrations_held_out.jsonl", "demonstrations", model.chat, max_length=64
    )
    scores = [s for row in scores_of(model, groups, 8192) for s in row]
    assert abs(sum(scores) / len(scores)) < 1e-6
    assert model.bias == whole.outcome["stages"]["reward"]["result"]["reward_bias"] != 0


def test_frozen_layers_stay_in_the_saved_model(whole: Whole) -> None:
    start, end = (load_scalar_model(whole.run / s / "model").module.state_dict() for s in ("sft", "reward"))
    same = {n for n in start if "layers" in n or "embed" in n if torch.equal(start[n], end[n])}
    assert same == {n for n in start if "embed" in n or "layers.0." in n}


def test_rankings_hold_the_ids_that_were_sampled(whole: Whole) -> None:
    groups = list(read_groups(whole.run / "label" / "rankings.groups.jsonl"))
    assert len(groups) == len(tiny.rows(whole.run / "label" / "judgements.jsonl"))
    for group in groups:
        assert len(group.responses) == 3
        assert group.origin.startswith("annotator:")
        assert all(r.logps is not None and len(r.logps) == len(r.ids) for r in group.responses)
        assert ranks_of(group.preference) is not None
        assert min(ranks_of(group.preference)) == 1


def test_the_summary(whole: Whole) -> None:
    summary = json.loads((whole.run / "summary.json").read_text())
    assert list(summary["models"]) == ["pretrain", "sft", "ppo"]
    promised = [
        "gold",
        "gold_ci",
        "helpful",
        "truthful",
        "harmless",
        "proxy",
        "kl",
        "win_rate",
        "win_rate_ci",
        "length",
    ]
    for name, facts in summary["models"].items():
        assert set(promised) <= facts.keys(), name
        assert facts["gold_ci"][0] <= facts["gold"] <= facts["gold_ci"][1]
        assert all(0 <= facts[k] <= 1 for k in ("helpful", "truthful", "harmless"))
    assert summary["models"]["sft"]["kl"] == 0  # to itself
    assert set(tiny.STAGES) - {"evaluate"} <= summary["seconds"].keys()


def test_the_console_says_what_happens(whole: Whole) -> None:
    for stage in tiny.STAGES:
        assert f"{stage}: runs, not run yet" in whole.text
        assert f"{stage}: done" in whole.text
    assert "groups a step: 8" in whole.text
    assert "models in memory: policy, value (trained), ref, reward (frozen)" in whole.text
    assert "the sampler's hidden states: kept for the training step" in whole.text
    assert "ppo 7/7" in whole.text


# ------------------------------------------------------------------------------------------------------- running again


def again(whole: Whole, tmp_path: Path, *overrides: str, **options: Any) -> tuple[str, str]:
    """Runs the recipe over a copy of the finished run; (what each stage did, what was printed)."""
    shutil.copytree(whole.root, tmp_path / "runs", dirs_exist_ok=True)
    out = io.StringIO()
    console = Console(file=out, width=200)
    outcome = run_recipe(whole.recipe, overrides, runs_root=tmp_path / "runs", console=console, **options)
    return " ".join(stage["status"] for stage in outcome["stages"].values()), out.getvalue()


def test_all_done(whole: Whole, tmp_path: Path) -> None:
    assert again(whole, tmp_path)[0] == "skip skip skip skip skip skip skip"


def test_another_kl_reruns_ppo_and_evaluate_alone(whole: Whole, tmp_path: Path) -> None:
    did, text = again(whole, tmp_path, "ppo.beta=0.2")
    assert did == "skip skip skip skip skip run run"
    assert "beta changed 0.05 -> 0.2" in text
    kept = list((tmp_path / "runs" / "tiny" / ".old").iterdir())
    assert sorted(p.name.split("-")[0] for p in kept) == ["evaluate", "ppo"]


@pytest.mark.parametrize(
    ("override", "did"),
    [
        ("sft.lr=2e-3", "skip skip run run run run run"),
        ("reward.lr=2e-3", "skip skip skip skip run run run"),
        ("label.k=2", "skip skip skip run run run run"),
        ("evaluate.samples_per_prompt=1", "skip skip skip skip skip skip run"),
        ("defaults.save_every=1", "skip skip skip skip skip skip skip"),  # neutral
    ],
)
def test_the_plan_of_a_change(whole: Whole, tmp_path: Path, override: str, did: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.run.rglob("*")}
    outcome = run_recipe(
        whole.recipe, [override], dry_run=True, runs_root=whole.root, console=Console(file=io.StringIO())
    )
    assert {p: p.stat().st_mtime_ns for p in whole.run.rglob("*")} == before  # a dry run writes nothing
    found = " ".join(stage["status"] for stage in outcome["stages"].values())
    assert found == did


def test_dry_run_of_a_fresh_recipe(tmp_path: Path) -> None:
    out = io.StringIO()
    outcome = run_recipe(
        tiny.write(tmp_path), dry_run=True, runs_root=tmp_path / "runs", console=Console(file=out, width=200)
    )
    assert not (tmp_path / "runs").exists()
    assert {stage["status"] for stage in outcome["stages"].values()} == {"run"}
    plan = outcome["stages"]["ppo"]["plan"]
    for words in ("groups a step", "tokens a step", "micro-batch", "models in memory", "peak memory"):
        assert any(words in line for line in plan), words
    assert "estimated peak memory" in "\n".join(outcome["stages"]["pretrain"]["plan"])


def test_another_save_every_gives_the_same_model(whole: Whole, tmp_path: Path) -> None:
    """`save_every` is neutral because it cannot change the result."""
    shutil.copytree(whole.root, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "tiny" / "sft")
    out = Console(file=io.StringIO())
    recipe = tmp_path / "short.yaml"
    recipe.write_text(whole.recipe.read_text().split("  - label")[0])
    run_recipe(recipe, ["sft.save_every=0", "sft.sample_every=3"], runs_root=tmp_path / "runs", console=out)
    weights = [root / "tiny/sft/model/model.safetensors" for root in (whole.root, tmp_path / "runs")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert {row["step"] for row in tiny.rows(tmp_path / "runs/tiny/sft/samples.jsonl")} == {3, 6, 9}


def test_one_process_spreads_nothing_and_says_so(whole: Whole, tmp_path: Path) -> None:
    weights, said = {}, {}
    for name, shard in (("with", True), ("without", False)):
        settings = {"model": str(whole.run / "sft"), "data": str(whole.run / "world/demonstrations_held_out.jsonl")}
        settings |= {"steps": 1, "max_length": 64, "limit": 8, "device": "cpu", "shard": shard}
        out = io.StringIO()
        run_stage("sft", settings, name=name, runs_root=tmp_path, console=Console(file=out, width=200))
        weights[name], said[name] = (tmp_path / name / "sft/model/model.safetensors").read_bytes(), out.getvalue()
    assert weights["with"] == weights["without"]
    assert "shard: one process keeps all weights" in said["with"]
    assert "shard:" not in said["without"]


def test_every_file_has_the_mode_of_the_users_umask(whole: Whole) -> None:
    """Weights and checkpoints are as readable as the tables beside them, and so are folders."""
    umask = os.umask(0)
    os.umask(umask)
    paths = [path for path in whole.run.rglob("*") if not path.is_symlink()]
    assert {path.suffix for path in paths} >= {".safetensors", ".json", ".jsonl"}
    odd = [path for path in paths if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask]
    assert not odd

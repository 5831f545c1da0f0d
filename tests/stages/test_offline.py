"""Offline methods through the stages: what they write, that they resume, and that two processes are one."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiltyard.data import read_groups
from tiltyard.methods import METHODS
from tiltyard.models.load import load_language_model
from tiltyard.pipeline import run_recipe
from tiltyard.training.log import LiveLine

from . import tiny

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

ROOT = Path(__file__).parents[2]
START = tiny.starting("offline", reward=False, save_every=2, warmup=0.1)
RANKED = "model: sft, data: label/rankings.groups.jsonl, held_out: label/rankings.groups.jsonl, steps: 5, eval_every: 3"
SHOWN = "demonstrations: world/demonstrations_held_out.jsonl"
STAGES = {
    "dpo": f"{{{RANKED}, pairs: all}}",
    "conservative": f"{{method: dpo, {RANKED}, pairs: all, noise: 0.1}}",
    "ipo": f"{{{RANKED}, pairs: all}}",
    "slic": f"{{{RANKED}, pairs: best_worst, {SHOWN}}}",
    "slic_chosen": f"{{method: slic, {RANKED}, pairs: best_worst, target: chosen}}",
    "rrhf": f"{{{RANKED}}}",
    "click": f"{{{RANKED}, good_from: best, {SHOWN}}}",
    "kto": f"{{{RANKED}, good_from: best, undesirable: 0.5}}",
    "orpo": f"{{{RANKED}, pairs: all}}",
    "simpo": f"{{{RANKED}, pairs: all}}",
    "cpo": f"{{{RANKED}, pairs: all}}",
    "spin": "{model: sft, data: world/demonstrations_held_out.jsonl, limit: 24, steps: 6, iterations: 3, "
    "max_tokens: 8, held_out: world/demonstrations_held_out.jsonl}",
}
PAIRED = {"chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp", "margin", "accuracy", "loss"}
LOGGED = {
    **dict.fromkeys(STAGES, PAIRED),
    "slic": PAIRED | {"targets_loss", "targets_grad_ratio"},
    "rrhf": {"rank_loss", "best_nll", "accuracy", "loss"},
    "click": {"hinge", "active", "paired", "good", "lm_loss", "lm_grad_ratio", "loss"},
    "kto": {"good_reward", "bad_reward", "kl", "good", "loss"},
    "spin": PAIRED | {"iteration", "beta"},
}
COMPARED = {"held_out/accuracy", "held_out/likelihood_accuracy", "held_out/margin", "held_out/log_ratio"}
MEASURED = {
    **dict.fromkeys(STAGES, COMPARED),
    "spin": {"held_out/loss", "held_out/bits_per_byte"},
}


class Made(NamedTuple):
    run: Path
    outcome: dict[str, Any]
    text: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("offline")
    return go(folder, START + "".join(f"  - {name}: {settings}\n" for name, settings in STAGES.items()))


def go(folder: Path, recipe: str, *overrides: str) -> Made:
    (folder / "offline.yaml").write_text(recipe)
    out = io.StringIO()
    console = Console(file=out, width=200)
    outcome = run_recipe(folder / "offline.yaml", overrides, runs_root=folder / "runs", console=console)
    return Made(folder / "runs" / "offline", outcome, out.getvalue())


def alone(made: Made, folder: Path, name: str, *overrides: str) -> Made:
    """One stage by itself, from the finished ones."""
    folder.mkdir(exist_ok=True)
    settings = STAGES[name]
    for earlier in ("sft", "world", "label"):
        settings = settings.replace(f": {earlier}/", f": {made.run / earlier}/").replace(
            f": {earlier},", f": {made.run / earlier},"
        )
    head = START.partition("stages:")[0] + "stages:\n"
    return go(folder, f"{head}  - {name}: {settings}\n", *overrides)


def curve(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in tiny.rows(folder / "metrics.jsonl")]


# ------------------------------------------------------------------------------------------------- what they leave


def test_the_recipe_has_every_offline_method() -> None:
    named = {settings.partition("method: ")[2].partition(",")[0] or name for name, settings in STAGES.items()}
    assert named == {name for name, method in METHODS.items() if method.family == "offline"}


@pytest.mark.parametrize("name", STAGES)
def test_what_a_method_logs_and_measures(made: Made, name: str) -> None:
    rows = curve(made.run / name)
    steps = 6 if name == "spin" else 5
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert LOGGED[name] | {"lr", "grad_norm"} <= row.keys()
        assert all(v is not None and math.isfinite(v) for v in row.values())
    measured = {row["step"]: row for row in rows if row.keys() & MEASURED[name]}
    assert list(measured) == ([6] if name == "spin" else [3, 5])
    result = made.outcome["stages"][name]["result"]
    for key in MEASURED[name]:
        assert result[key] == measured[steps][key]
    for key in ("accuracy", "held_out/accuracy", "held_out/likelihood_accuracy", "held_out/auc"):
        assert all(0 <= row.get(key, 0) <= 1 for row in rows)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("dpo", math.log(2)),
        ("conservative", math.log(2)),
        ("ipo", 1 / (4 * 0.1**2)),
        ("spin", math.log(2)),
        ("kto", None),
    ],
)
def test_the_first_loss_is_that_of_equal_models(made: Made, name: str, loss: float | None) -> None:
    """The policy is the reference. KTO: one half of each answer's weight, at a reference point of 0."""
    first = curve(made.run / name)[0]
    if loss is None:
        assert first["kl"] == 0
        loss = 0.5 * (first["good"] + 0.5 * (1 - first["good"]))
    assert first["loss"] == pytest.approx(loss, abs=1e-4 if name == "ipo" else 1e-6)
    assert first.get("margin", 0) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", STAGES)
def test_the_model_is_one_of_transformers(made: Made, name: str) -> None:
    folder = made.run / name / "model"
    module, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    own = load_language_model(folder, device="cpu")
    ids = torch.tensor([tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])["input_ids"]])
    with torch.no_grad(), own.plain():
        torch.testing.assert_close(module(ids).logits, own.module(ids).logits)
    before = load_file(made.run / "sft" / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[key], after[key]) for key in before)


def test_learning_shows_on_what_was_learnt(made: Made, tmp_path: Path) -> None:
    """More steps with a larger rate: DPO's implicit reward orders its own training pairs better than chance."""
    longer = alone(made, tmp_path, "dpo", "dpo.steps=40", "dpo.lr=3e-3")
    result = longer.outcome["stages"]["dpo"]["result"]
    assert result["held_out/accuracy"] > 0.75
    assert result["held_out/margin"] > 1
    assert curve(longer.run / "dpo")[-1]["loss"] < 0.6


def test_labels_are_measured_by_their_order(made: Made, tmp_path: Path) -> None:
    """Labelled answers in a file have no ranks: the chance that a good one's log-ratio is above a bad one's."""
    rows = [{"prompt": f"Who is {who}?", "completion": f"{who} is a baker.", "label": True} for who in ("Ann", "Bo")]
    rows += [{"prompt": f"Who is {who}?", "completion": "Go away.", "label": False} for who in ("Ann", "Bo")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = str(tmp_path / "rows.jsonl")
    found = alone(
        made, tmp_path, "kto", f"kto.data={data}", f"kto.held_out={data}", "kto.good_from=null", "kto.steps=20"
    )
    result = found.outcome["stages"]["kto"]["result"]
    assert result["held_out/auc"] == 1  # learnt by heart
    assert "held_out/accuracy" not in result
    assert curve(found.run / "kto")[-1]["good_reward"] > 0 > curve(found.run / "kto")[-1]["bad_reward"]


def test_self_play_keeps_what_it_played(made: Made) -> None:
    """Each pair: the data's answer and the snapshot's own, by iteration; one iteration takes a third of the steps."""
    rows = tiny.rows(made.run / "spin" / "groups.jsonl")
    assert len(rows) == 6 * 4
    for row in rows:
        data, own = row["responses"]
        assert row["preference"]["ranks"] == [1, 2]
        assert own["policy_version"] == (row["step"] - 1) // 2
        assert len(own["ids"]) <= 8
        assert len(own["logps"]) == len(own["ids"])
        assert data.get("logps") is None
    assert [row["iteration"] for row in curve(made.run / "spin")] == [1, 1, 2, 2, 3, 3]
    first = [row["loss"] for row in curve(made.run / "spin")][::2]
    assert first == pytest.approx([math.log(2)] * 3, abs=1e-5)  # each iteration begins at its own snapshot


# ------------------------------------------------------------------------------------------------ references on disk


def test_one_reference_is_computed_once(made: Made) -> None:
    """The pairs that 5 steps read (DPO, IPO), all of them (held-out), best against worst (SLiC's), rankings (CLICK)."""
    assert made.text.count("no reference in memory") == 4  # dpo, conservative, ipo, click
    assert made.text.count("groups computed; no reference in memory") == 1
    assert made.text.count("groups found on disk; no reference in memory") == 3  # CLICK's were RRHF's held-out data
    assert len(list((made.run.parent / ".cache" / "ref-logps").iterdir())) == 4
    assert made.text.count("log-probs of 20 groups") == 3  # 5 steps of 4: what no step reads is not computed
    for line in ("models in memory: policy (trained)\n", "models in memory: policy (trained), ref (frozen)\n"):
        assert line in made.text  # DPO and its kin; KTO and SPIN


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_another_reference(made: Made, tmp_path: Path, name: str) -> None:
    """`ref` is honoured with the cache and without, both alike, and what is learnt is another thing."""
    settings = (f"{name}.dtype=float64", f"{name}.ref={made.run / 'pretrain'}")
    kept = alone(made, tmp_path / "kept", name, *settings)
    live = alone(made, tmp_path / "live", name, *settings, f"{name}.ref_cache=false")
    usual = alone(made, tmp_path / "usual", name, settings[0])
    assert "no reference in memory" in kept.text
    assert "no reference in memory" not in live.text
    rows = [curve(m.run / name) for m in (kept, live, usual)]
    for mine, other in zip(rows[0], rows[1], strict=True):
        assert mine.keys() == other.keys()
        assert mine == pytest.approx(other, abs=1e-8)
    assert abs(rows[0][0]["margin"] - rows[2][0]["margin"]) > 1e-3
    # log-ratios of held-out answers are to that reference too
    assert abs(rows[0][-1]["held_out/log_ratio"] - rows[2][-1]["held_out/log_ratio"]) > 1e-2


def test_a_new_reference_needs_a_new_run(made: Made, tmp_path: Path) -> None:
    alone(made, tmp_path, "dpo")
    again = alone(made, tmp_path, "dpo", f"dpo.ref={made.run / 'pretrain'}")
    assert "ref changed" in again.text
    assert "groups computed; no reference in memory" in again.text


# ------------------------------------------------------------------------------------------------------- interrupted


def killed(made: Made, folder: Path, name: str, step: int) -> None:
    """The stage in a child that is killed with SIGKILL right after this step."""
    child = os.fork()
    if not child:
        log = LiveLine.log

        def fatal(line: LiveLine, at: int, metrics: dict[str, float]) -> None:
            log(line, at, metrics)
            if at == step:
                os.kill(os.getpid(), signal.SIGKILL)

        LiveLine.log = fatal  # type: ignore[method-assign]
        try:
            alone(made, folder, name)
        finally:
            os._exit(3)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize("name", ["spin", "dpo", "click", "kto"])
def test_killed_is_uninterrupted(made: Made, tmp_path: Path, name: str) -> None:
    """SPIN is killed in its first iteration (reference: the start) and its last (reference: its second snapshot)."""
    whole = alone(made, tmp_path / "whole", name)
    steps = (1, 5) if name == "spin" else (3,)
    for step in steps:
        killed(made, tmp_path / "cut", name, step)
        assert not (tmp_path / "cut" / "runs" / "offline" / name / "done.json").exists()
    found = alone(made, tmp_path / "cut", name)
    assert "goes on" in found.text or "resum" in found.text
    ours, theirs = found.run / name, whole.run / name
    assert curve(ours) == curve(theirs)
    for path in ("model/model.safetensors", "groups.jsonl"):
        if (theirs / path).exists():
            assert (ours / path).read_bytes() == (theirs / path).read_bytes()
    assert json.loads((ours / "done.json").read_text())["result"] == whole.outcome["stages"][name]["result"]


# ----------------------------------------------------------------------------------------------------- two processes


@pytest.mark.slow
def test_two_processes_are_one(made: Made, tmp_path: Path) -> None:
    """Pairs with a cached reference, an auxiliary loss, KTO's reference point over all processes, and self-play."""
    names = ("dpo", "slic", "click", "kto", "spin")
    runs = []
    for before in ((), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")):
        folder = tmp_path / ("two" if before else "one")
        folder.mkdir()
        stages = "".join(f"  - {name}: {STAGES[name]}\n" for name in names)
        (folder / "offline.yaml").write_text(START + stages)
        command = [sys.executable, *before, "-m", "tiltyard.cli", "run", str(folder / "offline.yaml")]
        command += ["--runs", str(folder), "defaults.dtype=float64", "defaults.prompts_per_step=5"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        runs.append(folder / "offline")
    for name in names:
        one, two = (curve(run / name) for run in runs)
        for mine, other in zip(two, one, strict=True):
            assert mine.keys() == other.keys()
            if "margin" in other and abs(other["margin"]) < 1e-9:
                # before its first update a policy is its reference: which of two equal rewards is higher is rounding
                mine, other = ({k: v for k, v in row.items() if k != "accuracy"} for row in (mine, other))
            assert mine == pytest.approx(other, abs=1e-6), name
    drawn = [[g.responses[1].ids for g in read_groups(run / "spin" / "groups.jsonl")] for run in runs]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 30

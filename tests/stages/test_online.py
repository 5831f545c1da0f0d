"""The methods that answer in rounds or at every step, as stages: what they leave, kills, replays, two rewards."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tiltyard.cli import app
from tiltyard.errors import TiltyardError
from tiltyard.methods import METHODS
from tiltyard.pipeline import run_recipe
from tiltyard.runs.groups import read_groups
from tiltyard.training.log import LiveLine
from tiltyard.world import gold

from . import tiny

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

START = tiny.starting("online", save_every=2, warmup=0.1)
ASKED = "model: sft, prompts: world/prompts.jsonl, monitors: [gold], limit: 20, max_tokens: 8, max_prompt: 48, steps: 6"
MANY = f"{ASKED}, iterations: 3"
ROUNDS = f"{MANY}, samples_per_prompt: 4"
STAGES = {
    "iterative_dpo": f"{{{ROUNDS}, reward: reward, ref_update: previous}}",
    "online_dpo": f"{{{ASKED}, reward: reward}}",
    "rft": f"{{{ROUNDS}, reward: reward}}",
    "rest": f"{{{ROUNDS}, reward: reward, thresholds: [0.2, 0.5]}}",
    "rest_pairs": f"{{method: rest, {ROUNDS}, reward: reward, thresholds: [0.2], loss: dpo}}",
    "rso": f"{{{MANY}, samples_per_prompt: 12, reward: reward, accepted: 4, top_k: 30}}",
    "cringe": f"{{{ROUNDS}, reward: reward, round_prompts: 6}}",
    "by_rule": f"{{method: iterative_dpo, {ROUNDS}, reward: gold}}",
    "online_by_rule": f"{{method: online_dpo, {ASKED}, reward: gold}}",
}
STEPS = 6
PAIRED = {"margin", "accuracy", "chosen_reward", "rejected_reward", "tied_groups"}
SAMPLED = {"score", "reward/gold", "length", "truncated", "score_best", "score_worst", "tied_scores"}
LEARNT = {
    **dict.fromkeys(STAGES, PAIRED),
    "online_dpo": PAIRED | {"sampler_gap"},
    "online_by_rule": PAIRED | {"sampler_gap"},
    "rft": set(),
    "rest": set(),
    "cringe": PAIRED | {"gate", "contrast"},
}
EVERY = 2
IN_ROUNDS = [name for name in STAGES if not name.startswith("online")]


class Made(NamedTuple):
    run: Path
    outcome: dict[str, Any]
    text: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return go(tmp_path_factory.mktemp("online"), START + "".join(f"  - {n}: {s}\n" for n, s in STAGES.items()))


def go(folder: Path, recipe: str, *overrides: str) -> Made:
    folder.mkdir(exist_ok=True)
    (folder / "online.yaml").write_text(recipe)
    out = io.StringIO()
    console = Console(file=out, width=200)
    outcome = run_recipe(folder / "online.yaml", overrides, runs_root=folder / "runs", console=console)
    return Made(folder / "runs" / "online", outcome, out.getvalue())


def alone(made: Made, folder: Path, name: str, *overrides: str) -> Made:
    """One stage by itself, from the finished ones."""
    said = STAGES[name].replace("model: sft", f"model: {made.run / 'sft'}")
    said = said.replace("reward: reward", f"reward: {made.run / 'reward'}").replace("world/", f"{made.run / 'world'}/")
    head = START.partition("stages:")[0].replace('"max_length": 64, ', "") + "stages:\n"
    return go(folder, f"{head}  - {name}: {said}\n", *overrides)


def curve(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in tiny.rows(folder / "metrics.jsonl")]


def rounds_of(folder: Path) -> list[list[Any]]:
    return [list(read_groups(path)) for path in sorted((folder / "rounds").glob("*.groups.jsonl"))]


# ------------------------------------------------------------------------------------------------- what they leave


@pytest.mark.parametrize("name", STAGES)
def test_what_a_method_logs(made: Made, name: str) -> None:
    """What was learnt at every step; what was sampled at every step, or where a round begins."""
    rows = curve(made.run / name)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for i, row in enumerate(rows):
        if row.get("tied_groups") == 1:  # an untaught model, judged by rules: nothing to learn in this step
            assert name == "online_by_rule"
            assert "loss" not in row
        else:
            assert LEARNT[name] | {"loss", "lr", "grad_norm"} <= row.keys()
        assert all(v is not None and math.isfinite(v) for v in row.values())
        begins = name not in IN_ROUNDS or i % EVERY == 0
        assert (row.keys() >= SAMPLED) == begins
        if name in IN_ROUNDS:
            assert row.get("round") == (1 + i // EVERY if begins else None)
        if begins:
            assert row["score_worst"] <= row["score"] <= row["score_best"]
            assert 1 <= row["length"] <= 8
            assert 0 <= row["truncated"] <= 1
            assert -3 < row["reward/gold"] < 3
    assert "loss" in set().union(*rows)
    if name.startswith("online"):  # the sampler's law and the policy's, both at the temperature of sampling
        assert all(0 <= row["sampler_gap"] < 1e-5 for row in rows)


@pytest.mark.parametrize("name", IN_ROUNDS)
def test_what_a_round_keeps(made: Made, name: str) -> None:
    """Every prompt with its n answers and their scores; the metrics of the round's first step are of these."""
    found, rows = rounds_of(made.run / name), curve(made.run / name)
    assert len(found) == 3
    n, size = (12 if name == "rso" else 4), (6 if name == "cringe" else 8)
    for number, groups in enumerate(found):
        assert len(groups) == size
        assert {len(g.responses) for g in groups} == {n}
        assert {r.policy_version for g in groups for r in g.responses} == {EVERY * number}
        scores = [s for g in groups for s in g.scores]
        assert rows[EVERY * number]["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-9)
        truth = [gold(g.prompt.meta, r.text).total for g in groups for r in g.responses]
        assert rows[EVERY * number]["reward/gold"] == pytest.approx(sum(truth) / len(truth), abs=1e-9)
        if name == "by_rule":
            assert scores == pytest.approx(truth)


def test_two_answers_and_a_pair_at_every_step(made: Made) -> None:
    """Online DPO keeps each step's own pairs, by version; at step 1 policy and reference are one."""
    for name in ("online_dpo", "online_by_rule"):
        groups = tiny.rows(made.run / name / "groups.jsonl")
        assert len(groups) == STEPS * 4
        for group in groups:
            assert len(group["responses"]) == 2
            assert {r["policy_version"] for r in group["responses"]} == {group["step"] - 1}
        if name == "online_dpo":
            assert curve(made.run / name)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    rules = tiny.rows(made.run / "online_by_rule" / "groups.jsonl")
    for group in rules:
        truth = [gold(group["prompt"]["meta"], r.get("text", "")).total for r in group["responses"]]
        assert group["scores"] == pytest.approx(truth)


def test_what_is_learnt_comes_from_the_round(made: Made) -> None:
    """Iterative DPO: the best against the worst of the round. Rejection sampling: the best so far of a prompt."""
    held = rounds_of(made.run / "iterative_dpo")
    for row in tiny.rows(made.run / "iterative_dpo" / "groups.jsonl"):
        number = (row["step"] - 1) // EVERY
        scores = [g.scores for g in held[number] if list(g.prompt.ids) == row["prompt"]["ids"]]
        assert row["scores"] in [[max(s), min(s)] for s in scores]
    pools = rounds_of(made.run / "rft")
    for row in tiny.rows(made.run / "rft" / "groups.jsonl"):
        until = pools[: 1 + (row["step"] - 1) // EVERY]
        every = [s for groups in until for g in groups if list(g.prompt.ids) == row["prompt"]["ids"] for s in g.scores]
        assert row["scores"] == [max(every)]


@pytest.mark.parametrize("name", ["iterative_dpo", "rft", "cringe"])
def test_the_model_is_one_of_transformers(made: Made, name: str) -> None:
    AutoModelForCausalLM.from_pretrained(made.run / name / "model")
    before = load_file(made.run / "sft" / "model" / "model.safetensors")
    after = load_file(made.run / name / "model" / "model.safetensors")
    assert not all(before[key].equal(after[key]) for key in before)


def test_the_recipe_has_every_method_that_is_scored() -> None:
    named = {said.partition("method: ")[2].partition(",")[0] or name for name, said in STAGES.items()}
    scored = {name for name, m in METHODS.items() if m.family == "online" and "reward" in m.frozen}
    assert named == scored


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


@pytest.mark.parametrize("name", ["iterative_dpo", "rft", "online_dpo"])
def test_killed_is_uninterrupted(made: Made, tmp_path: Path, name: str) -> None:
    """In the first round before any checkpoint, as the second begins, and in the third."""
    for step in (1, 3, 5):
        killed(made, tmp_path, name, step)
        assert not (tmp_path / "runs" / "online" / name / "done.json").exists()
    found = alone(made, tmp_path, name)
    ours, theirs = found.run / name, made.run / name
    assert curve(ours) == curve(theirs)
    files = ["model/model.safetensors", "groups.jsonl"]
    files += [f"rounds/{p.name}" for p in (theirs / "rounds").glob("*")]
    for path in files:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    assert len(files) == (2 if name == "online_dpo" else 8)  # a round is its groups and its metrics


# ------------------------------------------------------------------------------------------------------------ replays


@pytest.mark.parametrize("name", ["iterative_dpo", "online_dpo", "rft"])
def test_a_stage_is_replayed(made: Made, tmp_path: Path, name: str) -> None:
    """`replay`: the stored answers, no sampling, the run itself; and at another rate another model."""
    again = alone(made, tmp_path / "same", name, f"{name}.replay={made.run / name}")
    ours, theirs = again.run / name / "model", made.run / name / "model"
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert not (again.run / name / "rounds").exists()
    gold_of = [[row.get("gold") for row in curve(run / name)] for run in (again.run, made.run)]
    assert gold_of[0] == gold_of[1]
    faster = alone(made, tmp_path / "faster", name, f"{name}.replay={made.run / name}", f"{name}.lr=1e-2")
    assert (faster.run / name / "model" / "model.safetensors").read_bytes() != (
        theirs / "model.safetensors"
    ).read_bytes()


def test_the_verb_replays(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["replay", str(made.run / "rft"), "lr=5e-3", "--runs", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    folder = tmp_path / "online-replay" / "rft"
    assert json.loads((folder / "config.json").read_text())["settings"]["replay"] == str(made.run / "rft")
    assert [row["lr"] for row in curve(folder)] == pytest.approx([5 * row["lr"] for row in curve(made.run / "rft")])
    assert [row.get("score") for row in curve(folder)] == [row.get("score") for row in curve(made.run / "rft")]


@pytest.mark.parametrize(("name", "more"), [("rft", ("rft.iterations=6",)), ("online_dpo", ())])
def test_more_than_was_stored_is_found_first(made: Made, tmp_path: Path, name: str, more: tuple[str, ...]) -> None:
    steps = f"{name}.steps={12 if more else 7}"
    with pytest.raises(TiltyardError, match=r"round 4 are not there|nothing was stored for step 7") as caught:
        alone(made, tmp_path, name, f"{name}.replay={made.run / name}", steps, *more)
    assert "replay" in caught.value.fix
    assert not (tmp_path / "runs" / "online" / name / "metrics.jsonl").exists()


# ------------------------------------------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("name", "overrides", "what"),
    [
        ("online_dpo", ["online_dpo.samples_per_prompt=3"], "a pair is two responses"),
        ("rest", ["rest.thresholds=[0.5,0.4]"], "thresholds must rise"),
        ("rest", ["rest.thresholds=[0.1,0.2,0.3]"], "fewer steps than thresholds"),
        ("rso", ["rso.accepted=30"], "more responses are to be accepted"),
    ],
)
def test_settings_that_cannot_be(made: Made, tmp_path: Path, name: str, overrides: list[str], what: str) -> None:
    with pytest.raises(TiltyardError, match=what):
        alone(made, tmp_path, name, *overrides)

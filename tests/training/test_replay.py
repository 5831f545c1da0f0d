"""Replays: a run's stored answers, learnt from again, give the run itself; what else may change, and what cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sampling.scripted import ScriptedSampler
from tests.scoring.stubs import Scripted

from tiltyard.errors import DataError
from tiltyard.methods import grpo, online_dpo, ppo
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.replay import replayed, stored_groups
from tiltyard.training.source import Online
from tiltyard.types import Group

from . import round_runs as runs
from . import tiny

EVERY_STEP: dict[str, Any] = {
    "ppo": lambda source: ppo(source, kl_target=0.1, kl_horizon=100, ppo_epochs=2, minibatches=2),
    "grpo": grpo,
    "online_dpo": online_dpo,
}
ROUNDS = ("fixed", "previous", "rft", "rest", "rso", "cringe")


def never(*_: Any, **__: Any) -> list[Group]:
    raise AssertionError("a replay samples nothing and judges nothing")


NO_SAMPLER, NO_SCORER = ScriptedSampler(never), Scripted(never)


def models() -> Models:
    return Models(policy=tiny.policy(), ref=tiny.frozen(), value=tiny.scalar(3))


def online(**changes: Any) -> Online:
    n = changes.pop("n", 2)
    law = SampleSettings(max_tokens=5)
    given: dict[str, Any] = {"sampler": NativeSampler(), "scorer": FunctionScorer(runs.score)} | changes
    return Online(runs.prompts(), prompts_per_step=5, samples_per_prompt=n, settings=law, seed=2, **given)


def trained(algorithm: Algorithm, folder: Path | None = None, **settings: Any) -> tuple[list[Any], Any]:
    """(every metric of every step, all trained parameters)."""
    given, record = models(), tiny.Record()
    runs.run(algorithm, given, folder, sinks=[record], **settings)
    return record.rows, {n: tiny.parameters(given.get(n)) for n in algorithm.trains}


def run(name: str, folder: Path) -> tuple[list[Any], Any]:
    if name in EVERY_STEP:
        return trained(EVERY_STEP[name](online()), folder)
    return trained(runs.make(name, folder=folder / "rounds"), folder)


def again(name: str, folder: Path) -> Algorithm:
    """The method over what was stored, with a sampler and a scorer that must not be asked."""
    if name in EVERY_STEP:
        return EVERY_STEP[name](replayed(online(sampler=NO_SAMPLER, scorer=NO_SCORER), folder / "groups.jsonl"))
    return runs.make(name, folder=folder / "rounds", stored=True, sampler=NO_SAMPLER, scorer=NO_SCORER)


@pytest.mark.parametrize("name", [*EVERY_STEP, *ROUNDS])
def test_a_replay_is_the_run(name: str, tmp_path: Path) -> None:
    """Bit for bit: parameters, and every metric that does not say what was sampled; into another folder.

    In rounds the gap and what is estimated from drawn tokens are left out: nothing was drawn. What a run shows from the
    states that its sampler kept, a replay shows from a forward pass: equal but for rounding.
    """
    rows, whole = run(name, tmp_path / "run")
    stored = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.jsonl")}
    found, replay = trained(again(name, tmp_path / "run"), tmp_path / "replay")
    tiny.assert_same(replay, whole, 0)
    assert len(found) == runs.STEPS
    of_draws = {"sampled"} if name in EVERY_STEP else {"sampled", "sampler_gap", "kl", "kl_k3"}
    if name not in EVERY_STEP:
        assert not any(of_draws & row.keys() for row in found)
    assert all("kl_exact" in row for row in rows if "score_best" in row)
    rounded = {"kl", "kl_k3", "kl_exact", "entropy", "sampler_gap"} - of_draws
    apart = {k for row in (*rows, *found) for k in row if k.startswith("mismatch/")}
    assert name in EVERY_STEP or not any(apart & row.keys() for row in found)
    rounded, of_draws = (rounded | apart, of_draws) if name in EVERY_STEP else (rounded, of_draws | apart)
    for names, tolerance in ((rounded, 1e-12), ({k for row in (*rows, *found) for k in row} - rounded, 0)):
        one, two = ([{k: v for k, v in row.items() if k in names - of_draws} for row in x] for x in (found, rows))
        tiny.assert_same(one, two, tolerance)
    assert stored == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.jsonl")}
    assert not (tmp_path / "replay" / "rounds").exists()
    assert (tmp_path / "replay" / "groups.jsonl").read_bytes() == (tmp_path / "run" / "groups.jsonl").read_bytes()


@pytest.mark.parametrize("name", ["ppo", "previous", "rft"])
def test_other_settings_may_change(name: str, tmp_path: Path) -> None:
    """Another rate, fewer steps: the same answers, other weights; fewer steps are the run's own beginning."""
    rows, whole = run(name, tmp_path)
    faster, other = trained(again(name, tmp_path), lr=3e-2)
    assert not all(other["policy"][k].equal(p) for k, p in whole["policy"].items())
    assert [row.get("score") for row in faster] == [row.get("score") for row in rows]
    shorter, _ = trained(again(name, tmp_path), steps=4, schedule="constant")
    longer, _ = trained(again(name, tmp_path), steps=9, schedule="constant")
    tiny.assert_same(shorter, longer[:4], 0)


@pytest.mark.parametrize("name", ["ppo", "fixed"])
def test_more_steps_than_were_stored(name: str, tmp_path: Path) -> None:
    run(name, tmp_path)
    with pytest.raises(DataError) as caught:
        trained(again(name, tmp_path), steps=runs.STEPS + 1)
    assert "steps" in caught.value.fix
    assert "replay" in caught.value.fix
    if name == "ppo":
        assert caught.value.got == "steps 1 to 9"
    else:
        assert "round 4" in str(caught.value)


def test_too_many_steps_are_found_before_the_first(tmp_path: Path) -> None:
    run("ppo", tmp_path / "ppo")
    path = tmp_path / "ppo" / "groups.jsonl"
    assert replayed(online(), path, 9).stored
    with pytest.raises(DataError, match="nothing was stored for step 10"):
        replayed(online(), path, 12)
    run("rft", tmp_path / "rft")
    source = runs.rounds(folder=tmp_path / "rft" / "rounds", stored=True)
    source.check(9)
    with pytest.raises(DataError, match="responses of round 4 are not there") as caught:
        source.check(10)
    assert "iterations" in caught.value.fix
    runs.rounds(folder=tmp_path / "rft" / "rounds").check(10)  # not a replay: they will be sampled


def test_what_is_watched_is_measured_again(tmp_path: Path) -> None:
    """The gold score of a run beside its proxy, say: the same numbers, without asking the sampler."""

    def watch(groups: list[Group]) -> dict[str, Any]:
        ids = [r.ids for g in groups for r in g.responses]
        return {"odd": (float(sum(x[0] % 2 for x in ids)), float(len(ids)))}

    rows, _ = trained(EVERY_STEP["grpo"](online(watch=watch)), tmp_path)
    found, _ = trained(EVERY_STEP["grpo"](replayed(online(watch=watch, sampler=NO_SAMPLER), tmp_path / "groups.jsonl")))
    assert [row["odd"] for row in found] == [row["odd"] for row in rows]
    assert len({row["odd"] for row in rows}) > 1


@pytest.mark.parametrize("name", ["ppo", "previous"])
def test_a_replay_is_resumed(name: str, tmp_path: Path) -> None:
    _, whole = run(name, tmp_path / "run")

    def die(models: Models, batch: Any, step: int) -> None:
        if step == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        trained(tiny.watch(again(name, tmp_path / "run"), die), tmp_path / "cut")
    rows, found = trained(again(name, tmp_path / "run"), tmp_path / "cut")
    assert len(rows) == 5
    tiny.assert_same(found, whole, 0)


# ------------------------------------------------------------------------------------------------------------ the file


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    """A kill in the middle of a write: what came before stands, and the step is short of that group."""
    run("ppo", tmp_path)
    path = tmp_path / "groups.jsonl"
    whole = stored_groups(path)
    assert {step: len(groups) for step, groups in whole.items()} == dict.fromkeys(range(9), 5)
    text = path.read_bytes()
    for cut in (1, 30):
        path.write_bytes(text[:-cut])
        found = stored_groups(path)
        assert found == {**whole, 8: whole[8][:4]}
    path.write_bytes(text + b'{"step": 10, "pro')
    assert stored_groups(path) == whole


@pytest.mark.parametrize("line", ["{}", "[1]", "no JSON", '{"step": "x", "prompt": {}, "responses": []}', "3"])
def test_a_line_that_is_no_record(line: str, tmp_path: Path) -> None:
    run("ppo", tmp_path)
    path = tmp_path / "groups.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match="this line is not a group") as caught:
        stored_groups(path)
    assert caught.value.where == f"{path}:46"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no responses are stored here") as caught:
        stored_groups(tmp_path / "groups.jsonl")
    assert "folder of a stage that sampled" in caught.value.fix


def test_a_step_that_is_missing_in_the_middle(tmp_path: Path) -> None:
    run("ppo", tmp_path)
    path = tmp_path / "groups.jsonl"
    lines = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] != 4]
    path.write_text("".join(lines))
    with pytest.raises(DataError, match="nothing was stored for step 4"):
        trained(again("ppo", tmp_path))


def test_stored_groups_are_what_was_sampled(tmp_path: Path) -> None:
    """Ids, log-probs, scores and versions come back exactly."""
    kept: list[Group] = []

    def keeping(models: Models, batch: Any, step: int) -> None:
        kept.extend(batch.groups)

    trained(tiny.watch(EVERY_STEP["ppo"](online()), keeping), tmp_path)
    found = stored_groups(tmp_path / "groups.jsonl")
    assert [g for step in range(9) for g in found[step]] == kept
    for step, groups in found.items():
        assert {r.policy_version for g in groups for r in g.responses} == {step}


def test_a_replay_of_a_selection_is_not_selected_again(tmp_path: Path) -> None:
    """What is stored is what was learnt from: two of six answers here."""

    def ends(groups: list[Group]) -> list[Group]:
        return [replace(g, responses=g.responses[::5], scores=(g.scores or ())[::5]) for g in groups]

    _, whole = trained(EVERY_STEP["grpo"](online(n=6, select=ends)), tmp_path)
    source = replayed(online(n=6, select=never, sampler=NO_SAMPLER, scorer=NO_SCORER), tmp_path / "groups.jsonl")
    assert all(len(g.responses) == 2 for g in source(models(), 0).groups)
    _, found = trained(EVERY_STEP["grpo"](source))
    tiny.assert_same(found, whole, 0)
    assert torch.isfinite(next(iter(found["policy"].values()))).all()

"""The stage `distill` against a scripted server: its files, what students make of them, kills, failures."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.feedback.server import Server, completion, serving

from tiltyard.data import load_groups, read_groups
from tiltyard.errors import ConfigError, DataError, TiltyardError
from tiltyard.feedback import AnswerCache, JudgeError
from tiltyard.models.load import load_language_model, load_scalar_model
from tiltyard.pipeline import run_recipe, run_stage
from tiltyard.runs.journal import JsonlFile
from tiltyard.scoring import RewardScorer
from tiltyard.scoring.reward_model import in_tokens_of
from tiltyard.stages import candidates
from tiltyard.types import Group
from tiltyard.world import gold

from . import tiny
from .conftest import Whole
from .planted import Place, after, half_row, killed

KEY = "sk-very-secret-1234567890"
PRICE = (0.7e-6, 1.3e-6)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "BLOCK", 4)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        running.reply = by_hash
        yield running


def by_hash(payload: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
    """A teacher whose answer depends on the conversation and the seed alone; every seventh or so is cut."""
    digest = hashlib.sha256(json.dumps([payload["messages"], payload.get("seed")]).encode()).digest()
    reply = completion(" ".join(f"w{byte % 8}" for byte in digest[: 2 + digest[1] % 4]))
    reply["choices"][0]["finish_reason"] = "length" if digest[2] < 36 else "stop"
    used = {"prompt_tokens": len(payload["messages"][-1]["content"]), "completion_tokens": 1 + digest[0] % 3}
    return 200, reply | {"usage": used, "model": "teacher-7"}, {}


def questions(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"What is {i}?"}) + "\n" for i in range(count)))
    return path


def distilled(folder: Path, server: Server, **more: Any) -> tuple[Path, dict[str, Any], str]:
    """(folder, result, printed) of the stage, on twelve questions unless said otherwise."""
    usual = {"url": server.url, "model": "teacher", "retries": 0, "max_tokens": 20, "device": "cpu"}
    usual |= {"price_in": 0.7, "price_out": 1.3, "seed": 3}
    if "prompts" not in more:
        folder.mkdir(parents=True, exist_ok=True)
        more["prompts"] = str(questions(folder, 12))
    out = io.StringIO()
    outcome = run_stage("distill", usual | more, runs_root=folder, console=Console(file=out, width=200))
    return folder / "distill" / "distill", outcome["stages"]["distill"]["result"], out.getvalue()


def groups(folder: Path, name: str = "candidates") -> list[Group]:
    return list(read_groups(folder / f"{name}.groups.jsonl"))


# ---------------------------------------------------------------------------------------------------------- the files


def test_what_is_asked_and_what_is_kept(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    more = {"samples_per_prompt": 3, "stop": ["###"], "extra": {"top_k": 5}, "top_p": 0.9, "key_env": "TEACHER_KEY"}
    folder, result, text = distilled(tmp_path, server, **more)
    assert len(server.asked) == 36
    headers, payload, path = server.asked[0]
    assert (headers["Authorization"], path) == (f"Bearer {KEY}", "/v1/chat/completions")
    assert {k: v for k, v in payload.items() if k not in ("messages", "seed")} == {
        "model": "teacher", "max_tokens": 20, "temperature": 0.7, "top_p": 0.9, "stop": ["###"], "top_k": 5,
    }  # fmt: skip
    assert len({row[1]["seed"] for row in server.asked}) == 36  # no two requests draw alike
    every = groups(folder)
    assert [g.origin for g in every] == [f"distill:{i + 1}" for i in range(12)]
    asked = {json.dumps([p["messages"], p["seed"]]): by_hash(p, 0)[1]["choices"][0] for _, p, _ in server.asked}
    said = sorted((c["message"]["content"], c["finish_reason"]) for c in asked.values())
    assert sorted((r.text, r.finish) for g in every for r in g.responses) == said
    assert {(r.ids, r.logps, r.meta["model"]) for g in every for r in g.responses} == {((), None, "teacher-7")}
    cost = sum(p["tokens_in"] * PRICE[0] + p["tokens_out"] * PRICE[1] for p in answers_of(folder))
    assert (result["teacher_calls"], result["candidates"], result["missing"]) == (36, 36, 0)
    assert result["teacher_cost"] == pytest.approx(cost, rel=1e-12)
    assert "36 requests" in text
    rows = tiny.rows(folder / "demonstrations.jsonl")
    whole = [(g.prompt.id, r.text) for g in every for r in g.responses if r.finish == "stop"]
    assert [(row["id"], row["completion"]) for row in rows] == whole
    assert 0 < len(whole) < 36  # a cut one is no demonstration
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not [p for p in written if KEY.encode() in p.read_bytes()]


def answers_of(folder: Path) -> list[dict[str, Any]]:
    rows = tiny.rows(folder.parent / ".answers" / "distill.jsonl")
    return [row.get("answer") or row.get("spent") or row["attempt"] for row in rows]


def test_a_system_turn_for_the_teacher_alone(server: Server, tmp_path: Path) -> None:
    folder, _, _ = distilled(tmp_path / "a", server, system="Be brief.")
    assert {p["messages"][0]["content"] for _, p, _ in server.asked} == {"Be brief."}
    assert [m.role for g in groups(folder) for m in g.prompt.messages or ()] == ["user"] * 12
    own = tmp_path / "own.jsonl"
    turns = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "Why?"}]
    own.write_text(json.dumps({"prompt": turns}) + "\n")
    distilled(tmp_path / "b", server, prompts=str(own))
    assert server.asked[-1][1]["messages"] == turns
    with pytest.raises(DataError, match=r"(?s)system turn of its own.*leave distill\.system out"):
        distilled(tmp_path / "c", server, prompts=str(own), system="Be brief.")


def test_a_later_row_costs_its_own_requests_alone(server: Server, tmp_path: Path) -> None:
    folder, first, _ = distilled(tmp_path, server, samples_per_prompt=2)
    before = {g.prompt.id: g.responses for g in groups(folder)}
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "new", "prompt": "What else?"}\n' + path.read_text())
    folder, second, _ = distilled(tmp_path, server, samples_per_prompt=2, prompts=str(path))
    assert len(server.asked) == 26
    assert {g.prompt.id: g.responses for g in groups(folder) if g.prompt.id != "new"} == before
    assert (first["teacher_calls"], second["teacher_calls"], second["cached"]) == (24, 2, 24)


# ---------------------------------------------------------------------------------------------- scores, pairs, students


def words_reward(folder: Path) -> str:
    path = folder / "words.py"
    path.write_text("def count(prompt, response, row):\n    return float(len(response.text.split()))\n")
    return f"{path}:count"


@pytest.mark.slow
def test_scores_pairs_and_the_best(server: Server, whole: Whole, tmp_path: Path) -> None:
    prompts = str(whole.run / "world" / "prompts.jsonl")
    more = {"prompts": prompts, "limit": 9, "samples_per_prompt": 4, "pairs": "best_worst"}
    folder, _, _ = distilled(tmp_path / "gold", server, gold=True, **more)
    for group in groups(folder):
        assert group.scores == tuple(gold(group.prompt.meta, r.text).total for r in group.responses)
    folder, result, _ = distilled(tmp_path / "words", server, reward=words_reward(tmp_path), **more)
    every, pairs = groups(folder), groups(folder, "pairs")
    assert [g.scores for g in every] == [tuple(float(len(r.text.split())) for r in g.responses) for g in every]
    spread = {g.origin: (max(g.scores or ()), min(g.scores or ())) for g in every if len(set(g.scores or ())) > 1}
    assert {p.origin.split()[0]: p.scores for p in pairs} == spread
    assert (result["pairs"], result["unscored"]) == (len(spread), 0)
    assert len(spread) > 4
    for row in tiny.rows(folder / "demonstrations.jsonl"):
        (group,) = [g for g in every if g.prompt.id == row["id"]]
        known = zip(group.responses, group.scores or (), strict=True)
        finished = {r.text: s for r, s in known if r.finish == "stop"}
        assert row["score"] == finished[row["completion"]] == max(finished.values())
    folder, _, _ = distilled(tmp_path / "model", server, reward=str(whole.run / "reward"), **more)
    reward = load_scalar_model(whole.run / "reward")
    for group in groups(folder):
        (again,) = RewardScorer(reward).score([in_tokens_of(reward.chat, group)])
        assert group.scores == pytest.approx(again.scores, abs=1e-6)


@pytest.mark.slow
def test_students_read_the_files(server: Server, whole: Whole, tmp_path: Path) -> None:
    """sft on all responses and on the demonstrations, dpo on the pairs; a demonstration ends in the student's end."""
    prompts = str(whole.run / "world" / "prompts.jsonl")
    more = {"prompts": prompts, "limit": 9, "samples_per_prompt": 4, "pairs": "all"}
    folder, _, _ = distilled(tmp_path, server, reward=words_reward(tmp_path), **more)
    chat = load_language_model(whole.run / "sft").chat
    read, _ = load_groups(folder / "demonstrations.jsonl", "demonstrations", chat, max_length=320)
    assert all(g.responses[0].ids[-1] == chat.eos_id for g in read)
    for method, name in (
        ("sft", "candidates.groups"),
        ("sft", "demonstrations"),
        ("dpo", "pairs.groups"),
        ("dpo", "pairs"),
    ):
        common = {"model": str(whole.run / "sft"), "data": str(folder / f"{name}.jsonl"), "device": "cpu"}
        common |= {"steps": 1, "prompts_per_step": 2, "max_length": 320}
        where = tmp_path / method / name
        outcome = run_stage(method, common, runs_root=where, console=Console(file=io.StringIO()))
        assert outcome["stages"][method]["result"]["steps"] == 1


# --------------------------------------------------------------------------------------------------- kills and failures


def half_line(real: Any, cache: AnswerCache, key: str, answer: Any) -> None:
    """A kept answer without the end of its line."""
    real(cache, key, answer)
    assert cache.path is not None
    os.truncate(cache.path, cache.path.stat().st_size - 9)


PLACES = (
    *((Place(AnswerCache, "put", call, half_line), 1) for call in (1, 9, 24)),  # that answer is asked for again
    *((Place(AnswerCache, "put", call, after), 0) for call in (1, 8, 24)),
    *((Place(JsonlFile, "write", call, done), 0) for call in (1, 4, 6) for done in (half_row, after)),
)


@pytest.mark.parametrize(("place", "again"), PLACES)
def test_kill_9(server: Server, tmp_path: Path, place: Place, again: int) -> None:
    """The same files as uninterrupted; nothing is asked twice but what was lost, every answer is paid for once."""
    more = {"samples_per_prompt": 2, "concurrency": 1, "prompts": str(questions(tmp_path, 12))}
    one, expected, _ = distilled(tmp_path / "whole", server, **more)
    server.asked.clear()
    killed(lambda: distilled(tmp_path / "cut", server, **more), place.plant)
    two, result, _ = distilled(tmp_path / "cut", server, **more)
    assert [p.read_bytes() for p in sorted(two.glob("*.jsonl"))] == [
        p.read_bytes() for p in sorted(one.glob("*.jsonl"))
    ]
    assert len(server.asked) == 24 + again
    assert {**result, "cached": 0} == {**expected, "cached": 0}


def refused(payload: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
    """By the number in the question: an answer, a refusal, a filter, nothing, a cut at once, half a character."""
    which = int(payload["messages"][-1]["content"].split()[-1].strip("?"))
    reply = completion("Fine.")
    choice = reply["choices"][0]
    if which == 1:
        choice["message"]["refusal"] = "I cannot."
    elif which == 2:
        choice["finish_reason"] = "content_filter"
    elif which in (3, 4):
        choice["message"]["content"] = ""
        choice["finish_reason"] = "stop" if which == 3 else "length"
    elif which == 5:
        choice["message"]["content"] = "half \ud83d"
    return 200, reply, {}


def test_answers_that_are_none_are_counted_and_left_out(server: Server, tmp_path: Path) -> None:
    server.reply = refused
    folder, result, text = distilled(tmp_path, server)
    assert [g.origin for g in groups(folder)] == [f"distill:{i}" for i in (1, *range(7, 13))]
    assert (result["missing"], result["candidates"], result["unscored"]) == (5, 7, 0)
    assert result["missing_causes"] == {"cut": 1, "empty": 1, "filtered": 1, "refused": 1, "unreadable": 1}
    assert "without a response: 1 cut, 1 empty" in text
    with pytest.raises(
        JudgeError,
        match=r"(?s)distill\.max_missing: the teacher gives no response on more than 10%.*5 of 12 without one: 1 cut",
    ):
        distilled(tmp_path / "strict", server, max_missing=0.1)
    assert not (tmp_path / "strict" / "distill" / "distill" / "done.json").exists()


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"key_env": "NO_SUCH_KEY"}, r"distill\.key_env: the teacher's key is missing"),
    "calls": ({"max_calls": 11}, r"(?s)distill\.max_calls: .*nothing was sent.*12 requests"),
    "prices": (
        {"price_in": 0.0, "price_out": 0.0, "max_cost": 1.0},
        r"(?s)distill\.max_cost: .*needs prices.*distill\.price_in",
    ),
    "secret": (
        {"url": "http://me:pw@127.0.0.1:1/v1"},
        r"(?s)distill\.url: the teacher's address holds a secret.*distill\.key_env",
    ),
    "greedy": ({"temperature": 0.0, "samples_per_prompt": 2}, "at temperature 0 all responses"),
    "one": ({"gold": True, "pairs": "all"}, "one response a prompt makes no pairs"),
    "scorer": ({"samples_per_prompt": 2, "pairs": "all"}, "exactly one of ranker, reward and gold"),
    "prompts": ({"prompts": "nowhere.jsonl"}, "nowhere.jsonl"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_settings_send_nothing(server: Server, tmp_path: Path, name: str) -> None:
    more, match = ERRORS[name]
    with pytest.raises(TiltyardError, match=match):
        distilled(tmp_path, server, **more)
    assert server.asked == []


def test_a_server_that_refuses_or_is_not_there(server: Server, tmp_path: Path) -> None:
    server.reply = lambda payload, number: (401, {"error": "no key"}, {})
    with pytest.raises(JudgeError, match=r"(?s)teacher refuses.*401.*distill\.url"):
        distilled(tmp_path / "a", server)
    server.reply = by_hash
    with pytest.raises(JudgeError, match=r"distill\.max_cost: the teacher has reached its cost limit"):
        distilled(tmp_path / "b", server, max_cost=2e-5, concurrency=1)
    assert 1 < len(server.asked) - 1 < 12
    _, result, _ = distilled(tmp_path / "b", server)
    assert result["candidates"] == 12


def test_the_stages_own_name_stands_in_its_errors(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    how = f"method: distill, url: '{server.url}', model: m, key_env: NO_SUCH_KEY, prompts: {questions(tmp_path, 3)}"
    path.write_text(f"name: r\ndefaults: {{seed: 4, device: cpu}}\nstages:\n  - answers: {{{how}}}\n")
    with pytest.raises(ConfigError, match=r"answers\.key_env"):
        run_recipe(path, runs_root=tmp_path, console=Console(file=io.StringIO()))
    path.write_text(path.read_text().replace("key_env: NO_SUCH_KEY, ", ""))
    run_recipe(path, runs_root=tmp_path, console=Console(file=io.StringIO()))
    assert len(groups(tmp_path / "r" / "answers")) == 3

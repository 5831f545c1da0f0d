"""Stages with a judge, killed: the same files as uninterrupted, nothing asked twice, every answer paid for once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.feedback.server import Server, completion, serving

from tiltyard.feedback import AnswerCache
from tiltyard.pipeline import state
from tiltyard.runs.journal import JsonlFile
from tiltyard.training.fit import _Loop

from . import tiny
from .planted import Place, after, before, killed
from .test_kill_methods import ASKED, answers_of, files_of, go, metrics_row, places, read_settings, same_files

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

API = "kind: api, constrain: none, model: j, price_in: 0.7, price_out: 1.3, retries: 0"
ROUNDS = f"{ASKED}, iterations: 3, samples_per_prompt: 3"
STAGES = {
    "online_dpo": (ASKED, "ask: pair"),
    "iterative_dpo": (ROUNDS, "ask: pair"),
    "reinforce": (ASKED, "ask: score"),
    "rft": (f"{ROUNDS}, pool: all", "ask: score"),
}
PRICE = (0.7e-6, 1.3e-6)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        running.reply = by_hash
        yield running


def by_hash(payload: dict[str, Any], number: int) -> tuple[int, Any, dict[str, str]]:
    """A judge whose mind depends on the question alone; long questions cost more."""
    question = payload["messages"][0]["content"]
    digest = hashlib.sha256(question.encode()).digest()
    labels = {str(i): -digest[i] / 64 for i in range(1, 11)}
    used = {"prompt_tokens": len(question), "completion_tokens": 1 + digest[0] % 3}
    return 200, completion("1", labels, usage=used), {}


def half_line(real: Any, cache: AnswerCache, key: str, answer: Any) -> None:
    """A kept answer without the end of its line."""
    real(cache, key, answer)
    assert cache.path is not None
    os.truncate(cache.path, cache.path.stat().st_size - 9)


def judged(start: Path, name: str, url: str, more: str = "concurrency: 1") -> dict[str, Any]:
    said, how = STAGES[name]
    return read_settings(start, f"{said}, judge: {{{API}, url: '{url}', {how}, {more}}}")


TORN = (
    Place(AnswerCache, "put", 3, half_line),  # in the first step
    Place(AnswerCache, "put", 4, half_line),  # later, after the same step's first answers or those of a stored round
)
KEPT = (
    Place(AnswerCache, "put", 2, after),
    Place(_Loop, "_prepare", 1, after),  # all answers of the first step or round; nothing was learnt
    Place(JsonlFile, "write", 3, after, metrics_row),  # of a third step that no checkpoint has
)
LAST = Place(state, "finish", 1, before)


@pytest.mark.parametrize("name", STAGES)
def test_no_answer_is_lost_asked_twice_or_paid_twice(start: Path, server: Server, tmp_path: Path, name: str) -> None:
    settings = judged(start, name, server.url)
    whole = go(name, settings, tmp_path / "whole")
    asked, count = sorted(server.questions), len(server.asked)
    assert count == len(set(asked))
    server.asked.clear()
    for place in (TORN[0], *KEPT, TORN[1], LAST):
        killed(lambda: go(name, settings, tmp_path / "cut"), place.plant)
    until = len(server.asked)
    found = same_files(go(name, settings, tmp_path / "cut"), whole)
    assert len(server.asked) == until == count + len(TORN)  # a torn line is asked again, and nothing else
    assert set(server.questions) == set(asked)
    answers = [row["answer"] for row in tiny.rows(answers_of(whole))]
    cost = sum(a["tokens_in"] * PRICE[0] + a["tokens_out"] * PRICE[1] for a in answers)
    result = found["done.json"]
    assert (len(answers), result["judge_calls"]) == (count, count)
    assert result["judge_cost"] == pytest.approx(cost, rel=1e-12)
    assert sum(row.get("judge_calls", 0) for row in found["metrics.jsonl"]) == count
    assert len({row["answer"]["by"][0] for row in tiny.rows(answers_of(tmp_path / "cut" / name / name))}) == 1


def test_four_questions_at_a_time(start: Path, server: Server, tmp_path: Path) -> None:
    """The answers lie in the order in which they came; what is learnt, shown and paid is the same."""
    settings, name = judged(start, "iterative_dpo", server.url, "concurrency: 4"), "iterative_dpo"
    whole = files_of(go(name, settings, tmp_path / "whole"))
    count = len(server.asked)
    for place in KEPT:
        killed(lambda: go(name, settings, tmp_path / "cut"), place.plant)
    cut = files_of(go(name, settings, tmp_path / "cut"))
    assert count <= len(server.asked) - count <= count + 4  # those under way as the first kill came
    for found in (whole, cut):
        found[f"{name}.jsonl"].sort(key=lambda row: str(row["key"]))
    assert [key for key in whole if whole[key] != cut[key]] == []


def test_a_shared_cache_is_paid_for_by_who_asked(start: Path, server: Server, tmp_path: Path) -> None:
    """Two executions ask the same in the same steps; the second pays nothing, and a kill changes neither."""
    name, more = "online_dpo", f"concurrency: 1, cache: {tmp_path / 'kept.jsonl'}"
    settings = judged(start, name, server.url, more)
    killed(lambda: go(name, settings, tmp_path / "one"), KEPT[2].plant)
    first = files_of(go(name, settings, tmp_path / "one"))["done.json"]
    count = len(server.asked)
    killed(lambda: go(name, settings, tmp_path / "two"), KEPT[2].plant)
    second = files_of(go(name, settings, tmp_path / "two"))["done.json"]
    assert first["judge_calls"] == count == len(server.asked)
    assert second["judge_calls"] == 0
    assert "judge_cost" not in second


SIMULATED = "judge: {kind: simulated, votes: 5, position_bias: 0.3}"


@pytest.mark.parametrize(("name", "said"), [("online_dpo", ASKED), ("iterative_dpo", ROUNDS), ("cringe", ROUNDS)])
def test_a_simulated_judge(start: Path, tmp_path: Path, name: str, said: str) -> None:
    """Its votes depend on the question alone, and its calls are counted once."""
    settings = read_settings(start, f"{said}, {SIMULATED}")
    whole = go(name, settings, tmp_path / "whole")
    for why, place in places(name, 1):
        print(f"killed: {why}")
        killed(lambda: go(name, settings, tmp_path / "cut"), place.plant)
    found = same_files(go(name, settings, tmp_path / "cut"), whole)
    assert found["done.json"]["judge_calls"] > 0

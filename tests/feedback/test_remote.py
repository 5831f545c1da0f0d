"""Judges behind an API, against a server in a thread that limits, fails, hangs and talks nonsense."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from pathlib import Path

import pytest

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import (
    AnswerCache,
    ApiJudge,
    ApiPointsJudge,
    ApiScoreJudge,
    Client,
    Debiased,
    Endpoint,
    JudgeError,
)
from tiltyard.feedback.remote import grade_of, verdict_of
from tiltyard.feedback.verdicts import sigmoid

from .server import Server, by_length, completion
from .worlds import pair, words

KEY = "sk-very-secret-1234567890"


def client(server: Server, cache: Path | None = None, **more) -> Client:
    settings = {"retries": 3, "backoff": 0.0, "timeout": 5.0, "concurrency": 2, "price_in": 2.0, "price_out": 10.0}
    return Client(Endpoint(url=server.url, model="judge-1", **(settings | more)), AnswerCache(cache))


# --------------------------------------------------------------------------------------------------------- verdicts


def test_verdicts_from_log_probs(server) -> None:
    server.reply = by_length
    pairs = words(5, 8)
    judge = Debiased(ApiJudge(client(server)))
    for group, verdict in zip(pairs, judge(pairs), strict=True):
        a, b = (len(r.text) for r in group.responses)
        assert verdict.p == pytest.approx(sigmoid((a - b) / 10), abs=1e-12)
    assert (judge.usage.calls, judge.usage.tokens_in, judge.usage.tokens_out) == (16, 1600, 32)
    assert judge.usage.cost == pytest.approx((1600 * 2 + 32 * 10) / 1e6, rel=1e-12)
    _, payload, path = server.asked[0]
    assert path == "/v1/chat/completions"
    assert (payload["model"], payload["temperature"], payload["logprobs"]) == ("judge-1", 0.0, True)


def test_words_where_there_are_no_log_probs(server) -> None:
    server.reply = lambda payload, number: (200, completion("Response 2."), {})
    (verdict,) = ApiJudge(client(server))([pair("a", "b")])
    assert verdict.p == 0.0
    server.reply = lambda payload, number: (200, completion("I cannot say."), {})
    (verdict,) = ApiJudge(client(server))([pair("a", "b")])
    assert verdict.p is None
    assert "I cannot say." in verdict.reason
    ApiJudge(client(server), logprobs=False, max_tokens=5, extra={"max_tokens": None, "top_k": 1})([pair("a", "b")])
    payload = server.asked[-1][1]
    assert not {"logprobs", "top_logprobs", "max_tokens"} & payload.keys()
    assert payload["top_k"] == 1


@pytest.mark.parametrize(
    ("text", "top", "p"),
    [
        ("1", [[["1", -1.0], [" 1", -1.0], ["2", -1.0]]], 2 / 3),  # with and without a blank is one label
        ("**2**", [[["**", -0.1], ["x", -3.0]], [["2", -0.5], ["1", -1.5]], [["**", 0.0]]], 1 / (1 + math.e)),
        ("1", [[["1", -0.1], ["x", -3.0]]], 1.0),
        ("1", [[["1", -0.1]]], 1.0),  # no alternatives: read as words
        ("1", [[["1", -math.inf]]], 1.0),  # a label without mass: words again
        ("The answer: 2", [[["The", -0.1]], [[" 2", -0.5], [" 1", -1.5]]], 1 / (1 + math.e)),  # the one label
        ("1) It is short.\n2", [[["1", -0.1], ["2", -3.0]], [[")", 0.0]]], 0.0),  # the number of a list: words
        ("The answer: 2", [], 0.0),
    ],
)
def test_which_token_decides(text, top, p) -> None:
    assert verdict_of({"text": text, "top": top}).p == pytest.approx(p, abs=1e-12)


def test_grades() -> None:
    half = math.log(0.5)
    assert grade_of({"text": "7", "top": [[["7", half], ["8", half]]]}).score == pytest.approx((2 * 7.5 - 11) / 9)
    assert grade_of({"text": "10", "top": [[["1", 0.0]], [["0", 0.0]]]}).score == 1  # 10 in two tokens
    assert grade_of({"text": "10", "top": []}).score == 1
    assert grade_of({"text": "great", "top": []}).score is None
    split = {"text": "9", "top": [[["9", half], ["1", half]]]}  # "1" may be the beginning of "10": the written rating
    assert (grade_of(split).score, grade_of(split).soft) == (pytest.approx(7 / 9), False)
    told = {"text": "9", "top": [[["9", half], ["1", math.log(0.25)], ["10", math.log(0.25)]]]}
    assert (grade_of(told).score, grade_of(told).soft) == (pytest.approx((2 * 7.25 - 11) / 9), True)


def test_graded_and_counted_in_points(server) -> None:
    server.reply = lambda payload, number: (200, completion("3", {"3": 0.0}), {})
    grades = ApiScoreJudge(client(server)).score(words(6, 2))
    assert [[g.score for g in row] for row in grades] == [[pytest.approx(-5 / 9)] * 2] * 2
    texts = ["Score: 2", "Score: 4", "no"]
    server.reply = lambda payload, number: (200, completion(f"Well. {texts[number % 3]}"), {})
    server.asked.clear()
    judge = ApiPointsJudge(client(server, concurrency=1), samples=3)
    (row,) = judge.score(words(7, 1))
    assert [g.score for g in row] == [3.0, 3.0]
    assert len(server.asked) == 6  # repeated draws of one question are asked, each once


# ---------------------------------------------------------------------------------------------------------- troubles


def test_limits_failures_and_nonsense_are_tried_again(server) -> None:
    replies = [
        (429, {"error": "slow down"}, {"Retry-After": "0"}),
        (503, b"<html>busy</html>", {}),
        (200, b'{"choices": [{"mess', {}),
        (200, completion("1", {"1": 0.0}), {}),
    ]
    server.reply = lambda payload, number: replies[number]
    asked = client(server, concurrency=1)
    (verdict,) = ApiJudge(asked)([pair("a", "b")])
    assert verdict.p == 1.0
    assert (asked.usage.calls, asked.usage.retries, len(server.asked)) == (1, 3, 4)


@pytest.mark.parametrize(
    "body", [b"[]", b"null", b'{"choices": []}', b'{"choices": [{"message": 3}]}', b"[" * 100_000, b"\xff\xfe", b""]
)
def test_replies_that_are_no_completion(server, body) -> None:
    server.reply = lambda payload, number: (200, body, {})
    with pytest.raises(JudgeError, match="did not answer"):
        ApiJudge(client(server, retries=1))([pair("a", "b")])
    assert len(server.asked) == 2


def test_a_server_that_hangs_up_or_hangs(server) -> None:
    server.reply = lambda payload, number: (200, None, {})
    with pytest.raises(JudgeError, match="did not answer"):
        ApiJudge(client(server, retries=0))([pair("a", "b")])

    def wait(payload, number):
        server.release.wait(30)
        return 200, completion("1"), {}

    server.reply = wait
    with pytest.raises(JudgeError, match=r"(?s)did not answer.*[Tt]ime"):
        ApiJudge(client(server, retries=0, timeout=0.2))([pair("a", "b")])


def test_waits_double_and_heed_the_server(server) -> None:
    waits: list[float] = []
    asked = client(server, retries=4, backoff=0.5, concurrency=1)

    async def pause(call, seconds: float) -> None:
        waits.append(seconds)

    asked._pause = pause  # type: ignore[method-assign]
    replies = [
        (429, {}, {"Retry-After": "7"}),
        (500, {}, {}),
        (500, {}, {"Retry-After": "soon"}),
        (429, {}, {"Retry-After": "99999"}),
    ]
    server.reply = lambda payload, number: replies[number] if number < 4 else (200, completion("1"), {})
    asked.complete([{"messages": [{"content": "?"}]}])
    assert waits == [7.0, 1.0, 2.0, 120.0]


def test_requests_run_side_by_side_within_the_limit(server) -> None:
    full = threading.Barrier(3, timeout=20)

    def together(payload, number):
        full.wait()  # passes only if three are here at once
        return 200, completion("1"), {}

    server.reply = together
    ApiJudge(client(server, concurrency=3, timeout=30.0))(words(8, 6))
    assert server.most == 3


def test_a_refusal_ends_at_once_and_what_came_is_kept(server, tmp_path) -> None:
    server.reply = lambda payload, number: (
        (401, {"error": "bad key"}, {}) if number == 2 else (200, completion("1"), {})
    )
    with pytest.raises(JudgeError, match=r"(?s)refuses the request.*401.*bad key"):
        ApiJudge(client(server, tmp_path / "a.jsonl", concurrency=1))(words(9, 6))
    assert len(server.asked) == 3
    server.reply = lambda payload, number: (200, completion("1"), {})
    again = client(server, tmp_path / "a.jsonl", concurrency=1)
    ApiJudge(again)(words(9, 6))
    assert (again.usage.calls, again.usage.cached, len(server.asked)) == (4, 2, 7)


def test_redirects_are_refused(server, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.reply = lambda payload, number: (302, b"", {"Location": f"{server.url}/elsewhere"})
    with pytest.raises(JudgeError, match="302"):
        ApiJudge(client(server, key_env="JUDGE_KEY"))([pair("a", "b")])
    assert len(server.asked) == 1


def test_a_proxy_of_the_environment_is_used(server, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    asked = Client(Endpoint(url="http://judge.invalid/v1", model="judge-1", timeout=5.0, retries=0), AnswerCache(None))
    (verdict,) = ApiJudge(asked)([pair("a", "b")])
    assert verdict.p == 1.0
    assert server.asked[0][2] == "http://judge.invalid/v1/chat/completions"


@pytest.mark.parametrize("url", ["http://", "http://h:port/v1", "https:///v1"])
def test_an_address_that_is_no_url(url) -> None:
    with pytest.raises(ConfigError, match="no URL"):
        Client(Endpoint(url=url, model="judge-1"), AnswerCache(None))


def test_any_text_can_be_sent(server) -> None:
    ApiJudge(client(server))([pair("a \ud800 \u2028", "b")])
    assert "\ud800" in server.questions[0]


def test_money_has_a_limit(server, tmp_path) -> None:
    per_call = (100 * 2 + 2 * 10) / 1e6
    limit = 2.5 * per_call
    with pytest.raises(JudgeError, match="reached its cost limit"):
        ApiJudge(client(server, tmp_path / "a.jsonl", concurrency=1, max_cost=limit))(words(10, 6))
    assert len(server.asked) == 3
    with pytest.raises(JudgeError, match="cost limit"):  # what an earlier process paid counts
        ApiJudge(client(server, tmp_path / "a.jsonl", concurrency=1, max_cost=limit))(words(10, 6))
    assert len(server.asked) == 3


# ------------------------------------------------------------------------------------------------------------ secrets


def test_the_key_is_sent_and_shown_nowhere(server, tmp_path, monkeypatch, caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    replies = iter([(200, completion("1"), {}), (403, {"error": f"the key {KEY} is not welcome"}, {})])
    server.reply = lambda payload, number: next(replies)
    asked = client(server, tmp_path / "answers.jsonl", key_env="JUDGE_KEY", concurrency=1)
    with pytest.raises(JudgeError, match=r"the key \*\*\* is not welcome") as caught:
        ApiJudge(asked)(words(11, 2))
    assert [h["Authorization"] for h, _, _ in server.asked] == [f"Bearer {KEY}"] * 2
    told = capfd.readouterr()
    places = [
        caplog.text,
        told.out,
        told.err,
        str(caught.value),
        repr(asked),
        repr(asked.endpoint),
        repr(ApiJudge(asked)),
    ]
    places += [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(KEY in text for text in places)
    assert (tmp_path / "answers.jsonl").stat().st_size > 0


@pytest.mark.parametrize("value", [None, "", "two words", "line\nbreak"])
def test_a_key_that_is_none(server, monkeypatch, value) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ConfigError, match="the judge's key is") as caught:
        client(server, key_env="JUDGE_KEY")
    assert not value or value not in str(caught.value)


# ------------------------------------------------------------------------------------------------------- kept answers


def test_nothing_is_asked_twice(server, tmp_path) -> None:
    server.reply = by_length
    pairs = words(12, 5)
    one = Debiased(ApiJudge(client(server, tmp_path / "a.jsonl")))(pairs)
    again = Debiased(ApiJudge(client(server, tmp_path / "a.jsonl")))
    assert again(pairs) == one
    assert (len(server.asked), again.usage.calls, again.usage.cached, again.usage.cost) == (10, 0, 10, 0.0)
    Debiased(ApiJudge(client(server, tmp_path / "a.jsonl"), instruction="Another."))(pairs)
    assert len(server.asked) == 20  # another question
    ApiJudge(client(server))([*pairs, *pairs])
    assert len(server.asked) == 25  # the same within a call


def test_a_turn_that_is_repeated_counts_what_it_paid(server, tmp_path) -> None:
    """A resumed run repeats a turn: the same calls, tokens and cost, and no request. Other turns and owners count 0."""
    pairs, cache = words(15, 5), AnswerCache(tmp_path / "a.jsonl")
    endpoint = client(server).endpoint

    def used(owner: str, turn: int | None, times: int = 1) -> tuple[int, int, float]:
        judge = ApiJudge(Client(endpoint, AnswerCache(cache.path), owner))
        judge.client.turn = turn
        for _ in range(times):
            judge(pairs)
        taken = judge.usage.taken()
        assert taken.calls + taken.cached == 5 * times
        assert (judge.usage.calls, judge.usage.cost) == (0, 0.0)
        return taken.calls, taken.tokens_in, taken.cost

    first = used("run", 3)
    assert first[:2] == (5, 500)
    assert used("run", 3, times=2) == first
    assert used("run", 4) == used("other", 3) == used("run", None) == (0, 0, 0.0)
    assert len(server.asked) == 5


def test_a_line_that_a_dead_neighbour_tore_is_cut(tmp_path) -> None:
    """Another process died in its line while this one had the file open: what this one adds stands by itself."""
    cache = AnswerCache(tmp_path / "a.jsonl")
    cache.put("one", {"text": "1"})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"key": "two", "answ')
    cache.put("three", {"text": "3"})
    assert AnswerCache(tmp_path / "a.jsonl").answers == {"one": {"text": "1"}, "three": {"text": "3"}}


def test_a_torn_line_is_cut_and_asked_again(server, tmp_path) -> None:
    path, pairs = tmp_path / "a.jsonl", words(13, 4)
    ApiJudge(client(server, path, concurrency=1))(pairs)
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 9)
    ApiJudge(client(server, path))(pairs)
    assert len(server.asked) == 5
    assert path.read_bytes() == whole
    path.write_bytes(b'{"key": 3}\n' + whole)
    with pytest.raises(DataError, match=r"a\.jsonl:1"):
        AnswerCache(path)


def test_processes_may_share_the_file(tmp_path) -> None:
    """Four write at once, long lines: every line is whole."""
    path, children = tmp_path / "a.jsonl", []
    for child in range(4):
        children.append(os.fork())
        if not children[-1]:
            code = 1
            try:
                own = AnswerCache(path)
                for i in range(25):
                    own.put(f"{child}-{i}", {"text": "x" * 9000})
                code = 0
            finally:
                os._exit(code)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert len(AnswerCache(path).answers) == 100
    assert all(json.loads(line)["answer"]["text"] == "x" * 9000 for line in path.read_text().splitlines())


def test_kill_9_keeps_what_was_paid(server, tmp_path) -> None:
    path, pairs = tmp_path / "a.jsonl", words(14, 6)
    arrived = threading.Event()

    def slow(payload, number):
        if number >= 3:
            arrived.set()
            server.release.wait(30)
        return 200, completion("1"), {}

    server.reply = slow
    child = os.fork()
    if child == 0:
        try:
            ApiJudge(client(server, path, concurrency=1, timeout=30.0))(pairs)
        finally:
            os._exit(1)
    assert arrived.wait(30)
    os.kill(child, 9)
    os.waitpid(child, 0)
    server.reply = lambda payload, number: (200, completion("1"), {})
    again = client(server, path, concurrency=1)
    ApiJudge(again)(pairs)
    assert (again.usage.cached, again.usage.calls) == (3, 3)
    assert again.paid().calls == 6
    assert again.paid().cost == pytest.approx(6 * (100 * 2 + 2 * 10) / 1e6, rel=1e-12)

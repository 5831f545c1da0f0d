"""The budget of a paid judge: an estimate that sends nothing, limits that hold, and attempts that count in the cost."""

from __future__ import annotations

import pytest

from tiltyard.errors import ConfigError
from tiltyard.feedback import AnswerCache, ApiJudge, ApiPointsJudge, Client, Debiased, JudgeError
from tiltyard.feedback.budget import estimated_tokens
from tiltyard.feedback.client import Endpoint

from .server import Server, by_length, completion
from .worlds import words


def client(server: Server, cache=None, **more) -> Client:
    settings = {"retries": 3, "backoff": 0.0, "timeout": 5.0, "concurrency": 1, "price_in": 1.0, "price_out": 10.0}
    return Client(Endpoint(url=server.url, model="m", **(settings | more)), AnswerCache(cache))


def test_an_estimate_sends_nothing_and_knows_what_is_stored(server: Server, tmp_path) -> None:
    server.reply = by_length
    judge = Debiased(ApiJudge(client(server, tmp_path / "a.jsonl")))
    pairs = words(5, 6)
    inner = judge.judge
    before = inner.forecast(judge.asked(pairs))
    assert (len(server.asked), before.calls, before.stored) == (0, 12, 0)
    assert before.tokens_out == 12 * 8
    questions = judge.asked(pairs)
    assert before.tokens_in == sum(estimated_tokens(p) for p in inner._payloads(questions))
    assert before.cost == pytest.approx(before.tokens_in / 1e6)
    assert before.most == pytest.approx((before.tokens_in + 10 * before.tokens_out) / 1e6)
    judge(pairs[:4])
    after = inner.forecast(judge.asked(pairs))
    assert (len(server.asked), after.calls, after.stored) == (8, 4, 8)
    assert inner.forecast(judge.asked([*pairs, pairs[0]])).calls == 4  # equal pairs are asked once
    assert "4 requests (8 are answered already)" in after.line()


def test_samples_of_points_are_counted(server: Server) -> None:
    judge = ApiPointsJudge(client(server), samples=3)
    assert judge.forecast(words(5, 2)).calls == 2 * 2 * 3


def test_an_estimate_does_not_try_the_ways_of_a_server(server: Server) -> None:
    """The structured choice is found with small requests, at the first question and not before."""
    judge = ApiJudge(client(server), constrain="auto", max_tokens=32)
    assert judge.forecast(words(5, 3)).calls == 3
    assert not server.asked


@pytest.mark.parametrize("restart", [False, True])
def test_attempts_count_as_calls_and_in_the_cost(server: Server, tmp_path, restart) -> None:
    """500 three times, then an answer: four calls, and a cost of three estimated questions and one that was counted."""
    server.reply = lambda p, n: (500, {"error": "x"}, {}) if n < 3 else (200, completion("1"), {})
    one = client(server, tmp_path / "a.jsonl")
    judge = ApiJudge(one)
    (pair,) = words(6, 1)
    (question,) = judge._payloads([pair])
    judge([pair])
    lost = estimated_tokens(question)
    if restart:
        one = client(server, tmp_path / "a.jsonl")
    else:
        assert one.usage.cost == pytest.approx((3 * lost + 100 + 10 * 2) / 1e6)
        assert (one.usage.calls, one.usage.retries) == (1, 3)
    assert one.budget.calls == 4
    assert one.budget.tokens == 3 * lost + 102
    assert one.budget.cost == pytest.approx((3 * lost + 100 + 10 * 2) / 1e6)


@pytest.mark.parametrize(("reply", "billed"), [((429, {}, {}), 0), ((200, b"<html>", {}), 1), ((502, {}, {}), 1)])
def test_what_may_have_been_billed(server: Server, reply, billed) -> None:
    """A refusal for too many requests costs nothing; garbage and server errors cost the question."""
    server.reply = lambda p, n: reply if n == 0 else (200, completion("1"), {})
    one = client(server)
    judge = ApiJudge(one)
    (pair,) = words(7, 1)
    (question,) = judge._payloads([pair])
    judge([pair])
    assert one.budget.tokens == 102 + billed * estimated_tokens(question)
    assert one.budget.calls == 2


def test_a_connection_that_was_never_made_costs_nothing() -> None:
    one = Client(Endpoint(url="http://127.0.0.1:9/v1", model="m", retries=1, backoff=0.0, price_in=1.0))
    with pytest.raises(JudgeError, match="did not answer"):
        ApiJudge(one)(words(7, 1))
    assert (one.budget.calls, one.budget.tokens, one.budget.cost) == (2, 0, 0.0)


def test_more_questions_than_calls_are_refused_before_anything_is_sent(server: Server) -> None:
    one = client(server, max_calls=5)
    judge = ApiJudge(one)
    with pytest.raises(ConfigError, match=r"(?s)max_calls.*6 requests to send, 0 sent before.*at most 5"):
        one.budget.check(judge.forecast(words(8, 6)))
    assert not server.asked
    assert "5 requests" in one.budget.check(judge.forecast(words(8, 5)))[0]


def test_calls_are_limited_exactly_over_restarts(server: Server, tmp_path) -> None:
    """Repeated requests are calls too: three failures of one question use up a budget of five."""
    server.reply = lambda p, n: (503, {}, {}) if 1 <= n < 4 else by_length(p, n)
    with pytest.raises(JudgeError, match=r"(?s)call limit.*5 requests"):
        ApiJudge(client(server, tmp_path / "a.jsonl", max_calls=5, concurrency=4))(words(9, 4))
    assert len(server.asked) == 5
    with pytest.raises(JudgeError, match="call limit"):
        ApiJudge(client(server, tmp_path / "a.jsonl", max_calls=5))(words(9, 4))
    assert len(server.asked) == 5
    ApiJudge(client(server, tmp_path / "a.jsonl", max_calls=8))(words(9, 4))
    assert len(server.asked) <= 8


def test_tokens_are_limited_and_need_to_be_reported(server: Server) -> None:
    server.reply = by_length
    with pytest.raises(JudgeError, match=r"(?s)token limit.*max_total_tokens"):
        ApiJudge(client(server, max_total_tokens=300))(words(10, 6))
    assert len(server.asked) == 3
    server.reply = lambda p, n: (200, {k: v for k, v in completion("1").items() if k != "usage"}, {})
    with pytest.raises(JudgeError, match=r"(?s)reports no tokens.*max_total_tokens=0"):
        ApiJudge(client(server, max_total_tokens=300))(words(11, 2))


def test_limits_that_will_end_a_run_are_said_before(server: Server) -> None:
    one = client(server, max_total_tokens=50, max_cost=1e-5)
    lines = one.budget.check(ApiJudge(one).forecast(words(8, 6)))
    assert "max_total_tokens=50 will end this before the last item" in lines[1]
    assert "max_cost=1e-05 will end this" in lines[2]

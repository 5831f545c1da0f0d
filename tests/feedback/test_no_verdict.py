"""Replies that are no verdict: each is missing with its cause, costs its question alone, and is not cached."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tiltyard.errors import ConfigError
from tiltyard.feedback import AnswerCache, ApiJudge, ApiPointsJudge, ApiScoreJudge, Client, Endpoint, JudgeError
from tiltyard.feedback.completions import read_completion
from tiltyard.feedback.remote import grade_of, points_of, verdict_of

from .server import Server, completion
from .worlds import pair, words

LABELS = {"1": math.log(0.55), "2": math.log(0.45)}


def client(server: Server, cache=None, **more) -> Client:
    settings = {"retries": 1, "backoff": 0.0, "timeout": 5.0, "concurrency": 2, "price_in": 2.0}
    return Client(Endpoint(url=server.url, model="judge-1", **(settings | more)), AnswerCache(cache))


def reply(text: Any, *, finish: Any = "stop", top: dict[str, float] | None = None, **message: Any) -> dict[str, Any]:
    """A completion with any content and any finish_reason."""
    value = completion(text, top)
    value["choices"][0]["message"] |= message
    value["choices"][0]["finish_reason"] = finish
    return value


def answer(value: Any) -> dict[str, Any]:
    read, problem = read_completion(json.dumps(value).encode())
    assert read is not None, problem
    return read


# --------------------------------------------------------------------------------------------------- finish reasons

ASKED = {"choice": (verdict_of, "1"), "rating": (grade_of, "7"), "points": (points_of, "Well.\nScore: 4")}


def value_of(read, given: dict[str, Any]) -> tuple[float | None, str]:
    result = read(given)
    value = next(getattr(result, name) for name in ("p", "score", "points") if hasattr(result, name))
    return value, result.cause


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("finish", ["stop", "STOP", "eos", "end_turn", "stop_sequence", None])
def test_a_finished_reply_is_a_verdict(asked, finish) -> None:
    read, text = ASKED[asked]
    assert value_of(read, answer(reply(text, finish=finish)))[0] in (1.0, 3 / 9, 4.0)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("finish", "cause"),
    [
        *[(finish, "cut") for finish in ("length", "max_tokens", "MAX_TOKENS", "model_length", "something new", 3, {})],
        *[(finish, "filtered") for finish in ("content_filter", "SAFETY", "refusal")],
    ],
)
def test_a_reply_that_did_not_finish_is_none(asked, finish, cause) -> None:
    read, text = ASKED[asked]
    assert value_of(read, answer(reply(text, finish=finish))) == (None, cause)


def test_of_a_cut_reply_a_label_alone_with_alternatives_counts() -> None:
    """max_tokens=1 asks for the label's log-probs; what would have followed the label does not change them."""
    assert verdict_of(answer(reply("1", finish="length", top=LABELS))).p == pytest.approx(0.55)
    assert verdict_of(answer(reply("1", finish="length"))).cause == "cut"
    assert verdict_of(answer(reply("Response 1", finish="length", top=LABELS))).cause == "cut"
    assert grade_of(answer(reply("7", finish="length", top={"7": -0.1, "8": -3.0}))).score is not None
    assert grade_of(answer(reply("1", finish="length", top={"1": -0.1, "2": -3.0}))).cause == "cut"  # of "10"?


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (reply("", finish="stop"), "empty"),
        (reply(None, finish="stop"), "empty"),
        (reply([], finish="stop"), "empty"),
        (reply(None, finish="tool_calls", tool_calls=[{}]), "empty"),
        (reply("", finish="length"), "cut"),
        (reply("<think>Response 1 ... Score: 2", finish="length"), "cut"),
        (reply("<think>1</think>", finish="length"), "cut"),
        (reply("<think>1 Score: 2"), "unreadable"),
        (reply(None, refusal="I cannot compare these."), "refused"),
        (reply("1", refusal="I cannot compare these."), "refused"),
        (reply([{"type": "refusal", "refusal": "No."}]), "refused"),
        (reply("I'm sorry, but I can't help with that."), "unreadable"),
    ],
)
def test_a_reply_that_says_nothing_is_none(asked, value, cause) -> None:
    assert value_of(ASKED[asked][0], answer(value)) == (None, cause)


def test_content_in_parts_is_its_texts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "2"}]},
        {"type": "text", "text": "Answer: "},
        "1",
    ]
    assert verdict_of(answer(reply(parts))).p == 1.0
    assert verdict_of(answer(reply([{"type": "output_text", "text": {"value": "2"}}]))).p == 0.0
    for wrong in (3, {"text": "1"}, [3], [{"type": "text"}], [{"type": "text", "text": 1}]):
        assert read_completion(json.dumps(reply(wrong)).encode())[0] is None


@pytest.mark.parametrize("finish", ["error", "abort", "insufficient_system_resource"])
def test_a_server_that_gave_up_is_asked_again(server, finish) -> None:
    server.reply = lambda payload, number: (200, reply("2", finish="stop" if number else finish), {})
    assert ApiJudge(client(server))([pair("a", "b")])[0].p == 0.0
    assert len(server.asked) == 2
    assert read_completion(b'{"error": {"message": "upstream", "code": 502}}')[1].startswith("an error in place")


# ----------------------------------------------------------------------------------------------------- alternatives


def tokens(own: str, others: list[str], **more: Any) -> dict[str, Any]:
    logp = {"own": LABELS["1"], "other": LABELS["2"]}
    listed = [{"token": own, "logprob": logp["own"]}, *({"token": o, "logprob": logp["other"]} for o in others)]
    value = reply("1")
    value["choices"][0]["logprobs"] = {
        "content": [{"token": own, "logprob": logp["own"], "top_logprobs": listed} | more]
    }
    return value


SPELLINGS = ("{}", " {}", "\u0120{}", "\u2581{}", "{}</w>", "<0x3{}>", "\u010a{}", "##{}")


@pytest.mark.parametrize("own", SPELLINGS)
@pytest.mark.parametrize("other", SPELLINGS)
def test_pieces_of_every_vocabulary_are_the_same_label(own, other) -> None:
    given = answer(tokens(own.format(1), [other.format(2)]))
    assert verdict_of(given).p == pytest.approx(0.55)


def test_alternatives_as_bytes_as_older_servers_and_without_the_token_itself() -> None:
    value = tokens("token_id:16", [])
    (token,) = value["choices"][0]["logprobs"]["content"]
    token |= {"bytes": [49], "top_logprobs": [{"token": "token_id:17", "bytes": [32, 50], "logprob": LABELS["2"]}]}
    assert verdict_of(answer(value)).p == pytest.approx(0.55)
    value["choices"][0]["logprobs"] = {"tokens": ["1"], "token_logprobs": [LABELS["1"]], "top_logprobs": [LABELS]}
    assert verdict_of(answer(value)).p == pytest.approx(0.55)
    value = tokens("1", ["2"])
    value["choices"][0]["logprobs"]["content"][0]["top_logprobs"].pop(0)
    assert verdict_of(answer(value)).p == pytest.approx(0.55)
    value = tokens("1", ["2"])
    value["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["token"] = "\u01201"  # one piece, two spellings
    assert verdict_of(answer(value)).p == pytest.approx(0.55)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        3,
        [],
        {"content": None},
        {"content": [{"token": "1", "logprob": None, "top_logprobs": None}]},
        {"content": [{"token": "1", "logprob": -0.5, "top_logprobs": []}]},
        {
            "content": [
                {"token": "token_id:16", "logprob": -0.5, "top_logprobs": [{"token": "token_id:17", "logprob": -1}]}
            ]
        },
        {"content": [3]},
        {"content": [{"token": "1", "logprob": 10**400, "top_logprobs": [{"token": "2", "logprob": -1}]}]},
        {"content": [{"logprob": -1.0}]},
        {"tokens": ["1"], "token_logprobs": None, "top_logprobs": None},
    ],
)
def test_log_probs_that_cannot_be_read_leave_the_words(logprobs) -> None:
    value = reply("1")
    value["choices"][0]["logprobs"] = logprobs
    verdict = verdict_of(answer(value))
    assert (verdict.p, verdict.logit) == (1.0, None)


def test_numbers_that_are_none_have_no_mass() -> None:
    body = json.dumps(tokens("1", ["2", "3"])).replace(str(LABELS["2"]), "-Infinity", 1)
    assert verdict_of(read_completion(body.encode())[0] or {}).p == 1.0
    body = json.dumps(tokens("1", ["2", "2"])).replace(str(LABELS["2"]), "NaN", 1)
    assert verdict_of(read_completion(body.encode())[0] or {}).p == pytest.approx(0.55)


def test_after_reasoning_the_label_has_its_own_alternatives() -> None:
    said = ["<think>", "1", "</think>", "\n\n", "1"]
    value = reply("".join(said))
    value["choices"][0]["logprobs"] = {
        "content": [{"token": t, "logprob": -0.1, "top_logprobs": [{"token": "2", "logprob": -5.0}]} for t in said[:-1]]
        + tokens("1", ["2"])["choices"][0]["logprobs"]["content"]
    }
    assert verdict_of(answer(value)).p == pytest.approx(0.55)
    value["choices"][0]["message"]["content"] = "1"  # the reasoning is in a field of its own
    assert verdict_of(answer(value)).p == pytest.approx(0.55)


# ------------------------------------------------------------------------------------------ one question, not the run


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (400, {"error": {"code": "content_filter", "message": "filtered"}}, "filtered"),
        (403, {"error": {"message": "your input was flagged", "metadata": {"reasons": ["violence"]}}}, "filtered"),
        (400, {"error": {"message": "This model's maximum context length is 512 tokens."}}, "too long"),
        (413, b"", "too long"),
        (400, {"error": "I do not like this one"}, "refused"),
        (422, {"detail": "no"}, "refused"),
        (500, {"error": "it crashes the server"}, "no reply"),
        (200, b"<html>oops</html>", "no reply"),
        (200, reply("", finish="stop"), "empty"),
        (200, reply("<think>Response 1 is", finish="length"), "cut"),
        (200, reply("Not 1."), "unreadable"),
    ],
)
def test_one_question_without_a_verdict_costs_itself(server, tmp_path, status, body, cause) -> None:
    def one_is_bad(payload, number):
        bad = "q3" in payload["messages"][0]["content"]
        return (status, body, {}) if bad else (200, completion("1"), {})

    server.reply = one_is_bad
    asked = client(server, tmp_path / "a.jsonl")
    verdicts = ApiJudge(asked)(words(4, 10))
    assert [v.p for v in verdicts] == [None if i == 3 else 1.0 for i in range(10)]
    assert (verdicts[3].cause, bool(verdicts[3].reason)) == (cause, True)
    stored = AnswerCache(tmp_path / "a.jsonl")
    assert len(stored.answers) == 9
    completions = (1 + (cause == "empty")) * (status == 200 and body != b"<html>oops</html>")
    assert sum("by" in costs for costs in stored.spent) == completions  # paid for, and no answer
    assert asked.usage.calls == 9 + completions
    assert asked.usage.cost == pytest.approx(asked.paid().cost, rel=1e-12)
    count = len(server.asked)
    ApiJudge(client(server, tmp_path / "a.jsonl"))(words(4, 10))
    assert all("q3" in question for question in server.questions[count:])  # only that one is asked again


@pytest.mark.parametrize(
    ("status", "body", "match"),
    [
        (400, {"error": {"message": "top_logprobs must be at most 5"}}, "refuses the request"),
        (422, {"detail": [{"msg": "no"}]}, "refuses the request"),
        (503, b"busy", "did not answer"),
        (200, b'data: {"choices": []}\n\n', "did not answer"),
    ],
)
def test_a_server_that_fails_all_stops_the_run(server, status, body, match) -> None:
    server.reply = lambda payload, number: (status, body, {})
    with pytest.raises(JudgeError, match=match):
        ApiJudge(client(server, retries=0))(words(5, 40))
    assert len(server.asked) <= 4
    with pytest.raises(JudgeError, match=match):  # also if it is the only question
        ApiJudge(client(server, retries=0))([pair("a", "b")])


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {}),
        (402, {"error": "no balance"}),
        (403, {"error": "not for you"}),
        (404, {}),
        (405, {}),
        (400, {"error": {"message": "Unsupported parameter: 'max_tokens'", "code": "unsupported_parameter"}}),
        (429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}),
    ],
)
def test_what_no_other_question_would_change_stops_at_once(server, status, body) -> None:
    server.reply = lambda payload, number: (status, body, {}) if number == 3 else (200, completion("1"), {})
    with pytest.raises(JudgeError, match="refuses the request"):
        ApiJudge(client(server, concurrency=1, retries=5))(words(6, 9))
    assert len(server.asked) == 4


def test_samples_of_points_are_left_out_one_by_one(server) -> None:
    replies = [reply("Score: 2"), reply("At least Score: 5 so", finish="length"), reply("Score: 4")]
    server.reply = lambda payload, number: (200, replies[number % 3], {})
    (row,) = ApiPointsJudge(client(server, concurrency=1), samples=3).score(words(7, 1))
    assert [(g.score, g.points) for g in row] == [(3.0, (2.0, None, 4.0))] * 2


# --------------------------------------------------------------------------------------------- guards that must bite


def test_a_limit_without_prices_is_refused(server) -> None:
    with pytest.raises(ConfigError, match=r"(?s)needs prices.*price_in"):
        client(server, price_in=0.0, max_cost=1.0)


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": "n/a", "completion_tokens": "1"}, {"prompt_tokens": -5, "completion_tokens": 1}],
)
def test_a_limit_without_usage_is_refused_and_the_answer_kept(server, tmp_path, usage) -> None:
    server.reply = lambda payload, number: (200, completion("1") | {"usage": usage}, {})
    with pytest.raises(JudgeError, match=r"(?s)reports no tokens.*max_cost=0"):
        ApiJudge(client(server, tmp_path / "a.jsonl", concurrency=1, max_cost=1.0))(words(8, 3))
    assert len(server.asked) == len(AnswerCache(tmp_path / "a.jsonl").answers) == 1
    free = client(server, tmp_path / "a.jsonl")
    ApiJudge(free)(words(8, 3))
    assert (free.usage.unmetered, free.usage.cached) == (2, 1)


def test_replies_without_a_verdict_count_for_the_limit(server, tmp_path) -> None:
    server.reply = lambda payload, number: (200, reply("Not 1."), {})
    for _ in range(2):
        with pytest.raises(JudgeError, match="cost limit"):
            ApiJudge(client(server, tmp_path / "a.jsonl", concurrency=1, max_cost=2.5e-4 * 2))(words(9, 6))
    assert len(server.asked) == 3


def test_verdicts_from_log_probs_and_from_words_are_counted(server) -> None:
    server.reply = lambda payload, number: (200, completion("1", LABELS if number % 2 else None), {})
    asked = client(server, concurrency=1)
    ApiJudge(asked)(words(10, 6))
    assert (asked.usage.soft, asked.usage.hard) == (3, 3)
    ratings = client(server, concurrency=1)
    server.reply = lambda payload, number: (200, completion("7", {"7": -0.1, "8": -3.0} if number % 2 else None), {})
    ApiScoreJudge(ratings).score(words(11, 3))
    assert ratings.usage.soft == ratings.usage.hard == 3
    plain = client(server)
    ApiJudge(plain, logprobs=False)(words(10, 6))
    assert (plain.usage.soft, plain.usage.hard) == (0, 0)

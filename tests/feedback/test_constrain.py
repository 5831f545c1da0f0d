"""Structured choice: found by one small request, used where a server has it, and done without where it has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiltyard.errors import TiltyardError
from tiltyard.feedback import AnswerCache, ApiJudge, ApiScoreJudge, Client, Endpoint
from tiltyard.feedback.constrain import PROBE, choice_fields, written_choice
from tiltyard.types import Group, Message, Prompt, Response

from .server import Server, completion

KNOWN = {
    "structured_outputs": lambda p: p.get("structured_outputs", {}).get("choice"),
    "guided_choice": lambda p: p.get("guided_choice"),
    "json_schema": lambda p: _enum(p.get("response_format")),
}


def _enum(form: Any) -> list[str] | None:
    return form["json_schema"]["schema"]["properties"]["choice"]["enum"] if form else None


def replies(way: str, *, others: str = "ignore", free: str = "Well, both have merits.") -> Callable[..., Any]:
    """A server that knows one way; it refuses or ignores the others, and then its model writes freely."""

    def reply(payload: dict[str, Any], number: int) -> Any:
        for name, read in KNOWN.items():
            choices = read(payload)
            if choices and name == way:
                chosen = choices[1]
                return 200, completion(json.dumps({"choice": chosen}) if name == "json_schema" else chosen), {}
            if choices and others == "refuse":
                return 400, {"error": {"message": f"Unrecognized request argument supplied: {name}"}}, {}
        return 200, completion(free), {}

    return reply


def pairs(count: int = 3) -> list[Group]:
    return [
        Group(Prompt(messages=(Message("user", f"question {i}"),)), (Response(text="a"), Response(text="b")))
        for i in range(count)
    ]


def judge(server: Server, constrain: Any = "auto", cache: AnswerCache | None = None, **more: Any) -> ApiJudge:
    endpoint = Endpoint(url=server.url, model="m", backoff=0.0, retries=1)
    return ApiJudge(Client(endpoint, cache), constrain=constrain, max_tokens=32, **more)


def probes(server: Server) -> int:
    return sum(question == "Say hello." for question in server.questions)


@pytest.mark.parametrize("others", ["ignore", "refuse"])
@pytest.mark.parametrize(("way", "tries"), [("structured_outputs", 1), ("guided_choice", 2), ("json_schema", 3)])
def test_the_first_way_that_the_server_keeps_to_is_used(server: Server, way: str, tries: int, others: str) -> None:
    server.reply = replies(way, others=others)
    one = judge(server)
    assert one.constraint_line == ""
    assert [v.p for v in one(pairs())] == [0.0, 0.0, 0.0]
    assert [v.p for v in one(pairs(5))] == [0.0] * 5
    assert probes(server) == tries
    assert one.way == way
    assert way in one.constraint_line
    assert all(KNOWN[way](p) == ["1", "2"] for _, p, _ in server.asked if "Say hello." not in str(p["messages"]))
    assert one.usage.calls == 5


@pytest.mark.parametrize("others", ["ignore", "refuse"])
def test_a_server_without_any_is_read_as_before(server: Server, others: str) -> None:
    server.reply = replies("", others=others, free="2")
    one = judge(server)
    assert [v.p for v in one(pairs())] == [0.0] * 3
    assert probes(server) == 3
    assert "no structured choice" in one.constraint_line
    assert not any(read(server.asked[-1][1]) for read in KNOWN.values())
    server.reply = replies("", others=others)
    assert [v.cause for v in judge(server)(pairs())] == ["unreadable"] * 3


def test_the_result_is_kept_with_the_answers(server: Server, tmp_path: Path) -> None:
    server.reply = replies("json_schema")
    for _ in range(2):
        one = judge(server, cache=AnswerCache(tmp_path / "answers.jsonl"))
        assert [v.p for v in one(pairs())] == [0.0] * 3
        assert one.way == "json_schema"
        assert len(server.asked) == 3 + 3


def test_choice_alone_is_required(server: Server) -> None:
    server.reply = replies("json_schema")
    with pytest.raises(TiltyardError, match="no structured choice"):
        judge(server, "choice")(pairs())
    server.reply = replies("guided_choice")
    assert [v.p for v in judge(server, "choice")(pairs())] == [0.0] * 3


@pytest.mark.parametrize(("constrain", "extra"), [("none", {}), ("auto", {"guided_choice": ["1", "2"]})])
def test_nothing_is_tried_where_none_is_wanted(server: Server, constrain: str, extra: dict[str, Any]) -> None:
    server.reply = replies("guided_choice", free="2")
    assert [v.p for v in judge(server, constrain, extra=extra)(pairs())] == [0.0] * 3
    assert probes(server) == 0


def test_a_server_that_is_down_is_named_by_the_question(server: Server) -> None:
    server.reply = lambda payload, n: (503, b"", {})
    with pytest.raises(TiltyardError, match="did not answer"):
        judge(server)(pairs(1))
    assert probes(server) == 2  # one way, with one retry


def test_ratings_are_constrained_too(server: Server) -> None:
    server.reply = replies("structured_outputs")
    one = ApiScoreJudge(Client(Endpoint(url=server.url, model="m")), constrain="auto", max_tokens=32)
    (grades,) = one.score(pairs(1))
    assert [g.score for g in grades] == [pytest.approx(-7 / 9)] * 2  # the second of ten ratings
    assert server.asked[-1][1]["structured_outputs"]["choice"] == [str(i) for i in range(1, 11)]


@pytest.mark.parametrize(
    ("text", "read"),
    [('{"choice": "1"}', "1"), ('{"choice": 1}', '{"choice": 1}'), ('{"choice": "1", "a": 2}',) * 2,
     ("1", "1"), ("", ""), ("[" * 100_000, "[" * 100_000)],
)  # fmt: skip
def test_what_a_reply_in_json_chooses(text: str, read: str) -> None:
    assert written_choice(text) == read
    assert choice_fields("", PROBE) == {}

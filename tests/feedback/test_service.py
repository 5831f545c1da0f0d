"""A reward service: what it is sent, what it may answer, and what is said when it answers something else."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tiltyard.errors import ConfigError, ScoringError
from tiltyard.feedback import AnswerCache, ServiceScorer
from tiltyard.scoring import Monitors, Service, WeightedScorer, build_reward
from tiltyard.types import Group, Message, Prompt, Response

from .server import Server

QUICK: dict[str, Any] = {"backoff": 0.0, "timeout": 5.0, "retries": 2}


def group(number: int, *texts: str) -> Group:
    prompt = Prompt(messages=(Message("user", f"question {number}"),), id=f"p{number}", meta={"answer": number})
    return Group(prompt, tuple(Response(text=text) for text in texts), origin=f"rows.jsonl:{number}")


def lengths(payload: dict[str, Any], number: int) -> Any:
    return 200, {"scores": [float(len(text)) for text in payload["responses"]]}, {}


def scorer(server: Server, **more: Any) -> ServiceScorer:
    settings = Service(**{**QUICK, **{k: v for k, v in more.items() if k in Service.model_fields}})
    return ServiceScorer(server.url, settings, **{k: v for k, v in more.items() if k not in Service.model_fields})


def test_what_is_sent_and_what_comes_back(server: Server) -> None:
    server.reply = lengths
    groups = [group(1, "a", "bcd"), group(2, "ef"), group(3)]
    scored = scorer(server, concurrency=1).score(groups)
    assert [g.scores for g in scored] == [(1.0, 3.0), (2.0,), ()]
    assert [g.prompt for g in scored] == [g.prompt for g in groups]
    headers, payload, path = server.asked[0]
    assert path == "/v1"
    assert headers["Content-Type"] == "application/json"
    assert payload == {
        "version": 1,
        "id": "p1",
        "prompt": [{"role": "user", "content": "question 1"}],
        "responses": ["a", "bcd"],
        "row": {"answer": 1},
    }
    assert len(server.asked) == 2  # nothing is asked about a prompt without responses


def test_a_text_prompt_is_sent_as_a_text(server: Server) -> None:
    server.reply = lengths
    scorer(server).score([Group(Prompt(text="once upon"), (Response(text=" a time"),))])
    assert server.asked[0][1]["prompt"] == "once upon"


def test_null_abstains(server: Server) -> None:
    server.reply = lambda payload, n: (200, {"scores": [None if t == "?" else 1 for t in payload["responses"]]}, {})
    scored = scorer(server).score([group(1, "a", "?"), group(2, "?"), group(3, "b")])
    assert [[r.text for r in g.responses] for g in scored] == [["a"], ["b"]]
    assert [g.scores for g in scored] == [(1.0,), (1.0,)]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ({"scores": [1.0]}, "1 scores for 2 responses"),
        ({"scores": [1.0, 2.0, 3.0]}, "3 scores for 2 responses"),
        ({"scores": [1.0, "2.0"]}, "for response 2 ('bb')"),
        ({"scores": [True, 1.0]}, "for response 1 ('a')"),
        (b'{"scores": [1.0, NaN]}', "NaN for response 2"),
        (b'{"scores": [1.0, -Infinity]}', "-Infinity for response 2"),
        ({"scores": [1.0, [2.0]]}, "for response 2"),
        ({"scores": 1.0}, '{"scores": 1.0}'),
        ({"score": [1.0, 2.0]}, '{"score": [1.0, 2.0]}'),
        ([1.0, 2.0], "[1.0, 2.0]"),
        ({"error": "no model"}, "no model"),
    ],
)
def test_replies_that_are_no_scores(server: Server, reply: Any, said: str) -> None:
    server.reply = lambda payload, n: (200, reply, {})
    with pytest.raises(ScoringError, match="gave no scores") as caught:
        scorer(server).score([group(7, "a", "bb")])
    assert caught.value.where == "rows.jsonl:7, prompt p7"
    assert said in str(caught.value.got)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reply", "said", "attempts"),
    [
        ((500, {"detail": "out of memory"}, {}), "500", 3),
        ((503, b"busy", {"Retry-After": "0"}), "503 busy", 3),
        ((200, b"<html>proxy</html>", {}), "a reply that is no JSON", 3),
        ((200, None, {}), "RemoteProtocolError", 3),
        ((404, b"not here", {}), "404 not here", 1),
        ((422, {"detail": "row"}, {}), "422", 1),
        ((302, b"", {"Location": "http://127.0.0.1:9/"}), "302", 1),
    ],
)
def test_a_service_that_fails(server: Server, reply: Any, said: str, attempts: int) -> None:
    server.reply = lambda payload, n: reply
    one = scorer(server)
    with pytest.raises(ScoringError, match="did not score") as caught:
        one.score([group(7, "a", "bb")])
    assert caught.value.where == "rows.jsonl:7, prompt p7"
    assert said in str(caught.value.got)
    assert len(server.asked) == attempts == one.take_cost().calls


def test_a_service_that_hangs(server: Server) -> None:
    server.reply = lambda payload, n: (server.release.wait(20), (200, {"scores": [1.0]}, {}))[1]
    began = time.monotonic()
    with pytest.raises(ScoringError, match=r"the time limit of 0\.2 s was over"):
        scorer(server, timeout=0.2, retries=1).score([group(1, "a")])
    assert time.monotonic() - began < 10


def test_what_fails_for_a_moment_is_sent_again(server: Server) -> None:
    server.reply = lambda payload, n: (500, b"", {}) if n < 2 else lengths(payload, n)
    assert scorer(server).score([group(1, "abc")])[0].scores == (3.0,)
    assert len(server.asked) == 3


def test_equal_groups_are_asked_once_and_another_execution_asks_again(server: Server, tmp_path: Path) -> None:
    server.reply = lengths
    groups = [group(1, "a"), group(1, "a"), group(1, "b")]
    for owner, count in (("one", 2), ("one", 2), ("two", 4)):
        one = scorer(server, cache=AnswerCache(tmp_path / "a.jsonl"), owner=owner)
        assert [g.scores for g in one.score(groups)] == [(1.0,), (1.0,), (1.0,)]
        assert len(server.asked) == count


def test_answers_that_came_before_an_error_are_kept(server: Server, tmp_path: Path) -> None:
    server.reply = lambda payload, n: (400, b"no", {}) if payload["id"] == "p3" else lengths(payload, n)
    cache = AnswerCache(tmp_path / "a.jsonl")
    with pytest.raises(ScoringError, match=r"rows.jsonl:3"):
        scorer(server, cache=cache, concurrency=1).score([group(k, "a") for k in range(1, 6)])
    server.reply = lengths
    scorer(server, cache=AnswerCache(tmp_path / "a.jsonl")).score([group(k, "a") for k in range(1, 6)])
    assert len(server.asked) == 3 + 3


def test_requests_at_the_same_time(server: Server) -> None:
    server.reply = lambda payload, n: (time.sleep(0.1), lengths(payload, n))[1]
    scorer(server, concurrency=3).score([group(k, "a") for k in range(9)])
    assert 1 < server.most <= 3


def test_the_key_comes_from_the_environment_and_is_shown_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCORE_KEY", "secret-key-1")
    server.reply = lambda payload, n: (401, {"you sent": "Bearer secret-key-1"}, {})
    one = scorer(server, key_env="SCORE_KEY", cache=AnswerCache(tmp_path / "a.jsonl"))
    with pytest.raises(ScoringError) as caught:
        one.score([group(1, "a")])
    assert server.asked[0][0]["Authorization"] == "Bearer secret-key-1"
    assert "secret" not in str(caught.value)
    assert "***" in str(caught.value)
    monkeypatch.delenv("SCORE_KEY")
    with pytest.raises(ConfigError, match="the reward service's key is missing"):
        scorer(server, key_env="SCORE_KEY")
    with pytest.raises(ConfigError, match="holds a secret"):
        ServiceScorer("http://user:word@127.0.0.1/score")


def test_the_address_is_tried_before_anything_is_sampled(server: Server) -> None:
    prompts = [group(1).prompt]
    server.reply = lambda payload, n: (500, b"no responses", {})
    scorer(server, retries=0).check_prompts(prompts)  # it answers: whether it scores shows with real responses
    assert server.asked[0][1]["responses"] == []
    server.reply = lambda payload, n: (404, b"", {})
    with pytest.raises(ConfigError, match="cannot be reached"):
        scorer(server).check_prompts(prompts)
    with pytest.raises(ConfigError, match="cannot be reached") as caught:
        ServiceScorer("http://127.0.0.1:9/score", Service(**QUICK), where="reward.a").check_prompts(prompts)
    assert caught.value.where == "reward.a.from"


def test_in_sums_and_monitors(server: Server) -> None:
    server.reply = lengths

    def load(name: str, part: Any) -> ServiceScorer:
        return ServiceScorer(part.source, part.service, name=name)

    spec = {"far": {"from": server.url, "timeout": 5, "weight": 2.0}, "near": {"from": "rule", "max_words": 1}}
    total = build_reward(spec, load)
    assert isinstance(total, WeightedScorer)
    assert total.score([group(1, "abc", "a b")])[0].scores == (7.0, 6.0)
    metrics = Monitors([build_reward(server.url, load, name="far")])([group(2, "abcd")])
    assert metrics["reward/far"] == (4.0, 1.0)
    for spec, said in (({"from": server.url, "tiemout": 5}, "'timeout'"), ({"from": "x/y", "timeout": 5}, "timeout"),
                       ({"from": server.url, "retries": -1}, "retries")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            build_reward(spec, load)


@pytest.mark.slow
def test_any_reply_is_scores_or_a_named_error(server: Server) -> None:
    """Replies made of pieces of right and wrong ones, deterministic."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    odd = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=3), st.just([]))
    value = st.one_of(
        st.lists(odd, max_size=4).map(lambda scores: {"scores": scores}),
        st.dictionaries(st.sampled_from(["scores", "error", "x"]), odd, max_size=2),
        odd,
    )
    named: list[bool] = []
    body = st.one_of(value.map(lambda v: json.dumps(v).encode()), st.binary(max_size=12))

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([200, 200, 200, 400, 500]), body)
    def check(status: int, raw: bytes) -> None:
        server.reply = lambda payload, n: (status, raw, {})
        given_group = group(7, "a", "bb")
        try:
            scored = scorer(server, retries=0).score([given_group])
        except ScoringError as error:
            parts = [error.where, error.expected, error.fix]
            named.append(all(parts) and parts[0] == "rows.jsonl:7, prompt p7")
            return
        scores = json.loads(raw)["scores"]
        assert status == 200
        assert len(scores) == 2
        kept = [s for s in scores if s is not None]
        assert all(not isinstance(s, bool) and math.isfinite(s) for s in kept)
        assert [s for g in scored for s in g.scores or ()] == kept

    check()
    assert len(named) > 50
    assert all(named)


def test_the_wire_is_documented() -> None:
    """The request of the documentation has the fields that are sent."""
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    shown = re.search(r'\{"version": 1.*?\}\}', page, re.DOTALL)
    assert shown
    assert set(json.loads(shown[0])) == {"version", "id", "prompt", "responses", "row"}

"""Models of an arena: names on the command line, endpoints that stream, and those that fail."""

from __future__ import annotations

import json

import httpx
import pytest

from tiltyard.errors import ConfigError, ModelError
from tiltyard.feedback.arena.models import Decoding, EndpointModel, Entry, fingerprint, opened
from tiltyard.types import Message

ASKED = (Message("user", "Why?"),)


def endpoint(answer, **settings) -> tuple[EndpointModel, list]:
    """An endpoint whose server is a function of the request."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer(request) if callable(answer) else answer

    key = settings.pop("key", "")
    model = EndpointModel("x", "", "http://models.example/v1", "big", key, Decoding(**settings))
    model.transport = httpx.MockTransport(handle)
    return model, seen


def stream(*pieces: str, finish: str = "stop", end: bool = True) -> httpx.Response:
    events = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events.append({"choices": [{"delta": {}, "finish_reason": finish}]})
    text = ": ping\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return httpx.Response(200, text=text + ("data: [DONE]\n\n" if end else ""))


def test_pieces_arrive_as_they_are_written() -> None:
    model, seen = endpoint(stream("Be", "cause", " it"), key="secret-key", system="Be brief.", max_tokens=9)
    shown: list[str] = []
    response = model.write(ASKED, 2**40 + 5, shown.append)
    assert (response.text, response.finish) == ("Because it", "stop")
    assert shown == ["Be", "cause", " it"]
    sent = json.loads(seen[0].content)
    assert str(seen[0].url) == "http://models.example/v1/chat/completions"
    assert [turn["role"] for turn in sent["messages"]] == ["system", "user"]
    assert (sent["model"], sent["stream"], sent["max_tokens"]) == ("big", True, 9)
    assert 0 <= sent["seed"] < 2**31
    assert seen[0].headers["authorization"] == "Bearer secret-key"


def test_an_answer_that_is_cut_says_so() -> None:
    model, _ = endpoint(stream("a", finish="length", end=False))
    assert model.write(ASKED, 0, lambda _: None).finish == "length"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500, text="secret-key"),
        httpx.Response(302, headers={"location": "http://elsewhere.example"}),
        httpx.Response(200, text="data: {not json\n\n"),
        httpx.Response(200, text='data: {"choices": "none"}\n\n'),
    ],
)
def test_a_server_that_fails_is_an_error_without_its_key(answer) -> None:
    model, seen = endpoint(answer, key="secret-key")
    with pytest.raises(ModelError) as error:
        model.write(ASKED, 0, lambda _: None)
    assert "secret-key" not in str(error.value)
    assert len(seen) == 1  # a redirect is not followed


def test_a_server_that_does_not_answer() -> None:
    def lost(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    model, _ = endpoint(lost)
    with pytest.raises(ModelError, match="the server gave no answer"):
        model.write(ASKED, 0, lambda _: None)


def test_models_are_named_on_the_command_line(tmp_path, monkeypatch) -> None:
    assert Entry.of("sft=runs/demo/sft", {}) == Entry("sft", "", "runs/demo/sft")
    entry = Entry.of("big@2026-11=http://h:8000/v1#org/model", {"big": "BIG_KEY"})
    assert entry == Entry("big", "2026-11", "http://h:8000/v1", "org/model", "BIG_KEY")
    monkeypatch.delenv("BIG_KEY", raising=False)
    with pytest.raises(ConfigError, match="the key is not set"):
        opened(entry, Decoding())
    monkeypatch.setenv("BIG_KEY", "secret-key")
    assert opened(entry, Decoding()).version == "2026-11"
    for text in ("sft", "=x", "a=http://h/v1", "a=http://me:secret@h/v1#m", f"{'n' * 101}=x"):
        with pytest.raises(ConfigError) as error:
            Entry.of(text, {})
        assert "secret" not in str(error.value)


def test_weights_that_change_are_another_version(tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 200_000)
    before = fingerprint(tmp_path)
    path.write_bytes(b"a" * 199_999 + b"b")
    assert len(before) == 10
    assert fingerprint(tmp_path) != before

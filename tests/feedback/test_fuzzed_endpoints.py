"""Endpoints that send anything: only errors of judges, no label without a verdict, no answered question asked twice."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tiltyard.feedback import AnswerCache, ApiJudge, Client, Endpoint, JudgeError
from tiltyard.feedback.prompts import pair_question
from tiltyard.feedback.replies import read_choice

from .test_replies import CHOSEN, NOT_CHOSEN
from .worlds import words

PAIRS = words(3, 4)
DONE, NOT_DONE = ("stop", "eos", None, "STOP"), ("length", "content_filter", "error", "other", 7, [], {})


@dataclass(frozen=True)
class Sent:
    """The bytes of a reply, and the label that it chooses; None if it is no verdict."""

    raw: bytes
    label: int | None


# ------------------------------------------------------------------------------------------------------------ replies

WILD: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
GOOD = st.tuples(st.sampled_from(CHOSEN), st.sampled_from((1, 2))).map(lambda x: (x[0].format(x[1], 3 - x[1]), x[1]))
TEXTS = st.one_of(
    st.tuples(st.sampled_from(NOT_CHOSEN), st.sampled_from((1, 2))).map(lambda x: x[0].format(x[1], 3 - x[1])),
    st.text(st.characters(exclude_categories=("N",)), max_size=60).filter(lambda t: "st" not in t and "nd" not in t),
)
USAGE = st.one_of(
    st.none(),
    WILD,
    st.just({"prompt_tokens": 9, "completion_tokens": 2}),
    st.fixed_dictionaries({"prompt_tokens": WILD, "completion_tokens": WILD}),
)
LOGPROBS = st.one_of(
    st.none(),
    WILD,
    st.fixed_dictionaries(
        {"content": st.lists(st.fixed_dictionaries({"token": WILD, "logprob": WILD, "top_logprobs": WILD}), max_size=3)}
    ),
)


@st.composite
def completions(draw: st.DrawFn, spoilt: str) -> tuple[Any, int | None]:
    """A completion and the label that it chooses; `spoilt`: by its text, its end, or its JSON."""
    text, label = draw(GOOD)
    if spoilt == "text":
        text, label = draw(TEXTS), None
    content: Any = draw(st.sampled_from((text, text, [{"type": "text", "text": text}], [{"type": "thinking"}, text])))
    message = {"role": "assistant", "content": content}
    finish = draw(st.sampled_from(NOT_DONE if spoilt == "end" else DONE))
    choice = {"message": message, "finish_reason": finish, "logprobs": draw(LOGPROBS)}
    value: dict[str, Any] = {"choices": [choice], "usage": draw(USAGE)}
    if spoilt != "json":
        return value, None if spoilt == "end" else label
    wild = draw(WILD.filter(lambda x: x not in (None, False, "", 0, [], {}) and x == x))
    where = draw(st.sampled_from(("refusal", "content", "message", "choice", "error", "whole", "key")))
    if where == "refusal":
        message["refusal"] = str(wild) or "no"
    elif where == "content":
        message["content"] = None if isinstance(wild, str) else wild
    elif where == "message":
        choice["message"] = wild
    elif where == "choice":
        value["choices"] = [wild]
    elif where == "error":
        value["error"] = wild
    elif where == "key":
        del value["choices"]
    return (wild if where == "whole" else value), None


@st.composite
def replies(draw: st.DrawFn) -> Sent:
    """A reply as bytes on the wire, good or spoilt in one place."""
    spoilt = draw(st.sampled_from(("no", "no", "no", "no", "text", "end", "end", "json", "body", "wire", "status")))
    value, label = draw(completions(spoilt))
    body, status = json.dumps(value).encode(), 200
    if spoilt == "status":
        status, label = (
            draw(st.sampled_from((204, 302, 304, 400, 401, 403, 404, 413, 422, 429, 429, 500, 500, 503))),
            None,
        )
    if spoilt == "body":
        bodies = (
            draw(st.binary(max_size=60)),
            body[: draw(st.integers(0, len(body) - 1))],
            b" " * (9 * 2**20) + body,  # beyond what is read
            b'{"choices": [{"message": {"content": "\xe9 1"}}]}',
            b"data: " + body + b"\n\ndata: [DONE]\n\n",
        )
        body, label = draw(st.sampled_from(bodies)), None
    head = b"HTTP/1.1 %d X\r\nConnection: close\r\n" % status
    head += b"".join(h + b"\r\n" for h in draw(st.lists(st.sampled_from(HEADERS), max_size=2, unique=True)))
    coding = draw(st.sampled_from(("plain", "plain", "gzip", "chunks")))
    if spoilt == "wire":
        coding, label = draw(st.sampled_from(("not gzip", "torn chunks", "short", "long", "nothing"))), None
    return Sent(_framed(coding, head, body), label)


def _framed(coding: str, head: bytes, body: bytes) -> bytes:
    if coding == "nothing":
        return head[: len(body) % len(head)]
    if coding in ("gzip", "not gzip"):
        body = gzip.compress(body) if coding == "gzip" else body
        head += b"Content-Encoding: gzip\r\n"
    if coding in ("chunks", "torn chunks"):
        middle = len(body) // 2
        parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:middle], body[middle:]) if part)
        parts = parts + b"0\r\n\r\n" if coding == "chunks" else parts[:-3]
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + parts
    size = len(body) + {"short": -1, "long": 7}.get(coding, 0)
    return head + b"Content-Length: %d\r\n\r\n" % max(0, size) + body


HEADERS = (
    b"Retry-After: 3",
    b"Retry-After: Wed, 21 Oct 2015 07:28:30 GMT",
    b"Retry-After: \xff\xfe",
    b"retry-after-ms: 1e9",
    b"Location: http://[::bad",
    b"Date: yesterday",
    b"Set-Cookie: a=\x01; domain=..",
    b"Content-Type: text/html; charset=nonsense",
)

# ------------------------------------------------------------------------------------------------------------- server


@dataclass
class Script:
    """What the server sends, reply by reply, and then verdicts; the questions that it was asked and answered."""

    script: list[Sent] = field(default_factory=list)
    number: int = 0
    asked: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)  # asked after they were answered
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, question: str) -> Sent:
        with self.lock:
            if question in self.labels:
                self.again.append(question)
            self.asked.append(question)
            sent = self.script[self.number] if self.number < len(self.script) else verdict()
            self.number += 1
            if sent.label is not None:
                self.labels[question] = sent.label
            return sent


def verdict() -> Sent:
    choice = {"message": {"content": "1"}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}).encode()
    return Sent(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body), 1)


@contextmanager
def serving(script: Script) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                head, _, body = data.partition(b"\r\n\r\n")
                size = next(
                    int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")
                )
                while len(body) < size:
                    body += connection.recv(65536)
                connection.sendall(script.next(json.loads(body)["messages"][0]["content"]).raw)
            except OSError:
                pass  # the client had read enough

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # shrinking would take minutes
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(sent=st.lists(replies(), min_size=1, max_size=8), concurrency=st.sampled_from((1, 2)))
def test_no_reply_breaks_it_deceives_it_or_is_paid_twice(tmp_path, monkeypatch, sent, concurrency) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    path: Path = tmp_path / "answers.jsonl"
    path.unlink(missing_ok=True)
    script = Script(sent)

    async def no_pause(call: Any, seconds: float) -> None:
        assert 0 <= seconds <= 120

    with serving(script) as url:
        for _ in range(3):  # a run that was stopped is started again
            endpoint = Endpoint(
                url=url, model="m", timeout=5.0, retries=1, backoff=0.0, concurrency=concurrency, price_in=1.0
            )
            client = Client(endpoint, AnswerCache(path))
            client._pause = no_pause  # type: ignore[method-assign]
            try:
                verdicts = ApiJudge(client)(PAIRS)
            except JudgeError:
                continue
            questions = [pair_question("", (), g.prompt, g.responses) for g in PAIRS]
            for question, one in zip(questions, verdicts, strict=True):
                assert (one.p is not None) == (question in script.labels)
                assert (one.p is None) == bool(one.cause) == bool(one.reason)
                assert one.p is None or 0 <= one.p <= 1
                assert one.logit is not None or one.p in (None, float(script.labels.get(question) == 1))
    assert not script.again
    choices = [read_choice(answer["text"]) for answer in AnswerCache(path).answers.values()]
    assert sorted(map(str, choices)) == sorted(map(str, script.labels.values()))

"""The address, the headers, the waits, the time limit and the interrupt of a judge's server."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from email.utils import formatdate

import pytest

from tiltyard.errors import ConfigError
from tiltyard.feedback import AnswerCache, ApiJudge, Client, Endpoint, JudgeError
from tiltyard.feedback.wire import retry_after

from .server import Server, completion
from .worlds import pair, words

SECRET = "abc-very-secret-0123"


def client(server: Server, cache=None, **more) -> Client:
    settings = {"retries": 1, "backoff": 0.0, "timeout": 5.0, "concurrency": 2}
    return Client(Endpoint(url=server.url, model="judge-1", **(settings | more)), AnswerCache(cache))


AZURE = "https://x.example/openai/deployments/d"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("http://h:8000", "http://h:8000/chat/completions"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
        (f"{AZURE}?api-version=1", f"{AZURE}/chat/completions?api-version=1"),
        (f"{AZURE}/?api-version=1&x=a%20b", f"{AZURE}/chat/completions?api-version=1&x=a%20b"),
        (f"{AZURE}/chat/completions?api-version=1", f"{AZURE}/chat/completions?api-version=1"),
        (f"{AZURE}/chat/completions/?api-version=1#here", f"{AZURE}/chat/completions?api-version=1"),
    ],
)
def test_the_path_is_completed_and_the_query_stays(url, address) -> None:
    assert Endpoint(url=url, model="m").address == address


def test_the_query_is_sent(server) -> None:
    ApiJudge(Client(Endpoint(url=f"{server.url}?api-version=1", model="m")))([pair("a", "b")])
    assert server.asked[0][2] == "/v1/chat/completions?api-version=1"


@pytest.mark.parametrize(
    "url", ["http://user:pass@h/v1", "http://h/v1?api-key=x", "http://h/v1?key=x", "http://h/v1?sig=x"]
)
def test_an_address_with_a_secret_is_refused(url) -> None:
    with pytest.raises(ConfigError, match=r"(?s)holds a secret.*judge\.headers"):
        Client(Endpoint(url=url, model="m"))


def test_headers_come_from_the_environment_and_are_shown_nowhere(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SECRET_HEADER", SECRET)
    monkeypatch.setenv("TEAM", "a team")
    server.reply = lambda payload, number: (
        (200, completion(f"1 {SECRET}") if number else completion("1"), {}) if number < 2 else (403, {"e": SECRET}, {})
    )
    asked = client(server, tmp_path / "a.jsonl", headers={"api-key": "SECRET_HEADER", "X-Team": "TEAM"}, concurrency=1)
    with pytest.raises(JudgeError, match=r"403.*\*\*\*") as caught:
        ApiJudge(asked)(words(1, 4))
    headers = server.asked[0][0]
    assert (headers["api-key"], headers["X-Team"], "Authorization" in headers) == (SECRET, "a team", False)
    places = [str(caught.value), repr(asked), repr(asked.endpoint), (tmp_path / "a.jsonl").read_text()]
    assert not any(SECRET in text for text in places)


@pytest.mark.parametrize(
    ("headers", "match"),
    [
        ({"api-key": "NOT_SET"}, r"(?s)judge\.headers\.api-key.*missing.*NOT_SET"),
        ({"bad name": "SET"}, "no header of this name"),
        ({"Host": "SET"}, "no header of this name"),
        ({"Content-Length": "SET"}, "no header of this name"),
        ({"x": "TORN"}, "invalid"),
    ],
)
def test_headers_that_cannot_be_sent(server, monkeypatch, headers, match) -> None:
    monkeypatch.setenv("SET", "x")
    monkeypatch.setenv("TORN", "a\nb: c")
    with pytest.raises(ConfigError, match=match):
        client(server, headers=headers)


def test_a_header_may_replace_the_key(server, monkeypatch) -> None:
    monkeypatch.setenv("KEY", "k")
    monkeypatch.setenv("BASIC", "Basic abc")
    ApiJudge(client(server, key_env="KEY", headers={"authorization": "BASIC"}))([pair("a", "b")])
    sent = {name.lower(): value for name, value in server.asked[0][0].items()}
    assert sent["authorization"] == "Basic abc"


# -------------------------------------------------------------------------------------------------------------- waits


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "99999999999999999999"}, 0.0),
        ({"retry-after": "Wed, 99 Oct 99999 07:28:00 GMT"}, 0.0),
    ],
)
def test_a_wait_in_seconds_milliseconds_or_as_a_date(headers, seconds) -> None:
    assert retry_after(headers) == pytest.approx(seconds)


def test_a_date_is_waited_for(server) -> None:
    """The server is busy for 2 s and says until when; two attempts are enough for who waits as asked."""
    begun = time.time()

    def busy(payload, number):
        if time.time() < begun + 2.0:
            return 429, {}, {"Retry-After": formatdate(begun + 2.99, usegmt=True)}
        return 200, completion("1"), {}

    server.reply = busy
    assert ApiJudge(client(server, retries=1))([pair("a", "b")])[0].p == 1.0


# --------------------------------------------------------------------------------------------------------- time limit


def dripping(chunks: list[bytes], pause: float) -> tuple[str, socket.socket]:
    """A server that sends a reply in pieces, each soon enough and all of them too late."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        try:
            connection.recv(65536)
            for chunk in chunks:
                connection.sendall(chunk)
                time.sleep(pause)
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1", listener


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"])
def test_the_time_limit_holds_for_the_whole_request(monkeypatch, head) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url, listener = dripping([head, *[b"a"] * 200], 0.05)
    begun = time.monotonic()
    with pytest.raises(JudgeError, match=r"time limit of 0\.4 s"):
        ApiJudge(Client(Endpoint(url=url, model="m", retries=0, timeout=0.4)))([pair("a", "b")])
    listener.close()
    assert time.monotonic() - begun < 3


def test_an_interrupt_returns_at_once_and_keeps_what_arrived(server, tmp_path) -> None:
    def slow(payload, number):
        if number >= 3:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start() if number == 3 else None
            server.release.wait(30)
        return 200, completion("1"), {}

    server.reply = slow
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ApiJudge(client(server, tmp_path / "a.jsonl", concurrency=1, timeout=60.0))(words(2, 6))
    assert time.monotonic() - begun < 10
    assert len(AnswerCache(tmp_path / "a.jsonl").answers) == 3


def test_it_runs_inside_an_event_loop(server) -> None:
    async def notebook() -> float | None:
        return ApiJudge(client(server))([pair("a", "b")])[0].p

    assert asyncio.run(notebook()) == 1.0

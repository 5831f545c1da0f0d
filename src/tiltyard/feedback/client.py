"""A client of OpenAI-compatible chat completions on httpx: time limits, retries, concurrency, a cache of paid answers.

The key is read from the environment, is sent in one header, and is removed from every message. Redirects are refused,
so that it is sent to no other host.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiltyard.errors import ConfigError
from tiltyard.feedback.answers import AnswerCache, content_key
from tiltyard.feedback.verdicts import JudgeError, Usage

if TYPE_CHECKING:
    import httpx

_MAX_REPLY = 8 * 2**20  # bytes of a reply that are read
_MAX_WAIT = 120.0  # seconds before a retry, the upper limit on Retry-After too
_RETRIED = (408, 409, 429)  # and every status from 500 on


@dataclass(frozen=True)
class Endpoint:
    """The address of a server, its limits and its prices.

    Args:
        url: the base, up to and including `/v1`, or the whole address of `chat/completions`.
        model: the name it is served under.
        key_env: the environment variable with the key; empty: no key is sent.
        timeout: seconds a request may take. retries: times it is sent again after 408, 409, 429, 5xx, a lost
            connection or a reply that cannot be parsed; the wait before is `backoff`, doubled each time, or the
            server's Retry-After.
        concurrency: requests at the same time.
        price_in, price_out: of a million tokens. max_cost: no request is sent once the answers in the cache
            have cost that much; 0: no limit.
    """

    url: str
    model: str
    key_env: str = ""
    timeout: float = 60.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 4
    price_in: float = 0.0
    price_out: float = 0.0
    max_cost: float = 0.0

    @property
    def address(self) -> str:
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


class Client:
    """Sends requests and caches the answers.

    An answer is a mapping: `text`, `top` (for each generated token its alternatives as [token, log-prob]; empty where
    the server returns none), `tokens_in`, `tokens_out`, `by` (the owner and the turn that paid for it).

    A resumed run repeats the requests that the killed attempt had sent since its last checkpoint. The answers are in
    the cache, and only there is it recorded that this run paid for them: so in the turn that paid, and in no other,
    they count as calls.

    Args:
        owner: name of the run that pays; several may share a cache, and each counts what it paid.
    """

    def __init__(self, endpoint: Endpoint, cache: AnswerCache | None = None, owner: str = ""):
        self.endpoint, self.owner = endpoint, owner
        self.cache = cache or AnswerCache(None)
        self.usage = Usage()
        self.turn: int | None = None  # equal for equal requests of a resumed run, e.g. the step
        self._counted: set[str] = set()
        self._spent = self.paid().cost
        self._key = _key(endpoint.key_env)
        self._http = _http_client(endpoint)
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def complete(
        self, payloads: Sequence[Mapping[str, Any]], samples: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Returns the answer to each payload, in order; equal ones are sent once.

        Args:
            samples: numbers that distinguish repeated samples of one request.

        Raises:
            JudgeError: a request was refused, or failed more often than `retries`. Answers that came are kept.
        """
        numbers = samples or [0] * len(payloads)
        keys = [content_key(self.endpoint.address, p, n) for p, n in zip(payloads, numbers, strict=True)]
        fresh = {k: p for k, p in zip(keys, payloads, strict=True) if self.cache.get(k) is None}
        self._stop.clear()
        try:
            with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
                futures = [pool.submit(self._fetched, key, payload) for key, payload in fresh.items()]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    self._stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            self._count(keys, fresh)
        return [self.cache.answers[key] for key in keys]

    def _count(self, keys: Sequence[str], fresh: Container[str]) -> None:
        """Adds the answers that came to the usage, in the order of the questions, so that sums repeat bit for bit."""
        for key in keys:
            answer = self.cache.get(key)
            if answer is None:
                continue
            paid = key in fresh or (self.turn is not None and answer.get("by") == [self.owner, self.turn])
            if paid and key not in self._counted:
                self._counted.add(key)
                read, written = answer["tokens_in"], answer["tokens_out"]
                self.usage += Usage(1, read, written, self._price(read, written))
            else:
                self.usage.cached += 1

    def paid(self) -> Usage:
        """Returns the usage of all answers in the cache, of this process and of earlier ones."""
        every = list(self.cache.answers.values())
        read, written = (sum(int(a[k]) for a in every) for k in ("tokens_in", "tokens_out"))
        return Usage(len(every), read, written, self._price(read, written))

    def _price(self, read: int, written: int) -> float:
        return (read * self.endpoint.price_in + written * self.endpoint.price_out) / 1e6

    def _fetched(self, key: str, payload: Mapping[str, Any]) -> None:
        try:
            self._fetch(key, payload)
        except BaseException:
            self._stop.set()  # waiting threads give up; replies under way are stored when they arrive
            raise

    def _fetch(self, key: str, payload: Mapping[str, Any]) -> None:
        limit, spent = self.endpoint.max_cost, self._spent
        if limit and spent >= limit:
            raise JudgeError(
                "the judge has reached its cost limit",
                where="judge.max_cost",
                got=f"{spent:.4f}",
                expected=f"below {limit}",
                fix="raise max_cost and run again: paid answers are in the cache",
            )
        problem = "it was not sent"
        for attempt in range(self.endpoint.retries + 1):
            if self._stop.is_set():
                return
            reply, problem, wait = self._once(payload)
            answer = None
            if reply is not None:
                answer, problem = _read(reply)
            if answer is not None:
                self.cache.put(key, answer | {"by": [self.owner, self.turn]})
                with self._lock:
                    self._spent += self._price(answer["tokens_in"], answer["tokens_out"])
                return
            if attempt < self.endpoint.retries:
                with self._lock:
                    self.usage.retries += 1
                self._stop.wait(min(max(wait, self.endpoint.backoff * 2**attempt), _MAX_WAIT))
        raise JudgeError(
            "the judge did not answer",
            where=self.endpoint.address,
            got=self._clean(problem),
            expected=f"an answer within {self.endpoint.retries + 1} attempts of {self.endpoint.timeout:g} s",
            fix="run again later: stored answers are not requested again; see judge.timeout, retries, backoff",
        )

    def _once(self, payload: Mapping[str, Any]) -> tuple[bytes | None, str, float]:
        """Sends one request; returns (reply or None, problem or "", seconds to wait that the server requests)."""
        import httpx

        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "tiltyard"}
        headers["Accept-Encoding"] = "identity"  # the limit on its size is one of what is parsed
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        body = json.dumps(payload).encode()  # ASCII: any text that a model wrote can be sent
        end = time.monotonic() + self.endpoint.timeout
        try:
            with self._http.stream("POST", self.endpoint.address, content=body, headers=headers) as reply:
                body = _read_body(reply, end)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:  # no connection, time over, reply torn off
            return None, f"{type(error).__name__}: {error}", 0.0
        if reply.is_success:
            return body, "", 0.0
        problem = f"{reply.status_code} {' '.join(body[:2000].decode(errors='replace').split())[:300]}"
        if reply.status_code not in _RETRIED and reply.status_code < 500:
            raise JudgeError(
                "the judge refuses the request",
                where=self.endpoint.address,
                got=self._clean(problem),
                fix="check judge.url, judge.model, judge.key_env and judge.extra",
            )
        return None, problem, _seconds(reply.headers.get("Retry-After"))

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _key(name: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(
            "the judge's key is missing" if not key else "the judge's key is invalid",
            where="judge.key_env",
            got=f"{name} is {'empty or not set' if not key else 'set to a text with blanks or non-ASCII characters'}",
            expected="an environment variable that holds the key",
            fix=f"export {name}=..., or leave key_env empty for a server without keys",
        )
    return key


def _http_client(endpoint: Endpoint) -> httpx.Client:
    """One pool of connections for all threads; proxies are those of the environment.

    Raises:
        ConfigError: the address is no URL.
    """
    import httpx

    try:
        host = httpx.URL(endpoint.address).host
    except httpx.InvalidURL as error:
        host, problem = "", str(error)
    else:
        problem = "it names no host"
    if not host:
        raise ConfigError("the judge's address is no URL", where="judge.url", got=f"{endpoint.url!r}: {problem}")
    limits = httpx.Limits(max_connections=endpoint.concurrency)
    return httpx.Client(timeout=endpoint.timeout, limits=limits, follow_redirects=False)


def _read_body(reply: httpx.Response, end: float) -> bytes:
    """The reply's body. The time limit holds for all of it; one without end is cut, and then cannot be parsed."""
    parts, size = [], 0
    for part in reply.iter_bytes():
        parts.append(part)
        size += len(part)
        if time.monotonic() > end:
            raise TimeoutError("the reply took longer than the time limit")
        if size >= _MAX_REPLY:
            break
    return b"".join(parts)


def _seconds(value: str | None) -> float:
    """Retry-After in seconds; dates and nonsense count as nothing asked."""
    return float(value) if value and re.fullmatch(r"\d{1,6}(\.\d+)?", value.strip()) else 0.0


def _read(reply: bytes) -> tuple[dict[str, Any] | None, str]:
    """Returns (answer, problem of the reply); an answer holds only the fields that verdicts need."""
    try:
        value = json.loads(reply)
        choice = value["choices"][0]
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise TypeError("the content is no text")
        used = value.get("usage") or {}
        tokens = [int(used.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        answer = {"text": text, "top": _top(choice.get("logprobs")), "tokens_in": tokens[0], "tokens_out": tokens[1]}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        shown = reply[:200].decode(errors="replace")
        return None, f"a reply that is no chat completion ({type(error).__name__}: {error}): {shown!r}"
    return answer, ""


def _top(logprobs: Any) -> list[list[list[Any]]]:
    """Returns the alternatives of each of the first tokens; empty without any (a server may send null, or nothing)."""
    content = (logprobs or {}).get("content") or []
    rows = []
    for token in content[:64]:
        alternatives = {str(t["token"]): float(t["logprob"]) for t in (token.get("top_logprobs") or [])[:64]}
        generated = {str(token["token"]): float(token["logprob"])}
        rows.append([[text, logp] for text, logp in (generated | alternatives).items()])
    return rows

"""The address of a judge's server, the headers it is sent, and what its refusals mean."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import Field

from tiltyard.errors import ConfigError
from tiltyard.feedback.verdicts import Cause
from tiltyard.records import EXECUTION
from tiltyard.scoring.parts import Service

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_MAX_REPLY = 8 * 2**20  # bytes of a reply that are read
_PATH = "/chat/completions"
_RETRIED = (408, 409, 424, 425, 429)  # and every status from 500 on
_RESERVED = ("host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding", "cookie")
_SECRET = re.compile(r"(api[-_]?)?key|code|sig(nature)?|(access[-_]?)?token|secret|password|subscription[-_]?key")

# what bodies of refusals say, in lower case
_NO_CREDIT: tuple[str, ...] = (
    "insufficient_quota",
    "insufficient_balance",
    "insufficient balance",
    "exceeded your current quota",
    "billing",
)
_FILTER: tuple[str, ...] = (
    "content_filter",
    "content filter",
    "content management policy",
    "responsibleaipolicy",
    "moderation",
    "flagged",
)
_FILTER += ("data_inspection_failed", "usage policy", "safety system", "content policy", "content_policy")
_TOO_LONG: tuple[str, ...] = ("context_length", "context length", "maximum context", "max_model_len", "too long")
_TOO_LONG += ("too many tokens", "reduce the length", "context window", "input length", "exceeds the limit")
_SETTING: tuple[str, ...] = (
    "unsupported_parameter",
    "unsupported parameter",
    "unsupported_value",
    "unsupported value",
    "unknown parameter",
)
_SETTING += ("unrecognized request argument", "extra inputs are not permitted", "model_not_found", "invalid_api_key")


class Endpoint(Service):
    """A server of chat completions: its address, the limits of its requests, its prices and a budget.

    Retried are 408, 409, 424, 425, 429, 5xx, lost connections and replies that are no completion; the wait before is
    `backoff`, doubled each time, or the server's Retry-After. The budget counts what the file of answers holds: every
    attempt is a call, and one that was sent and brought no completion costs an estimate of its question.
    """

    url: Annotated[str, Field(description="base address of the server, as .../v1, or all of it")]
    model: Annotated[str, Field(min_length=1, description="the name it is served under")]
    price_in: Annotated[float, Field(ge=0, description="of a million tokens read"), EXECUTION] = 0.0
    price_out: Annotated[float, Field(ge=0, description="of a million tokens written"), EXECUTION] = 0.0
    max_cost: Annotated[
        float, Field(ge=0, description="stop when the stored answers have cost this much; 0: no limit"), EXECUTION
    ] = 0.0
    max_calls: Annotated[
        int, Field(ge=0, description="requests that may be sent, repeated ones included; 0: no limit"), EXECUTION
    ] = 0
    max_total_tokens: Annotated[
        int, Field(ge=0, description="stop when this many tokens were read and written; 0: no limit"), EXECUTION
    ] = 0

    @property
    def address(self) -> str:
        """The address of the requests: `/chat/completions` is added to the path where it lacks it."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        return urlunsplit(parts._replace(path=path if path.endswith(_PATH) else path + _PATH, fragment=""))


def check_address(address: str, url: str, who: str = "judge", where: str = "judge.url") -> None:
    """Checks the address before anything is sent.

    Args:
        address: of the requests. url: the setting that it comes from. who, where: for errors.

    Raises:
        ConfigError: the address is no URL, or it holds a password or key, which would be stored with the settings.
    """
    import httpx

    problem = "it names no host"
    try:
        parsed = httpx.URL(address)
        host, userinfo = parsed.host, parsed.userinfo
    except (httpx.InvalidURL, ValueError) as error:
        host, userinfo, problem = "", b"", str(error)
    if not host:
        raise ConfigError(f"the {who}'s address is no URL", where=where, got=f"{url!r}: {problem}")
    keys = [name for name, _ in parse_qsl(urlsplit(url).query) if _SECRET.fullmatch(name.lower())]
    home = where.rpartition(".")[0]
    if userinfo or keys:
        raise ConfigError(
            f"the {who}'s address holds a secret, which would be stored with the settings",
            where=where,
            got=f"the field {keys[0]!r} of its query" if keys else "a name or password before the host",
            expected="an address without it",
            fix=f"put the value into an environment variable: {home}.key_env=NAME, or {home}.headers={{HEADER: NAME}}",
        )


def secret_headers(
    key_env: str, further: Mapping[str, str], who: str = "judge", where: str = "judge"
) -> dict[str, str]:
    """Returns the headers whose values come from the environment: the key, and the further headers.

    Args:
        key_env: the variable of the key; empty: none. further: header -> variable. who, where: for errors.

    Raises:
        ConfigError: a variable is not set, or its value or a header's name cannot be sent.
    """
    headers = {}
    if key_env:
        headers["Authorization"] = f"Bearer {_variable(key_env, who, f'{where}.key_env')}"
    for name, variable in further.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or name.lower() in _RESERVED:
            raise ConfigError("no header of this name can be set", where=f"{where}.headers", got=name)
        headers = {key: value for key, value in headers.items() if key.lower() != name.lower()}
        headers[name] = _variable(variable, who, f"{where}.headers.{name}")
    return headers


def _variable(name: str, who: str, where: str) -> str:
    value, is_key = os.environ.get(name, "").strip(), where.endswith(".key_env")
    if not re.fullmatch(r"[\x21-\x7e]+" if is_key else r"[\x21-\x7e]+(?: [\x21-\x7e]+)*", value):
        what = "key" if is_key else "header"
        raise ConfigError(
            f"the {who}'s {what} is invalid" if value else f"the {who}'s {what} is missing",
            where=where,
            got=f"{name} is {'set to a text with blanks or non-ASCII characters' if value else 'empty or not set'}",
            expected=f"an environment variable that holds the {what}",
            fix=f"export {name}=..., or leave {where} empty for a server that wants none",
        )
    return value


@cache
def tls_context() -> ssl.SSLContext:
    """The certificates of this process, read once."""
    import httpx

    return httpx.create_ssl_context()


# ------------------------------------------------------------------------------------------------------------ replies


async def read_body(reply: httpx.Response) -> bytes:
    """The reply's body; one that is longer is cut, and then is no completion. One part of a gzipped body can be all."""
    parts, size = [], 0
    async for part in reply.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size >= _MAX_REPLY:
            break
    return b"".join(parts)[:_MAX_REPLY]


def retry_after(headers: Mapping[str, str]) -> float:
    """Parses Retry-After (RFC 9110, section 10.2.3) and `retry-after-ms`; returns seconds, 0 if there is none.

    A date is compared with the server's own clock where its reply has a Date.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", milliseconds):
        return float(milliseconds) / 1000
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    until, now = _timestamp(value), _timestamp(headers.get("date", ""))
    return 0.0 if until is None else max(0.0, until - (time.time() if now is None else now))


def _timestamp(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


Refused = Literal["retry", "question", "unclear", "all"]


def refusal(status: int, body: bytes) -> tuple[Refused, Cause]:
    """Returns what a status that is no success refuses: this attempt, this question, perhaps either, or all questions.

    The second is the cause of the missing verdict if it is the question's.
    """
    text = body[:4000].decode(errors="replace").lower()
    if status == 402 or (status == 429 and any(word in text for word in _NO_CREDIT)):
        return "all", "refused"
    if status in _RETRIED or status >= 500:
        return "retry", "no reply"
    if status in (400, 403, 413, 422, 451):
        if status == 400 and any(word in text for word in _SETTING):
            return "all", "refused"
        if any(word in text for word in _FILTER):
            return "question", "filtered"
        if status == 413 or any(word in text for word in _TOO_LONG):
            return "question", "too long"
        return ("all" if status == 403 else "unclear"), "refused"
    return "all", "refused"


# -------------------------------------------------------------------------------------------------------- event loops


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in a thread of its own, so that the caller may have an event loop too, and returns its result.

    An interrupt of the caller (Ctrl-C) cancels it and is raised at once.
    """
    outcome: Future[T] = Future()
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def supervised() -> T:
        task = asyncio.current_task()
        assert task is not None
        started.set_result((asyncio.get_running_loop(), task))
        return await main

    def work() -> None:
        try:
            outcome.set_result(asyncio.run(supervised()))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=work, name="judge", daemon=True)
    try:
        thread.start()
        return outcome.result()
    except BaseException:
        if not outcome.done():
            loop, task = started.result()
            loop.call_soon_threadsafe(task.cancel)
            thread.join(timeout=2.0)  # what arrived is stored
        raise

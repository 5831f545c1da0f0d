"""One JSON request by POST, with a time limit on all of it, and without secrets in what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiltyard.feedback.verdicts import Cause
from tiltyard.feedback.wire import Refused, read_body, refusal, retry_after, tls_context

if TYPE_CHECKING:
    import httpx

MAX_WAIT = 120.0  # seconds before a retry, the upper limit on Retry-After too


@dataclass(frozen=True)
class Reply:
    """The result of one attempt: the body of a success, or the problem with it.

    Attributes:
        status: of http; 0 where no reply came. sent: False where no connection was made.
        wait: seconds that the server asks to wait before the next attempt.
        refused: whether a further attempt may help, see `wire.refusal`. cause: of a refusal.
    """

    body: bytes | None = None
    problem: str = ""
    wait: float = 0.0
    refused: Refused = "retry"
    cause: Cause = "no reply"
    status: int = 0
    sent: bool = True


class Poster:
    """Sends requests to one address.

    Args:
        headers: with secret values, from `wire.secret_headers`.
        timeout: seconds that a request may take, from the connection to the last byte.
        transport: in place of the network, for tests.
    """

    def __init__(
        self,
        address: str,
        headers: Mapping[str, str],
        timeout: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.address, self.headers, self.timeout, self.transport = address, dict(headers), timeout, transport
        self._secrets = sorted({v.removeprefix("Bearer ") for v in headers.values()}, key=len, reverse=True)

    def session(self, connections: int) -> httpx.AsyncClient:
        """A client for requests at the same time, for `async with`; redirects are refused."""
        import httpx

        options: dict[str, Any] = {"transport": self.transport} if self.transport else {"verify": tls_context()}
        limits = httpx.Limits(max_connections=connections)
        return httpx.AsyncClient(timeout=self.timeout, limits=limits, follow_redirects=False, **options)

    async def send(self, http: httpx.AsyncClient, payload: Mapping[str, Any]) -> Reply:
        """Sends one request once."""
        import httpx

        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "tiltyard"}
        headers["Accept-Encoding"] = "identity"  # the limit on its size is one of what is parsed
        body = json.dumps(payload).encode()  # ASCII: any text that a model wrote can be sent
        try:
            async with asyncio.timeout(self.timeout):
                headers |= self.headers
                async with http.stream("POST", self.address, content=body, headers=headers) as reply:
                    body = await read_body(reply)
        except TimeoutError:
            return Reply(problem=f"the time limit of {self.timeout:g} s was over")
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, ValueError) as error:
            unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL)
            return Reply(problem=self.clean(f"{type(error).__name__}: {error}"), sent=not unsent)  # or torn off
        for secret in self._secrets:
            body = body.replace(secret.encode(), b"***")  # a server may echo what it was sent
        if reply.is_success:
            return Reply(body, status=reply.status_code)
        refused, cause = refusal(reply.status_code, body)
        problem = f"{reply.status_code} {' '.join(body[:2000].decode(errors='replace').split())[:300]}"
        return Reply(None, problem, retry_after(reply.headers), refused, cause, reply.status_code)

    def clean(self, text: str) -> str:
        """The text without the secrets that are sent."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

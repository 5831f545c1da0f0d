"""A program at the labelling page's door: signs in by a personal link, accepts the guidelines, gets tasks and judges.

It goes the way of people, over HTTP with a session, and is refused what they are refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import httpx

from tiltyard.errors import DataError, ModelError

TRIES = 8  # of a request that the page puts off (429, 503) or that does not arrive


class Session:
    """An annotator's session at a page.

    Args:
        url: of the page. token: of the personal link (what stands behind `#`).
        timeout: seconds for an answer.
        transport: replaces the network; for tests.

    Raises:
        DataError: the page does not know the link. ModelError: it does not answer.
    """

    def __init__(self, url: str, token: str, *, timeout: float = 60.0, transport: httpx.BaseTransport | None = None):
        self.url = url.rstrip("/")
        self._http = httpx.Client(base_url=self.url, timeout=timeout, transport=transport, follow_redirects=False)
        reply = self._sent("POST", "/in", data={"token": token})
        if reply.status_code != 303:
            self.close()
            raise DataError(
                "the page does not know this link",
                where=self.url,
                got=f"status {reply.status_code}",
                fix="make a new one: tiltyard collect people STORE NAME --new-link",
            )
        me = self._sent("GET", "/api/me").json()
        self.name, self.judged = str(me["name"]), int(me["judged"])
        self._http.headers["x-csrf-token"] = me["csrf"]
        if me["accepted"] < me["guideline"]:
            self._sent("POST", "/api/guidelines", json={"version": me["guideline"]})

    def task(self) -> dict[str, Any] | None:
        """Returns the next task (`exposure`, `kind`, `prompt`, `texts`); None where there is none left."""
        found: dict[str, Any] | None = self._sent("GET", "/api/task").json()
        return found

    def judge(self, exposure: int, verdict: Mapping[str, Any], key: str) -> None:
        """Stores a verdict about places of the page; it is on disk when this returns."""
        self._sent("POST", "/api/judgements", json={"exposure": exposure, "key": key, "verdict": dict(verdict)})
        self.judged += 1

    def close(self) -> None:
        """Closes the connection; the session stays valid at the page until it expires."""
        self._http.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sent(self, method: str, path: str, **content: Any) -> httpx.Response:
        got = ""
        for attempt in range(TRIES):
            wait = 0.05 * 2**attempt
            try:
                reply = self._http.request(method, path, **content)
            except httpx.TransportError as error:
                got = type(error).__name__
            else:
                if reply.status_code not in (429, 503):
                    return self._checked(reply, path)
                got = f"status {reply.status_code}"
                asked = reply.headers.get("retry-after", "")
                wait = max(wait, float(asked)) if asked.isdigit() else wait
            time.sleep(wait)
        raise ModelError("the labelling page does not answer", where=f"{self.url}{path}", got=got)

    def _checked(self, reply: httpx.Response, path: str) -> httpx.Response:
        if reply.is_success or path == "/in":
            return reply
        raise DataError(
            "the labelling page refused a request",
            where=f"{self.url}{path}",
            got=f"status {reply.status_code}: {reply.text[:200]}",
        )

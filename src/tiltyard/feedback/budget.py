"""The budget of a paid server (a judge, a teacher): an estimate first, and limits in calls, tokens and money.

Every attempt is a call. An attempt that was sent and brought no completion may have been billed (a server that ran into
a time limit has read the question), so it costs an estimate of its question; refusals (429, 4xx) cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tiltyard.errors import ConfigError
from tiltyard.feedback.post import Reply
from tiltyard.feedback.verdicts import JudgeError, Usage
from tiltyard.feedback.wire import Endpoint
from tiltyard.numerals import verb

BYTES_A_TOKEN = 4  # of UTF-8, in estimates


@dataclass(frozen=True)
class Forecast:
    """An estimate of what a set of questions costs.

    Attributes:
        calls: requests, without repeated ones. stored: questions that are answered already.
        tokens_in: read, about four bytes of UTF-8 a token. tokens_out: written at most; 0 if the request has no limit.
        cost: of what is read. most: with all that may be written.
    """

    calls: int = 0
    stored: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    most: float = 0.0

    def __add__(self, other: Forecast) -> Forecast:
        return Forecast(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[Any, ...]:
        return self.calls, self.stored, self.tokens_in, self.tokens_out, self.cost, self.most

    def line(self) -> str:
        """Formats the estimate for the console."""
        stored = f" ({self.stored:,} {verb(self.stored, 'is', 'are')} answered already)" if self.stored else ""
        price = f"; cost {self.cost:.4f} to {self.most:.4f}" if self.most else ""
        tokens = f"about {self.tokens_in:,} tokens read, at most {self.tokens_out:,} written"
        return f"{self.calls:,} requests{stored}, {tokens}{price}; repeated requests come on top"


@dataclass
class Budget:
    """The limits of an endpoint, and what was spent of them. `who`, `where`: of `Client`, for errors."""

    endpoint: Endpoint
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0
    who: str = "judge"
    where: str = "judge"

    @classmethod
    def of(cls, endpoint: Endpoint, paid: Usage, who: str = "judge", where: str = "judge") -> Budget:
        """The budget of an endpoint after what was paid already."""
        return cls(endpoint, paid.calls + paid.retries, paid.tokens_in + paid.tokens_out, paid.cost, who, where)

    def price(self, read: int, written: int) -> float:
        """The cost of tokens."""
        return (read * self.endpoint.price_in + written * self.endpoint.price_out) / 1e6

    def add(self, read: int, written: int) -> None:
        """Counts tokens of one reply."""
        self.tokens += read + written
        self.cost += self.price(read, written)

    def start(self) -> None:
        """Counts a call that is about to be sent.

        Raises:
            JudgeError: a limit is reached.
        """
        limits = (
            ("max_cost", "cost", f"{self.cost:.4f}", self.cost, self.endpoint.max_cost),
            ("max_calls", "call", f"{self.calls:,} requests", self.calls, self.endpoint.max_calls),
            ("max_total_tokens", "token", f"{self.tokens:,} tokens", self.tokens, self.endpoint.max_total_tokens),
        )
        for key, what, got, spent, limit in limits:
            if limit and spent >= limit:
                raise JudgeError(
                    f"the {self.who} has reached its {what} limit",
                    where=f"{self.where}.{key}",
                    got=got,
                    expected=f"below {limit:,}",
                    fix=f"raise {key} and run again: it goes on, and paid answers are in the cache",
                )
        self.calls += 1

    def forecast(self, payloads: Iterable[Mapping[str, Any]], stored: int = 0) -> Forecast:
        """Estimates the cost of requests that are to be sent."""
        calls = read = written = 0
        for payload in payloads:
            calls += 1
            read += estimated_tokens(payload)
            written += int(payload.get("max_tokens") or payload.get("max_completion_tokens") or 0)
        return Forecast(calls, stored, read, written, self.price(read, 0), self.price(read, written))

    def check(self, forecast: Forecast) -> list[str]:
        """Returns lines about an estimate and the limits that it may reach.

        Raises:
            ConfigError: the questions need more requests than may be sent.
        """
        limit = self.endpoint.max_calls
        if limit and self.calls + forecast.calls > limit:
            raise ConfigError(
                "these questions need more requests than the budget allows, and nothing was sent",
                where=f"{self.where}.max_calls",
                got=f"{forecast.calls:,} requests to send, {self.calls:,} sent before",
                expected=f"at most {limit:,} in all",
                fix=f"raise {self.where}.max_calls, or set limit for fewer items",
            )
        lines = [forecast.line()]
        tokens = self.tokens + forecast.tokens_in
        if self.endpoint.max_total_tokens and tokens > self.endpoint.max_total_tokens:
            lines.append(f"max_total_tokens={self.endpoint.max_total_tokens:,} will end this before the last item")
        if self.endpoint.max_cost and self.cost + forecast.most > self.endpoint.max_cost:
            sure = "will" if self.cost + forecast.cost > self.endpoint.max_cost else "may"
            lines.append(f"max_cost={self.endpoint.max_cost:g} {sure} end this before the last item")
        return lines


def estimated_tokens(payload: Mapping[str, Any]) -> int:
    """Estimates the tokens of a request's messages: one for four bytes of UTF-8."""
    texts = (str(message.get("content") or "") for message in payload.get("messages") or ())
    return math.ceil(sum(len(text.encode(errors="surrogatepass")) for text in texts) / BYTES_A_TOKEN)


def lost_tokens(payload: Mapping[str, Any], reply: Reply) -> int:
    """Estimates the tokens that an attempt without a completion may have been billed for."""
    billed = reply.sent and (reply.status == 0 or reply.status >= 500)
    return estimated_tokens(payload) if billed else 0

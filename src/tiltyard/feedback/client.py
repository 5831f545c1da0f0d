"""A client of OpenAI-compatible chat completions on httpx: time limits, retries, concurrency, a cache of paid answers.

The key is read from the environment, is sent in one header, and is removed from every message. Redirects are refused,
so that it is sent to no other host.

A question that has no verdict (refused, filtered, cut, unreadable) costs itself and not the run. What stops the run is
a server that refuses or fails all: a refusal of the key, the model or a setting, or more questions in a row without a
reply than are asked at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiltyard.errors import ConfigError
from tiltyard.feedback.answers import AnswerCache, content_key
from tiltyard.feedback.budget import Budget, Forecast, lost_tokens
from tiltyard.feedback.completions import Answer, no_answer, read_completion
from tiltyard.feedback.post import MAX_WAIT, Poster, Reply
from tiltyard.feedback.verdicts import Cause, JudgeError, Usage
from tiltyard.feedback.wire import Endpoint, check_address, run_async, secret_headers

if TYPE_CHECKING:
    import httpx

__all__ = ["Client", "Endpoint"]

_EMPTY_TWICE = 2  # an empty reply is sent again once

Missing = tuple[Cause, str] | None
Problem = Callable[[Answer], Missing]  # the cause and reason of an answer without a verdict; None: it has one


@dataclass
class _Call:
    """One call of `complete`: the questions that are left, and what came of the others."""

    questions: Iterator[tuple[str, Mapping[str, Any]]]
    problem: Problem
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    missing: dict[str, dict[str, Any]] = field(default_factory=dict)
    wasted: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # replies without a verdict, by question
    replies: int = 0
    unanswered: int = 0  # questions in a row that got no completion
    errors: dict[str, JudgeError] = field(default_factory=dict)  # of every question without one


class Client:
    """Sends requests and caches the answers.

    An answer is a mapping as `completions` describes it, with `by` (the owner and the turn that paid for it). One
    without a verdict has a `cause` and a `reason`; it is no answer in the cache, which only keeps what it cost.

    A resumed run repeats the requests that the killed attempt had sent since its last checkpoint. The answers are in
    the cache, and only there is it recorded that this run paid for them: so in the turn that paid, and in no other,
    they count as calls.

    Args:
        owner: name of the run that pays; several may share a cache, and each counts what it paid.
        transport: in place of the network, for tests.
        who: what the server's model is, for errors. where: the settings that hold the endpoint, for errors.

    Raises:
        ConfigError: the address, the key or a header cannot be used, or a limit on the cost has no prices.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache: AnswerCache | None = None,
        owner: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        who: str = "judge",
        where: str = "judge",
    ):
        self.endpoint, self.owner, self.who, self.where = endpoint, owner, who, where
        if endpoint.max_cost and not (endpoint.price_in or endpoint.price_out):
            raise ConfigError(
                "a limit on the cost needs prices",
                where=f"{where}.max_cost",
                got=f"{endpoint.max_cost:g}, with price_in and price_out 0",
                fix=f"set {where}.price_in and {where}.price_out, of a million tokens; or leave max_cost out",
            )
        check_address(endpoint.address, endpoint.url, who, f"{where}.url")
        self.cache = cache or AnswerCache(None)
        self.usage = Usage()
        self.served: set[str] = set()  # how the server named what answered the last questions
        self.value = 0.0  # price of all answers that were returned, stored ones too
        self.seconds = 0.0  # of the requests that were sent
        self.turn: int | None = None  # equal for equal requests of a resumed run, e.g. the step
        self._counted: set[str] = set()
        self.budget = Budget.of(endpoint, self.paid(), who, where)
        headers = secret_headers(endpoint.key_env, endpoint.headers, who, where)
        self._poster = Poster(endpoint.address, headers, endpoint.timeout, transport)

    def complete(
        self,
        payloads: Sequence[Mapping[str, Any]],
        samples: Sequence[int] | None = None,
        problem: Problem = no_answer,
    ) -> list[Answer]:
        """Returns the answer to each payload, in order; equal ones are sent once.

        Args:
            samples: numbers that distinguish repeated samples of one request.
            problem: tells an answer without a verdict; such a one is returned with its `cause` and not cached.

        Raises:
            JudgeError: the server refuses or fails all questions, or the cost limit is reached. Answers that came are
                kept.
        """
        numbers = samples or [0] * len(payloads)
        keys = [content_key(self.endpoint.address, p, n) for p, n in zip(payloads, numbers, strict=True)]
        fresh = {k: p for k, p in zip(keys, payloads, strict=True) if self.cache.get(k) is None}
        call = _Call(iter(fresh.items()), problem)
        try:
            if fresh:
                run_async(self._all(call, len(fresh)))
        finally:
            self._count(keys, fresh, call.wasted)
        new = [error for key, error in call.errors.items() if key not in self.cache.failed]
        if call.error is None and new and not call.replies:
            call.error = new[0]  # nothing shows that the server answers at all
        if call.error is not None:
            raise call.error
        answers = [self.cache.answers[key] for key in dict.fromkeys(keys) if key in self.cache.answers]
        self.served = {str(answer.get("served", "")) for answer in answers} - {""}
        self.value += sum(self.budget.price(a["tokens_in"], a["tokens_out"]) for a in answers)
        for key in call.errors:
            self.cache.spend(key, {"tokens_in": 0, "tokens_out": 0, "cause": call.missing[key]["cause"]})
        return [call.missing.get(key) or self.cache.answers[key] for key in keys]

    def keeps_to(self, payload: Mapping[str, Any], kept: Callable[[str], bool]) -> bool | None:
        """True if the server answers this request, and with a text that is `kept`; None if it does not reply at all.

        The result is an answer in the cache: what it cost counts towards `max_cost`, and it is asked once.
        """
        key = content_key(self.endpoint.address, "keeps_to", payload)
        known = self.cache.get(key)
        if known is None:
            answer, reply = run_async(self._tried(key, payload))
            if answer is None and reply.refused == "retry":
                return None
            answer = answer or {"text": "", "finish": "", "top": [], "tokens_in": 0, "tokens_out": 0, "metered": True}
            known = answer | {"kept": kept(str(answer["text"])), "by": [self.owner, self.turn]}
            self.budget.add(known["tokens_in"], known["tokens_out"])
            self.cache.put(key, known)
        return bool(known["kept"])

    def is_kept(self, payload: Mapping[str, Any]) -> bool | None:
        """The stored result of `keeps_to`; None if it was not asked yet."""
        known = self.cache.get(content_key(self.endpoint.address, "keeps_to", payload))
        return None if known is None else bool(known["kept"])

    def forecast(self, payloads: Sequence[Mapping[str, Any]], samples: Sequence[int] | None = None) -> Forecast:
        """Estimates what `complete` would send and cost, without sending anything."""
        numbers = samples or [0] * len(payloads)
        keys = [content_key(self.endpoint.address, p, n) for p, n in zip(payloads, numbers, strict=True)]
        distinct = dict(zip(keys, payloads, strict=True))
        fresh = [payload for key, payload in distinct.items() if self.cache.get(key) is None]
        return self.budget.forecast(fresh, len(distinct) - len(fresh))

    async def _tried(self, key: str, payload: Mapping[str, Any]) -> tuple[dict[str, Any] | None, Reply]:
        """The answer to one request by itself, after as many attempts as the settings allow."""
        answer, reply = None, Reply(problem="it was not sent")
        async with self._poster.session(1) as http:
            for attempt in range(self.endpoint.retries + 1):
                answer, reply = await self._once(http, key, payload)
                if answer is not None or reply.refused != "retry":
                    break
                if attempt < self.endpoint.retries:
                    await asyncio.sleep(min(max(reply.wait, self.endpoint.backoff * 2**attempt), MAX_WAIT))
        return answer, reply

    def _count(self, keys: Sequence[str], fresh: Container[str], wasted: Mapping[str, Sequence[Answer]]) -> None:
        """Adds the replies that came to the usage, in the order of the questions, so that sums repeat bit for bit."""
        for key in dict.fromkeys(keys):
            for reply in wasted.get(key, ()):
                self._add(reply)
        for key in keys:
            answer = self.cache.get(key)
            if answer is None:
                continue
            paid = key in fresh or (self.turn is not None and answer.get("by") == [self.owner, self.turn])
            if paid and key not in self._counted:
                self._counted.add(key)
                self._add(answer)
            else:
                self.usage.cached += 1

    def _add(self, reply: Answer) -> None:
        read, written = reply["tokens_in"], reply["tokens_out"]
        unmetered = int(not reply.get("metered", True))
        self.usage += Usage(1, read, written, self.budget.price(read, written), unmetered=unmetered)

    def paid(self) -> Usage:
        """Returns the usage of all requests in the cache, of this process and of earlier ones.

        `calls` counts replies, `retries` requests to which no completion came; tokens and cost are those of both.
        """
        every = [*self.cache.answers.values(), *(costs for costs in self.cache.spent if "by" in costs)]
        lost = self.cache.attempts
        read, written = (sum(int(a[k]) for a in (*every, *lost)) for k in ("tokens_in", "tokens_out"))
        cost = Budget(self.endpoint).price(read, written)
        return Usage(len(every), read, written, cost, retries=len(lost))

    # -------------------------------------------------------------------------------------------------- one call

    async def _all(self, call: _Call, count: int) -> None:
        concurrency = self.endpoint.concurrency
        async with self._poster.session(concurrency) as http:
            workers = [self._worker(http, call) for _ in range(min(concurrency, count))]
            await asyncio.gather(*workers)

    async def _worker(self, http: httpx.AsyncClient, call: _Call) -> None:
        """Sends one question after the other. After an error the others finish their request, store it, and end."""
        for key, payload in call.questions:
            try:
                await self._question(http, call, key, payload)
            except Exception as error:  # of any kind: raised when the requests under way have ended
                call.error = call.error or error
                call.stop.set()
            if call.stop.is_set():
                return

    async def _question(self, http: httpx.AsyncClient, call: _Call, key: str, payload: Mapping[str, Any]) -> None:
        answer, reply, empty = None, Reply(problem="it was not sent"), 0
        for attempt in range(self.endpoint.retries + 1):
            if call.stop.is_set():
                return
            answer, reply = await self._once(http, key, payload)
            if answer is not None:
                call.replies, call.unanswered = call.replies + 1, 0
                missing = self._kept(call, key, answer)
                empty += missing is not None and missing[0] == "empty"
                if missing is None or missing[0] != "empty" or empty == _EMPTY_TWICE:
                    return
            elif reply.refused != "retry":
                break
            if attempt < self.endpoint.retries:
                self.usage.retries += 1
                await self._pause(call, min(max(reply.wait, self.endpoint.backoff * 2**attempt), MAX_WAIT))
        if answer is None:
            self._unanswered(call, key, reply)

    def _kept(self, call: _Call, key: str, answer: dict[str, Any]) -> Missing:
        """Stores an answer, or what a reply without a verdict cost; returns what it lacks."""
        answer["by"] = [self.owner, self.turn]
        self.budget.add(answer["tokens_in"], answer["tokens_out"])
        missing = call.problem(answer)
        if missing is None:
            call.missing.pop(key, None)
            self.cache.put(key, answer)
        else:
            cause, reason = missing
            call.missing[key] = answer | {"cause": cause, "reason": reason}
            call.wasted.setdefault(key, []).append(answer)
            costs = {name: answer[name] for name in ("by", "tokens_in", "tokens_out", "metered")}
            self.cache.spend(key, costs | {"cause": cause})
        key_of_limit = "max_cost" if self.endpoint.max_cost else "max_total_tokens"
        if (self.endpoint.max_cost or self.endpoint.max_total_tokens) and not answer["metered"]:
            raise JudgeError(
                f"the {self.who}'s server reports no tokens, so a limit on the cost cannot be kept",
                where=f"{self.where}.{key_of_limit}",
                got="a reply without usage.prompt_tokens and usage.completion_tokens",
                fix=f"set {self.where}.{key_of_limit}=0 and limit the number of requests instead (max_calls, limit)",
            )
        return missing

    def _unanswered(self, call: _Call, key: str, reply: Reply) -> None:
        """Counts a question that got no completion; raises if it is not that question alone."""
        call.unanswered += reply.refused != "question"
        if reply.refused == "retry":
            attempts, seconds = self.endpoint.retries + 1, self.endpoint.timeout
            error = JudgeError(
                f"the {self.who} did not answer",
                where=self.endpoint.address,
                got=reply.problem,
                expected=f"an answer within {attempts} attempts of {seconds:g} s",
                fix=f"run again later: stored answers are not requested again; see "
                f"{self.where}.timeout, retries, backoff",
            )
        else:
            error = JudgeError(
                f"the {self.who} refuses the request",
                where=self.endpoint.address,
                got=reply.problem,
                fix=f"check {self.where}.url, model, key_env, headers and extra",
            )
        if reply.refused == "all" or call.unanswered > self.endpoint.concurrency:
            raise error
        if reply.refused != "question":
            call.errors[key] = error
        call.missing[key] = {
            "text": "",
            "top": [],
            "finish": "",
            "cause": reply.cause,
            "reason": f"{reply.cause}: {reply.problem}",
        }

    async def _pause(self, call: _Call, seconds: float) -> None:
        """Waits before a retry, at most until the call stops."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call.stop.wait(), seconds)

    async def _once(
        self, http: httpx.AsyncClient, key: str, payload: Mapping[str, Any]
    ) -> tuple[dict[str, Any] | None, Reply]:
        """Sends one request; returns its answer, if it has one, and the reply with its problem otherwise.

        Raises:
            JudgeError: a limit of the budget is reached.
        """
        self.budget.start()
        began = time.monotonic()
        reply = await self._poster.send(http, payload)
        answer, problem = (None, "") if reply.body is None else read_completion(reply.body)
        if answer is not None:
            self.seconds += time.monotonic() - began
            return answer, reply
        reply = reply if reply.body is None else Reply(problem=problem)
        lost = lost_tokens(payload, reply)
        self.budget.add(lost, 0)
        self.usage.cost += self.budget.price(lost, 0)
        self.cache.attempt(key, {"by": [self.owner, self.turn], "tokens_in": lost, "tokens_out": 0})
        return None, reply

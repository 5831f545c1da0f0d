"""A reward service: a program of the user's behind an address of http, which is sent responses and returns scores.

One request a prompt, by POST, as JSON:

    {"version": 1, "id": "p1", "prompt": [{"role": "user", "content": "..."}], "responses": ["...", "..."],
     "row": {"answer": "42"}}

`prompt` is a text where the data has plain texts; `tools` is there where the row has them; `row` are the further
fields of the prompt's row. The reply is one finite number a response, in their order, or null where the service
abstains from one:

    {"scores": [0.5, null]}
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tiltyard.errors import ConfigError, ScoringError
from tiltyard.feedback.answers import AnswerCache, content_key
from tiltyard.feedback.post import MAX_WAIT, Poster, Reply
from tiltyard.feedback.verdicts import response_text
from tiltyard.feedback.wire import check_address, run_async, secret_headers
from tiltyard.scoring.base import Cost, Scale, as_float, without_abstentions
from tiltyard.scoring.parts import Service
from tiltyard.types import Group, Prompt

if TYPE_CHECKING:
    import httpx

VERSION = 1  # of the request
_EXPECTED = '{"scores": [number or null, ...]}, one a response'


@dataclass(frozen=True)
class _Question:
    """A group and its request."""

    key: str
    group: Group
    payload: dict[str, Any]

    @property
    def where(self) -> str:
        """The row in words: where the group came from, and its prompt."""
        names = (self.group.origin, f"prompt {self.group.prompt.id}" if self.group.prompt.id else "")
        return ", ".join(name for name in names if name)


class ServiceScorer:
    """The scores of a service for the responses of each group; equal requests of one run are sent once.

    408, 409, 424, 425, 429, 5xx, lost connections, replies that come too late and replies that are no JSON are sent
    again, after `backoff` (doubled each time) or the server's Retry-After. Everything else that is no list of scores
    stops the run with the row's name: nothing becomes zero silently.

    Args:
        url: the whole address.
        service: limits of the requests, and the environment variables of the key and headers.
        name: of its metric, `reward/NAME`. where: the setting, for errors.
        cache: of the scores of this run; None: in memory.
        owner: the execution of the stage; another one asks again, for the service may have changed.
        transport: in place of the network, for tests.

    Raises:
        ConfigError: the address, the key or a header cannot be used.
    """

    scale = Scale()

    def __init__(
        self,
        url: str,
        service: Service | None = None,
        *,
        name: str = "reward",
        where: str = "reward",
        cache: AnswerCache | None = None,
        owner: str = "",
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.url, self.name, self.where, self.owner = url, name, where, owner
        self.service = service or Service()
        check_address(url, url, "reward service", f"{where}.from")
        headers = secret_headers(self.service.key_env, self.service.headers, "reward service", where)
        self.cache = cache or AnswerCache(None)
        self._poster = Poster(url, headers, self.service.timeout, transport)
        self._cost = Cost()

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the service's scores, without the responses from which it abstained.

        Raises:
            ScoringError: no reply after all attempts, a refusal, or a reply that is not one number a response.
        """
        asked = [self._question(group) for group in groups]
        fresh = {one.key: one for one in asked if one.group.responses and self.cache.get(one.key) is None}
        if fresh:
            run_async(self._all(list(fresh.values())))
        scored = [without_abstentions(one.group, self._scores(one)) for one in asked]
        return [group for group, one in zip(scored, asked, strict=True) if group.responses or not one.group.responses]

    def take_cost(self) -> Cost:
        """Requests since the last call, those that were sent again too."""
        cost, self._cost = self._cost, Cost()
        return cost

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Sends one request without responses before anything is sampled; it need not succeed, but be answered.

        Raises:
            ConfigError: nothing answers there, or not to this.
        """
        if not prompts:
            return
        reply = run_async(self._tried(self._question(Group(prompts[0], ())), asyncio.Event()))
        if reply.status and reply.status not in _WRONG_ADDRESS:
            return
        raise ConfigError(
            "the reward service cannot be reached",
            where=f"{self.where}.from",
            got=f"{self.url}: {reply.problem}",
            expected="a reply to a request by POST",
            fix="start the service, or correct the address; a key belongs into key_env",
        )

    def _question(self, group: Group) -> _Question:
        asked = {"version": VERSION, **group.prompt.to_row()}
        asked |= {"responses": [response_text(r) for r in group.responses], "row": dict(group.prompt.meta)}
        payload = json.loads(json.dumps(asked, default=str))  # a date of a parquet file becomes a text
        return _Question(content_key(self.url, self.owner, payload), group, payload)

    def _scores(self, one: _Question) -> list[float | None]:
        answer = self.cache.get(one.key)
        return list(answer["scores"]) if answer is not None and one.group.responses else []

    # -------------------------------------------------------------------------------------------------- requests

    async def _all(self, questions: Sequence[_Question]) -> None:
        remaining, stop = iter(questions), asyncio.Event()
        async with self._poster.session(self.service.concurrency) as http:
            workers = [
                self._worker(http, remaining, stop) for _ in range(min(self.service.concurrency, len(questions)))
            ]
            results = await asyncio.gather(*workers, return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    async def _worker(self, http: httpx.AsyncClient, questions: Iterator[_Question], stop: asyncio.Event) -> None:
        """Sends one question after the other; after an error the others end, and what they got is kept."""
        for one in questions:
            if stop.is_set():
                return
            try:
                reply = await self._tried(one, stop, http)
                if not stop.is_set() or reply.body is not None:
                    self.cache.put(one.key, {"scores": self._read(one, reply)})
            except BaseException:
                stop.set()
                raise

    async def _tried(self, one: _Question, stop: asyncio.Event, http: httpx.AsyncClient | None = None) -> Reply:
        """The reply to one question, after as many attempts as it takes and the settings allow."""
        if http is None:
            async with self._poster.session(1) as own:
                return await self._tried(one, stop, own)
        reply, retries = Reply(problem="it was not sent"), self.service.retries
        for attempt in range(retries + 1):
            self._cost += Cost(calls=1)
            reply = await self._poster.send(http, one.payload)
            if reply.body is not None and not _is_json(reply.body):
                shown = reply.body[:200].decode(errors="replace")
                reply = Reply(problem=f"a reply that is no JSON: {shown!r}", status=reply.status)
            if reply.body is not None or reply.refused != "retry" or stop.is_set():
                return reply
            if attempt < retries:
                wait = min(max(reply.wait, self.service.backoff * 2**attempt), MAX_WAIT)
                try:
                    await asyncio.wait_for(stop.wait(), wait)
                except TimeoutError:
                    continue
                return reply
        return reply

    # --------------------------------------------------------------------------------------------------- replies

    def _read(self, one: _Question, reply: Reply) -> list[float | None]:
        """The scores in a reply.

        Raises:
            ScoringError: there are none, or not one finite number or null a response.
        """
        if reply.body is None:
            raise self._unanswered(one, reply)
        value = json.loads(reply.body)
        scores = value.get("scores") if isinstance(value, dict) else None
        if not isinstance(scores, list):
            raise self._bad(one, reply.body[:200].decode(errors="replace"))
        if len(scores) != len(one.group.responses):
            raise self._bad(one, f"{len(scores)} scores for {len(one.group.responses)} responses")
        numbers = [None if s is None or isinstance(s, bool) else as_float(s) for s in scores]
        for k, (score, number) in enumerate(zip(scores, numbers, strict=True)):
            if isinstance(score, bool) or (number is not None and number - number != 0):
                shown = json.dumps(score)[:200]
                raise self._bad(one, f"{shown} for response {k + 1} ({one.group.responses[k].text[:80]!r})")
        return numbers

    def _bad(self, one: _Question, got: str) -> ScoringError:
        return ScoringError(
            f"the reward service '{self.name}' gave no scores",
            where=one.where,
            got=got,
            expected=_EXPECTED,
            fix="mend the service for this row; null abstains from a response, which is left out",
        )

    def _unanswered(self, one: _Question, reply: Reply) -> ScoringError:
        attempts = self.service.retries + 1
        if reply.refused == "retry":
            expected = f"an answer within {attempts} attempts of {self.service.timeout:g} s"
            fix = f"mend the service and run again, which goes on; see {self.where}.timeout, retries, backoff"
        else:
            expected, fix = "status 200", f"check {self.where}.from, key_env and headers, and the service's own log"
        return ScoringError(
            f"the reward service '{self.name}' did not score",
            where=one.where,
            got=f"{self.url}: {reply.problem}",
            expected=expected,
            fix=fix,
        )


_WRONG_ADDRESS = (301, 302, 303, 307, 308, 401, 403, 404, 405, 407)


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True

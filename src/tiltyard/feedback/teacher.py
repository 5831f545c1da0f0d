"""A served model that answers prompts, whose responses others learn from (distillation).

Requests go through the client of judges: time limits, retries, a budget, a file of paid answers. A response is text
without token ids and log-probs: the teacher's tokens are its server's, and a student reads the text in its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiltyard.errors import DataError
from tiltyard.feedback.budget import Forecast
from tiltyard.feedback.client import Client
from tiltyard.feedback.completions import Answer, is_cut, no_answer
from tiltyard.feedback.scorers import ParseFailures
from tiltyard.feedback.simulated import seed_from
from tiltyard.feedback.verdicts import Cause, Grade
from tiltyard.sampling import SampleSettings
from tiltyard.types import Group, Message, Prompt, Response, prompt_digest

_FIELDS = ("name", "tool_calls", "tool_call_id")  # of a turn that servers know; others are of training data


@dataclass
class Teacher:
    """Samples responses of a server's model.

    A request's seed depends on `seed`, the prompt's content, the stream and the number of the response, and not on the
    prompt's place in a file: a row that is added later costs its own requests alone, and equal prompts are asked once.
    Servers that ignore seeds answer as they like; what was paid for is in the client's cache.

    Args:
        client: sends the requests and stores the answers.
        sampling: temperature, top_p, max_tokens and stop are sent; `top_k` is no field of the protocol, see `extra`.
        system: a system turn put before each prompt; it is no part of the returned prompts (context distillation).
        extra: fields of the request that are added or replaced; null leaves one out.
        failures: counts the answers that did not come and stops at its limit.
    """

    client: Client
    sampling: SampleSettings
    seed: int = 0
    system: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    failures: ParseFailures = field(default_factory=ParseFailures)

    def sample(self, prompts: Sequence[Prompt], n: int, stream: int = 0) -> list[Group]:
        """Returns a group per prompt with up to n responses: those that did not come are left out and counted.

        Args:
            stream: number of independent samples of the same prompts.

        Raises:
            JudgeError: the server refuses or fails all requests, a limit of the budget is reached, or more than the
                limit of `failures` brought no response.
            DataError: a prompt with a system turn of its own where `system` is set.
        """
        payloads = self._payloads(prompts, n, stream)
        answers = self.client.complete(payloads, self._numbers(prompts, n), _problem)
        problems = [_problem(answer) for answer in answers]
        self.failures.add([Grade(None if p else 1.0, p[1] if p else "", cause=p[0] if p else "") for p in problems])
        groups = []
        for index, prompt in enumerate(prompts):
            rows = range(index * n, (index + 1) * n)
            groups.append(Group(prompt, tuple(self._response(answers[k]) for k in rows if not problems[k])))
        return groups

    def forecast(self, prompts: Sequence[Prompt], n: int, stream: int = 0) -> Forecast:
        """Estimates what `sample` would send and cost, without sending anything."""
        return self.client.forecast(self._payloads(prompts, n, stream), self._numbers(prompts, n))

    def _numbers(self, prompts: Sequence[Prompt], n: int) -> list[int]:
        """The number of each response among those of its prompt: it distinguishes requests without a seed."""
        return [k for _ in prompts for k in range(n)]

    def _response(self, answer: Answer) -> Response:
        model = str(answer.get("served") or self.client.endpoint.model)
        return Response(text=str(answer["text"]), finish="length" if is_cut(answer) else "stop", meta={"model": model})

    def _payloads(self, prompts: Sequence[Prompt], n: int, stream: int) -> list[dict[str, Any]]:
        return [self._payload(prompt, (stream, k)) for prompt in prompts for k in range(n)]

    def _payload(self, prompt: Prompt, which: tuple[int, int]) -> dict[str, Any]:
        how = self.sampling
        payload: dict[str, Any] = {
            "model": self.client.endpoint.model,
            "messages": [_turn(turn) for turn in self._turns(prompt)],
            "max_tokens": how.max_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "seed": seed_from(self.seed, prompt_digest(prompt), *which) % 2**31,
        }
        payload |= {"stop": list(how.stop)} if how.stop else {}
        payload |= {"tools": json.loads(prompt.tools)} if prompt.tools else {}
        return {key: value for key, value in (payload | dict(self.extra)).items() if value is not None}

    def _turns(self, prompt: Prompt) -> tuple[Message, ...]:
        turns = prompt.messages or (Message("user", prompt.text or ""),)
        if not self.system:
            return turns
        if any(turn.role in ("system", "developer") for turn in turns):
            raise DataError(
                "a prompt has a system turn of its own",
                where=prompt.id or self.client.where,
                got=turns[0].content[:80],
                fix=f"leave {self.client.where}.system out, or take the system turns out of the prompts",
            )
        return (Message("system", self.system), *turns)


def _turn(turn: Message) -> dict[str, Any]:
    more = turn.extra
    return {"role": turn.role, "content": turn.content} | {key: more[key] for key in _FIELDS if key in more}


def _problem(answer: Answer) -> tuple[Cause, str] | None:
    """The cause and the reason of an answer that is no response; a cut one is a response that is not finished."""
    text = str(answer["text"])
    missing = no_answer(answer)
    if missing is None and any("\ud800" <= character <= "\udfff" for character in text):
        return "unreadable", f"the reply holds half a character: {text[:80]!r}"
    return missing

"""An engine's HTTP interface: token ids in, token ids and log-probs out, and the phases of a change of weights.

Every call has a time limit of its own, so that an engine that is dead, hung or busy never hangs the trainer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tiltyard.errors import TiltyardError

OLDEST = "0.32"  # version of vLLM that has these routes


class EngineError(TiltyardError, RuntimeError):
    """vLLM does not answer, refuses, or answers with something else than was asked for."""


@dataclass(frozen=True)
class Limits:
    """Time limits of one call each, in seconds.

    Args:
        control: of a phase of a weight push. load: of loading weights. generate: of one response, its wait included.
    """

    control: float = 30.0
    load: float = 600.0
    generate: float = 600.0


@dataclass(frozen=True)
class Sampled:
    """A response of the engine. `versions`: of the weights of each token, as the engine counts them."""

    ids: tuple[int, ...]
    logps: tuple[float, ...]
    finish: str
    versions: tuple[str, ...]


class Client:
    """An engine at an address.

    Args:
        url: of `vllm serve`, without a path. model: the name that it serves the model under; "" asks for it.
    """

    def __init__(self, url: str, *, model: str = "", limits: Limits | None = None):
        self.url, self.limits = url.rstrip("/"), limits or Limits()
        self.model = model or self._served()

    def _served(self) -> str:
        models = self.get("/v1/models").get("data")
        if not isinstance(models, list) or not models or not isinstance(models[0], dict):
            fix = "start `vllm serve MODEL`, see docs/scale.md, or take another address"
            raise EngineError("this is no vLLM that serves a model", where=self.url, got=str(models)[:200], fix=fix)
        return str(models[0].get("id"))

    def get(self, path: str) -> dict[str, Any]:
        """Returns the JSON of a GET."""
        return self._answer("GET", path, None, self.limits.control)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, limit: float | None = None, plain: bool = False
    ) -> dict[str, Any]:
        """Returns the JSON of a POST, {} for an empty answer or one in plain words."""
        return self._answer("POST", path, body, limit or self.limits.control, plain)

    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None, limit: float, plain: bool = False
    ) -> dict[str, Any]:
        try:
            answer = httpx.request(method, self.url + path, json=body, timeout=limit, trust_env=False)
        except httpx.HTTPError as error:
            raise unreachable(self.url + path, error, limit) from error
        return read(answer, plain=plain)

    async def sent(self, http: httpx.AsyncClient, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the JSON of a request for a response."""
        url = f"{self.url}/inference/v1/generate"
        try:
            return read(await http.post(url, json=body, timeout=self.limits.generate))
        except httpx.HTTPError as error:
            raise unreachable(url, error, self.limits.generate) from error

    def prompt_logps(self, ids: Sequence[int]) -> list[float]:
        """Returns the log-prob of each token but the first, at temperature 1."""
        settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        body = {"token_ids": list(ids), "sampling_params": settings, "model": self.model}
        found = self.post("/inference/v1/generate", body, limit=self.limits.generate).get("prompt_logprobs")
        try:
            return [float(at[str(token)]["logprob"]) for at, token in zip(found[1:], ids[1:], strict=True)]  # type: ignore[index]
        except (TypeError, KeyError, ValueError) as error:
            raise malformed(self.url, "prompt_logprobs", found) from error


def generate(
    clients: Sequence[Client],
    prompts: Sequence[Sequence[int]],
    params: Sequence[Mapping[str, Any]],
    engines: Sequence[int],
    *,
    concurrent: int,
) -> list[Sampled]:
    """Samples one response to each of the prompts, `concurrent` at a time.

    Args:
        prompts: token ids. params: vLLM's sampling parameters, one a prompt.
        engines: index of the client that is asked, one a prompt.

    Raises:
        EngineError: what an engine refuses, or where it does not answer; the other requests are cancelled.
    """
    try:
        return asyncio.run(_generate(clients, list(zip(prompts, params, engines, strict=True)), concurrent))
    except ExceptionGroup as several:
        raise several.exceptions[0] from several  # the first one cancelled the others


async def _generate(
    clients: Sequence[Client], requests: Sequence[tuple[Sequence[int], Mapping[str, Any], int]], concurrent: int
) -> list[Sampled]:
    places = asyncio.Semaphore(concurrent)
    pool = httpx.Limits(max_connections=concurrent, max_keepalive_connections=concurrent)
    async with httpx.AsyncClient(limits=pool, trust_env=False) as http:

        async def one(ids: Sequence[int], settings: Mapping[str, Any], engine: int) -> Sampled:
            client = clients[engine]
            async with places:
                body = {"token_ids": list(ids), "sampling_params": dict(settings), "model": client.model}
                return sampled(await client.sent(http, body), client.url)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*request)) for request in requests]
    return [task.result() for task in tasks]


def sampled(answer: Mapping[str, Any], url: str) -> Sampled:
    """Returns the response of an answer.

    Raises:
        EngineError: ids or log-probs are missing, or not as many as each other.
    """
    try:
        choice = answer["choices"][0]
        ids = tuple(int(token) for token in choice["token_ids"])
        logps = tuple(float(one["logprob"]) for one in choice["logprobs"]["content"])
        spans = choice.get("weight_versions") or []
        versions = tuple(str(span["version"]) for span in spans)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise malformed(url, "a response", answer) from error
    if len(ids) != len(logps) or not ids:
        raise malformed(url, "one log-prob a token", answer)
    return Sampled(ids, logps, str(choice.get("finish_reason")), versions)


def read(answer: httpx.Response, *, plain: bool = False) -> dict[str, Any]:
    """Returns the JSON of an answer; {} for an empty or a `plain` one, which has words alone.

    Raises:
        EngineError: another status than 2xx, or no JSON.
    """
    where = str(answer.request.url)
    if answer.is_success:
        if plain or not answer.content:
            return {}
        try:
            found = answer.json()
        except ValueError as error:
            raise malformed(where, "JSON", answer.text) from error
        return found if isinstance(found, dict) else {"data": found}
    fix = {
        403: "start it with --enable-scale-out",
        404: f"start it with VLLM_SERVER_DEV_MODE=1, and take vLLM {OLDEST} or newer",
        401: "the engine wants an API key",
    }.get(answer.status_code, "read the engine's log")
    raise EngineError(
        "the engine refuses", where=where, got=f"{answer.status_code}: {answer.text[:400]}", expected="200", fix=fix
    )


def unreachable(where: str, error: httpx.HTTPError, limit: float) -> EngineError:
    """The error of an engine that does not answer."""
    slow = isinstance(error, httpx.TimeoutException)
    return EngineError(
        "the engine does not answer",
        where=where,
        got=f"nothing within {limit:g} s" if slow else f"{type(error).__name__}: {error}",
        expected="an answer",
        fix="the engine has died, hangs or is too busy: read its log, then run the same command again; it resumes",
    )


def malformed(where: str, what: str, got: object) -> EngineError:
    """The error of an answer that cannot be read."""
    fix = f"take vLLM {OLDEST} or newer, with --enable-scale-out and --logprobs-mode processed_logprobs"
    return EngineError(f"the engine's answer lacks {what}", where=where, got=str(got)[:400], fix=fix)

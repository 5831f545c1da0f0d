"""`VllmSampler`: responses from vLLM, with the interface of every sampler.

Token ids go in and come out, so that nothing is tokenised twice; log-probs are those of the distribution that was
sampled from (`processed_logprobs`).
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiltyard.distributed import processes
from tiltyard.errors import CompositionError, ConfigError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling.base import Capabilities, check_request, longest_response
from tiltyard.sampling.native import is_continuation, response_text
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.vllm.client import Client, EngineError, Limits, Sampled
from tiltyard.sampling.vllm.launch import Engine, EngineSettings, start
from tiltyard.sampling.vllm.push import probe, push, write_weights
from tiltyard.types import Finish, Group, Prompt, Response

log = logging.getLogger(__name__)
BOUNDS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}  # nats a token that the probe may differ by


class VllmSampler:
    """Samples by an engine that runs beside the trainer, see `tiltyard.sampling.base.Sampler`.

    Args:
        work: a folder for weights and the engine's log; an engine given by `url` must be able to read it.
        engine: how to start one here, or None with `url`: the address of one that runs.
        bound: nats a token that the probe may differ by; None: by the engine's dtype.
    """

    capabilities = Capabilities(logps="sampling", hidden=False, fork=False, exact=False)

    def __init__(
        self,
        work: Path,
        engine: EngineSettings | None = None,
        *,
        url: str = "",
        limits: Limits | None = None,
        bound: float | None = None,
    ):
        if (engine is None) == (not url):
            raise ConfigError(
                "an engine is either started here or runs somewhere",
                where="sampling.vllm",
                expected="python (of vLLM's environment) or url, not both",
            )
        self.work, self.settings, self.limits = work, engine, limits
        self.bound = BOUNDS.get(engine.dtype if engine else "", BOUNDS["bfloat16"]) if bound is None else bound
        self.engine: Engine | None = None
        self.url = url
        self.client: Client | None = None
        self.model: LanguageModel | None = None
        self.version: int | None = None
        self.gap = 0.0  # of the last probe

    def sync(self, model: LanguageModel, version: int) -> None:
        """Puts these weights into the engine, unless it has them; starts the engine if it does not run.

        Raises:
            EngineError: the engine cannot be started or does not answer. StaleWeights: it computes with other weights.
        """
        if self.client is not None and self.version == version and self.model is model:
            return
        self.model = model
        if processes.is_main():  # one process starts and changes the engine, all of them sample by it
            with self._explained():
                self._changed(model, version)
        url = processes.gather_objects(self.client.url if self.client else "")[0]
        if self.client is None:
            self.client = Client(url, limits=self.limits)
        self.version = version

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """An error of a call names what the engine's log names, where the engine was started here and has ended."""
        try:
            yield
        except EngineError as error:
            if self.engine is None:
                raise
            raise self.engine.explained(error) from error

    def _changed(self, model: LanguageModel, version: int) -> None:
        weights = self.work / "weights"
        if self.client is None and not self.url:
            self.client = self._started(write_weights(model, weights, version), model.chat.max_length)
            self.gap = probe(self.client, model, version, self.bound)
            return
        if self.client is None:
            self.client = ready(Client(self.url, limits=self.limits))
        self.gap = push(self.client, model, weights, version, self.bound)

    def _started(self, model: Path, context: int | None) -> Client:
        assert self.settings is not None
        settings = self.settings
        if context and settings.max_length > context:
            settings = replace(settings, max_length=context)  # vLLM refuses more than the model has
        log.info("starting vLLM; its log is %s", self.work / "vllm.log")
        self.engine = start(settings, model, self.work)
        atexit.register(self.close)
        return ready(Client(self.engine.url, model="policy", limits=self.limits))

    def close(self) -> None:
        """Ends the engine that was started here."""
        if self.engine is not None:
            atexit.unregister(self.close)
            self.engine.stop()
        self.engine, self.client, self.version = None, None, None

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seeds: Sequence[int]
    ) -> list[Group]:
        """`n` responses to each prompt.

        Raises:
            CompositionError: `sync` was not called. ConfigError: stop strings. EngineError: the engine does not answer.
        """
        if self.client is None or self.model is None:
            raise CompositionError("the sampler has no model yet", fix="call sync(model, version) first")
        check(sampling)
        check_request(prompts, n, seeds)
        rows = [prompts[i // n] for i in range(len(prompts) * n)]
        stops = sorted(self.model.chat.stop_ids)
        params = [
            parameters(sampling, longest_response(self.model, prompt, sampling), stops, seed)
            for prompt, seed in zip(rows, seeds, strict=True)
        ]
        with self._explained():
            found = self.client.generate([p.ids for p in rows], params, concurrent=sampling.max_concurrent)
        return [
            Group(prompt, tuple(self._response(prompt, one) for one in found[i * n : (i + 1) * n]), origin="sampled")
            for i, prompt in enumerate(prompts)
        ]

    def _response(self, prompt: Prompt, sampled: Sampled) -> Response:
        assert self.model is not None
        text = response_text(self.model.chat, sampled.ids, is_continuation(prompt))
        finish: Finish = "stop" if sampled.finish == "stop" else "length"
        return Response(ids=sampled.ids, text=text, logps=sampled.logps, finish=finish)


def ready(client: Client) -> Client:
    """Makes an engine ready for pushes."""
    client.post("/init_weight_transfer_engine", {"init_info": {}})
    return client


def check(sampling: SampleSettings) -> None:
    """Raises a ConfigError for stop strings, which need texts: the engine has token ids alone."""
    if sampling.stop:
        raise ConfigError(
            "an engine that is given token ids knows no stop strings",
            where="sampling.stop",
            got=repr(sampling.stop),
            expected="no stop strings with sampling.vllm",
            fix="leave them out, or sample with the toolkit's own sampler",
        )


def parameters(sampling: SampleSettings, longest: int, stops: Sequence[int], seed: int) -> dict[str, Any]:
    """vLLM's sampling parameters of one response."""
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": longest,
        "stop_token_ids": list(stops),
        "seed": seed,
        "logprobs": 0,
        "detokenize": False,
    }

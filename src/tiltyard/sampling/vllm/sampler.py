"""`VllmSampler`: responses from vLLM, with the interface of every sampler.

Token ids go in and come out, so that nothing is tokenised twice; log-probs are those of the distribution that was
sampled from (`processed_logprobs`).
"""

from __future__ import annotations

import atexit
import logging
import socket
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from tiltyard.distributed import processes
from tiltyard.distributed.parts import spread
from tiltyard.errors import CompositionError, ConfigError
from tiltyard.models.adapters import without_adapters
from tiltyard.models.language import LanguageModel
from tiltyard.models.saving import SaveDType, saved_width
from tiltyard.sampling.base import Capabilities, check_request, longest_response
from tiltyard.sampling.native import is_continuation, response_text
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.vllm.checks import check, check_label, check_logps, parameters, take, tried, tried_logits_RV
from tiltyard.sampling.vllm.client import Client, EngineError, Limits, Sampled, generate
from tiltyard.sampling.vllm.launch import Engine, EngineDType, EngineSettings, start
from tiltyard.sampling.vllm.push import adapter_rank, probe, probed, push, push_adapter, write_weights
from tiltyard.types import Finish, Group, Prompt, Response

log = logging.getLogger(__name__)
BOUNDS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}  # nats a token that the probe may differ by


class VllmSampler:
    """Samples by engines that run beside the trainer, see `tiltyard.sampling.base.Sampler`.

    Args:
        work: a folder for weights and the engine's log; engines given by `urls` must be able to read it.
        engine: how to start one here, or None with `urls`: the addresses of those that run; they share the prompts.
        bound: nats a token that the probe may differ by; None: by the engine's dtype.
        dtype: of the weights of engines at `urls`; `auto`: unknown, and they are given the width of the model's files,
            which is also that of an engine that is started here with `auto`.
    """

    capabilities = Capabilities(logps="sampling", hidden=False, fork=False, exact=False, weights="first")

    def __init__(
        self,
        work: Path,
        engine: EngineSettings | None = None,
        *,
        urls: Sequence[str] = (),
        limits: Limits | None = None,
        bound: float | None = None,
        dtype: EngineDType = "auto",
    ):
        if (engine is None) == (not urls):
            raise ConfigError(
                "an engine is either started here or runs somewhere",
                where="sampling.vllm",
                expected="python (of vLLM's environment) or url, not both",
            )
        if len(set(urls)) < len(urls):
            raise ConfigError("an engine is named twice", where="vllm.url", got=", ".join(urls))
        self.work, self.settings, self.limits = work, engine, limits
        self.folder = work / "weights"
        self.dtype, self._bound = engine.dtype if engine else dtype, bound
        self.engine: Engine | None = None
        self.urls = tuple(urls)
        self.clients: list[Client] = []
        self.model: LanguageModel | None = None
        self.version: int | None = None
        self.run = uuid.uuid4().hex[:8]  # names the weights of this run: those of an earlier one are others
        self.label = ""
        self.rank = 0  # of the adapter that engines were started for
        self._parted = False  # the model is spread over processes
        self.gap = 0.0  # of the last probe, of the engine that is farthest off

    @property
    def bound(self) -> float:
        """Nats a token that the probe may differ by."""
        return BOUNDS.get(self.dtype, BOUNDS["bfloat16"]) if self._bound is None else self._bound

    @property
    def owner(self) -> str:
        """The name of this trainer for the engines: the same command has the same. vLLM blots out paths in errors."""
        folder = self.work.resolve()
        return f"{folder.parent.name} on {socket.gethostname()} ({zlib.crc32(bytes(folder)):08x})"

    def sync(self, model: LanguageModel, version: int) -> None:
        """Puts these weights into the engines, unless they have them; starts the engine if it does not run.

        Raises:
            EngineError: an engine cannot be started or does not answer. StaleWeights: it computes with other weights.
            CheckpointError: the weights cannot be written.
        """
        if self.clients and self.version == version and self.model is model:
            return
        self.model, self._parted = model, bool(spread(model.module))
        with self._explained():
            if processes.is_main() or self._parted:
                self._changed(model, version)
        found, self.label = processes.gather_objects(([(c.url, c.model) for c in self.clients], self.label))[0]
        if not self.clients:
            self.clients = [self._client(url, model) for url, model in found]
        self.version = version

    def _client(self, url: str, model: str = "") -> Client:
        return Client(url, model=model, limits=self.limits)

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
        """The first process starts and changes the engines; all of them sample by them.

        Where the model is spread, the others take part in what needs its weights, and in nothing else.
        """
        first, main = not self.clients, processes.is_main()
        self.label = f"{version}@{self.run}"
        if first and self.settings is not None:
            self.rank = adapter_rank(model)  # then the engine holds the backbone, and adapters alone are pushed
            base = without_adapters(model) if self.rank else model
            if self.dtype == "auto":  # vLLM's own choice makes float32 models half as wide
                self.dtype = engine_dtype(model)
            written = self._written(base, version)
            if main:
                self._start(written, model.chat.max_length)
        elif first and main:
            found = [self._client(url) for url in self.urls]
            for client in found:
                take(client, self.owner)
            self.clients = found
        if self.rank:
            written = write_weights(model, self.folder, version, adapter=True)
            if main:
                push_adapter(self.clients, written, self.label)
        elif not first or self.settings is None:
            written = self._written(model, version)
            if main:
                push(self.clients, written, self.label)
        own = probed(model)
        self.gap = max((probe(client, own, version, self.bound) for client in self.clients if main), default=0.0)
        if first:
            self._check_logps(model)

    def _check_logps(self, model: LanguageModel) -> None:
        """Compares the log-probs of a few tokens that each engine samples with the trainer's."""
        found = [tried(client, model.vocab_size) for client in self.clients]
        if self._parted:  # the others have no clients yet
            found = processes.gather_objects(found)[0]
        logits = [tried_logits_RV(model, one.ids) for one in found]
        for client, one, logits_RV in zip(self.clients, found, logits, strict=False):
            check_logps(client, one, logits_RV, self.bound)

    def _written(self, model: LanguageModel, version: int) -> Path:
        """The folder of a model's weights, as wide as the engines' own: narrower ones would lose small updates."""
        width: SaveDType = "source" if self.dtype == "auto" else self.dtype
        return write_weights(model, self.folder, version, dtype=width)

    def _start(self, written: Path, context: int | None) -> None:
        """Starts an engine on these weights."""
        assert self.settings is not None
        settings = replace(self.settings, lora_rank=self.rank, dtype=self.dtype)
        if context and settings.max_length > context:
            settings = replace(settings, max_length=context)  # vLLM refuses more than the model has
        log.info("starting vLLM; its log is %s", self.work / "vllm.log")
        self.engine = start(settings, written, self.work)
        atexit.register(self.close)
        client = self._client(self.engine.url)
        take(client, self.owner)
        client.post("/update_weight_version", {"new_version": self.label})
        self.clients = [client]

    def close(self) -> None:
        """Ends the engine that was started here; others may be taken by another trainer."""
        if self.engine is not None:
            atexit.unregister(self.close)
            self.engine.stop()
        elif processes.is_main():
            for client in self.clients:
                with suppress(EngineError):
                    info = {"owner": self.owner, "release": True}
                    client.post("/init_weight_transfer_engine", {"init_info": info}, limit=5.0)
        self.engine, self.clients, self.version = None, [], None

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seeds: Sequence[int]
    ) -> list[Group]:
        """`n` responses to each prompt; a prompt's come from one engine.

        Raises:
            CompositionError: `sync` was not called. ConfigError: stop strings. EngineError: an engine does not answer,
                or answers with other weights than those that were pushed.
        """
        if not self.clients or self.model is None:
            raise CompositionError("the sampler has no model yet", fix="call sync(model, version) first")
        check(sampling)
        check_request(prompts, n, seeds)
        rows = [prompts[i // n] for i in range(len(prompts) * n)]
        stops = sorted(self.model.chat.stop_ids)
        params = [
            parameters(sampling, longest_response(self.model, prompt, sampling), stops, seed)
            for prompt, seed in zip(rows, seeds, strict=True)
        ]
        engines = [(i // n + processes.rank()) % len(self.clients) for i in range(len(rows))]
        with self._explained():
            ids = [p.ids for p in rows]
            found = generate(self.clients, ids, params, engines, concurrent=sampling.max_concurrent)
        for one, engine in zip(found, engines, strict=True):
            check_label(one, self.label, self.clients[engine])
        return [
            Group(prompt, tuple(self._response(prompt, one) for one in found[i * n : (i + 1) * n]), origin="sampled")
            for i, prompt in enumerate(prompts)
        ]

    def _response(self, prompt: Prompt, sampled: Sampled) -> Response:
        assert self.model is not None
        text = response_text(self.model.chat, sampled.ids, is_continuation(prompt))
        finish: Finish = "stop" if sampled.finish == "stop" else "length"
        return Response(ids=sampled.ids, text=text, logps=sampled.logps, finish=finish)


def engine_dtype(model: LanguageModel) -> EngineDType:
    """The width of the model's files; float32 for what vLLM does not compute in."""
    found: dict[torch.dtype, EngineDType] = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
    return found.get(saved_width(model, "source"), "float32")

"""A sampler at work in a thread of its own, with a copy of the weights, while the trainer goes on.

Torch, the kernels and an engine's HTTP calls release Python's lock, so that the two overlap on two cores. What a call
returns depends on its weights, prompts and seeds alone, never on time: calls are worked off in their order.
"""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tiltyard.distributed import processes
from tiltyard.distributed.parts import copy_of, gathered
from tiltyard.models.language import LanguageModel
from tiltyard.sampling.base import Capabilities, Sampler
from tiltyard.sampling.native import NativeSampler
from tiltyard.sampling.settings import SampleSettings
from tiltyard.types import Group, Prompt

PATIENCE = 10.0  # seconds that `close` waits for a call under way to end


@dataclass(frozen=True)
class _Call:
    version: int
    weights: list[Tensor]
    prompts: Sequence[Prompt]
    n: int
    sampling: SampleSettings
    seeds: Sequence[int]
    found: Future[list[Group]]


class Background:
    """Makes a sampler's calls in a thread, each with the weights that the model had when it was asked for.

    In memory: one more copy of the trained weights, and one of every version that waits; frozen weights are shared,
    unless they are spread over processes. Processes that do not need the weights (`Capabilities.weights`) have no copy.
    Where the sampler computes in this process on a CPU, the thread takes half of torch's threads, and the trainer has
    the others.

    Args:
        inner: the sampler. stale: whether its responses are learnt from by later weights, so that their log-probs are
            not the trainer's and its hidden states mean nothing.
    """

    def __init__(self, inner: Sampler, stale: bool = True):
        self.inner, self.stale = inner, stale
        self._everywhere = inner.capabilities.weights == "every"
        self.twin: LanguageModel | None = None
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._newest: tuple[int, list[Tensor]] = (-1, [])
        self._loaded = -1  # version of the twin's weights
        self._closing = False
        self._threads = 0  # torch's, before some were taken; 0: none were

    @property
    def capabilities(self) -> Capabilities:
        """The sampler's own, but for what stale weights change."""
        own = self.inner.capabilities
        return own._replace(hidden=False, exact=False) if self.stale else own

    @property
    def _computes(self) -> bool:
        """False where this process leaves the weights to the first."""
        return self._everywhere or processes.is_main()

    def submit(
        self,
        model: LanguageModel,
        version: int,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SampleSettings,
        seeds: Sequence[int],
    ) -> Future[list[Group]]:
        """Returns at once a future of `n` responses to each prompt, sampled from the weights as they are now."""
        if self._thread is None or version != self._newest[0]:
            with gathered(model.module):
                if self._thread is None:
                    self._start(model)
                self._newest = version, [p.detach().clone() for p in model.parameters()] if self._computes else []
        call = _Call(version, self._newest[1], prompts, n, sampling, seeds, Future())
        self._calls.put(call)
        return call.found

    def sync(self, model: LanguageModel, version: int) -> None:
        """As the sampler itself; for calls that do not wait."""
        self.inner.sync(model, version)

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seeds: Sequence[int]
    ) -> list[Group]:
        """As the sampler itself, in the caller's thread."""
        return self.inner.generate(prompts, n, sampling, seeds)

    def close(self) -> None:
        """Ends the thread: a call under way breaks off, those that wait are dropped."""
        self._closing = True
        self._calls.put(None)
        self.inner.close()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        if self._threads:
            torch.set_num_threads(self._threads)
        self._thread, self.twin, self._threads = None, None, 0
        self._newest, self._loaded = (-1, []), -1

    def _start(self, model: LanguageModel) -> None:
        self.twin = twin_of(model) if self._computes else _without_weights(model)
        self._closing, self._calls = False, queue.SimpleQueue()
        group, threads = processes.new_group(), torch.get_num_threads()
        own = 0
        if self.stale and threads > 1 and model.device.type == "cpu" and isinstance(self.inner, NativeSampler):
            own, self._threads = threads // 2, threads
            torch.set_num_threads(threads - own)
        self._thread = threading.Thread(target=self._work, args=(group, own), name="sampler", daemon=True)
        self._thread.start()

    def _work(self, group: object, threads: int) -> None:
        processes.use_group(group)
        if threads:
            torch.set_num_threads(threads)  # of this thread alone
        while (call := self._calls.get()) is not None:
            try:
                call.found.set_result(self._sampled(call))
            except BaseException as error:  # the trainer raises it
                call.found.set_exception(error)

    def _sampled(self, call: _Call) -> list[Group]:
        if self._closing or self.twin is None:
            raise CancelledError
        if call.version != self._loaded and self._computes:
            with torch.no_grad():
                for own, new in zip(_trained(self.twin), call.weights, strict=True):
                    own.copy_(new)
            self._loaded = call.version
        self.inner.sync(self.twin, call.version)
        return self.inner.generate(call.prompts, call.n, call.sampling, call.seeds)


def _without_weights(model: LanguageModel) -> LanguageModel:
    """A model of a chat alone: a tokenizer must not be used by two threads, and nothing can be computed with it."""
    other = copy.copy(model)
    other.chat, other.module = copy.deepcopy(model.chat), cast(Any, nn.Module())
    return other


def twin_of(model: LanguageModel) -> LanguageModel:
    """Returns a model with trained weights of its own, which computes the same; frozen weights are shared.

    Of one that is spread over processes, which must be gathered, the twin is an ordinary model with all weights.
    """
    frozen = {id(p): p for p in model.module.parameters() if not p.requires_grad}
    twin = _without_weights(model)
    twin.module = cast(Any, copy_of(model.module, frozen))
    twin.module.eval()
    return twin


def _trained(model: LanguageModel) -> list[Tensor]:
    return [p.detach() for p in model.parameters()]

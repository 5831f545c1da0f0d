"""Particles: responses to the same prompt that advance together, a token at a time, and are resampled on the way.

All particles of a prompt share its computed keys and values at the start. Resampling moves rows of the cache: what an
ancestor has computed is copied, and nothing is computed again. A particle that has ended takes no further step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tiltyard.models.language import LanguageModel
from tiltyard.sampling.base import longest_response
from tiltyard.sampling.distribution import sample_from_logits
from tiltyard.sampling.engine import Engine, NextToken
from tiltyard.sampling.native import (
    check_finite,
    is_continuation,
    response_text,
    text_before_stop,
)
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.streams import UniformStream
from tiltyard.sampling.ways import engine_for, way_of
from tiltyard.types import Finish, Prompt, Response

EngineOf = Callable[[Sequence[Prompt], int, int, int], Engine]  # (prompts, n, rows at a time, capacity)


def prompts_together(model: LanguageModel, particles: int, settings: SampleSettings) -> int:
    """Number of prompts whose particles can advance together."""
    return 1 if way_of(model) == "equal" else max(1, settings.max_concurrent // particles)


class Particles:
    """K particles to each of some prompts: particle r belongs to prompt r // K.

    Args:
        model: sampled from, untruncated, at the settings' temperature. prompts: encoded; as many as
            `prompts_together`.
        seeds: one a particle.
        followers: other models that read the same tokens, e.g. a value model: functions that make their engines.

    Attributes:
        ids, logps: of each particle so far; log-probs are the model's. finish: why it ended, None while it runs.
        root: index of its first ancestor. running: the particle of each slot, in the order of `next`.
        next: logits and hidden states of each slot's next token; `followed`: the same of each follower.
        tokens: that were sampled for each prompt.

    Raises:
        DataError: a prompt that is not encoded or fills the model's context.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        k: int,
        settings: SampleSettings,
        seeds: Sequence[int],
        followers: Sequence[EngineOf] = (),
    ):
        self.model, self.prompts, self.k, self.settings = model, prompts, k, settings
        self.limits = [longest_response(model, prompt, settings) for prompt in prompts]
        n = len(prompts) * k
        self.uniforms = UniformStream(seeds, model.device)
        self.ids: list[list[int]] = [[] for _ in range(n)]
        self.logps: list[list[float]] = [[] for _ in range(n)]
        self.finish: list[Finish | None] = [None] * n
        self.root, self.running = list(range(n)), list(range(n))
        self.tokens = [0] * len(prompts)
        self.stop_ids = frozenset(model.chat.stop_ids)
        capacity = max(len(p.ids) + limit for p, limit in zip(prompts, self.limits, strict=True))
        makers = [lambda *size: engine_for(model, *size), *followers]
        self.engines = [make(prompts, k, n, capacity) for make in makers]
        self.next, *self.followed = [_started(engine, n) for engine in self.engines]
        self._tokens_S = torch.zeros(0, dtype=torch.long)

    def sample(self) -> tuple[Tensor, Tensor]:
        """One token of the model for each slot, (token [S], log-prob [S]); nothing changes yet."""
        device = self.next.logits.device
        rows = torch.tensor(self.running, device=device)
        lengths = torch.tensor([len(self.ids[r]) for r in self.running], device=device)
        uniform = self.uniforms.uniform_R(rows, lengths)
        return self.sample_with(self.next.logits, uniform)

    def sample_with(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """One token a row for these logits [S, V] and uniform numbers [S], (token, log-prob)."""
        tokens, logps = sample_from_logits(logits, self.settings.temperature, uniform, self.model.backend)
        check_finite(logps, lambda i: (self.prompts[self.running[i] // self.k].id, len(self.ids[self.running[i]])))
        return tokens, logps

    def extend(self, tokens_S: Tensor, logps_S: Tensor) -> list[int]:
        """Appends a token to each running particle; returns those that have ended with it."""
        self._tokens_S = tokens_S
        ended = []
        for r, token, logp in zip(self.running, tokens_S.tolist(), logps_S.tolist(), strict=True):
            self.ids[r].append(token)
            self.logps[r].append(logp)
            self.tokens[r // self.k] += 1
            if token in self.stop_ids or self._stops(r):
                self.finish[r] = "stop"
            elif len(self.ids[r]) >= self.limits[r // self.k]:
                self.finish[r] = "length"
            if self.finish[r] is not None:
                ended.append(r)
        return ended

    def _stops(self, r: int) -> bool:
        """True if a stop string has just been completed."""
        plain, stop = is_continuation(self.prompts[r // self.k]), self.settings.stop
        return bool(stop) and text_before_stop(self.model.chat, self.ids[r], stop, plain) is not None

    @torch.no_grad()
    def advance(self) -> None:
        """Computes the next token's logits of the particles that have not ended."""
        keep = [s for s, r in enumerate(self.running) if self.finish[r] is None]
        if len(keep) < len(self.running):
            # the last ones fill the gaps, so that few rows of the cache move
            gaps = [s for s, r in enumerate(self.running[: len(keep)]) if self.finish[r] is not None]
            rows = list(range(len(keep)))
            for gap, s in zip(gaps, [s for s in keep if s >= len(keep)], strict=True):
                rows[gap] = s
            self._reorder(rows)
            self._tokens_S = self._tokens_S[torch.tensor(rows, dtype=torch.long, device=self._tokens_S.device)]
            self.running = [self.running[s] for s in rows]
        if self.running:
            self.next, *self.followed = [engine.step(self._tokens_S) for engine in self.engines]

    def resample(self, ancestors: Sequence[int]) -> None:
        """Particle r becomes a copy of particle `ancestors[r]`, which belongs to the same prompt.

        To be called after `advance`. Few rows move where survivors stay in their place (`ancestors[r] == r`).
        """
        slot = {r: s for s, r in enumerate(self.running)}
        for name in ("ids", "logps", "finish", "root"):
            values = getattr(self, name)
            setattr(self, name, [list(values[a]) if isinstance(values[a], list) else values[a] for a in ancestors])
        running = [r for r in range(len(ancestors)) if self.finish[r] is None]
        placed = {slot[r]: r for r in running if ancestors[r] == r and slot[r] < len(running)}
        rest = iter([r for r in running if r not in set(placed.values())])
        self.running = [placed[s] if s in placed else next(rest) for s in range(len(running))]
        rows = [slot[ancestors[r]] for r in self.running]
        if rows != list(range(len(slot))):
            self._reorder(rows)
            at = torch.tensor(rows, dtype=torch.long, device=self.next.logits.device)
            self.next = _rows(self.next, at)
            self.followed = [_rows(one, at) for one in self.followed]

    def _reorder(self, rows: Sequence[int]) -> None:
        for engine in self.engines:
            engine.reorder(torch.tensor(rows, dtype=torch.long, device=self.next.logits.device))

    def response(self, r: int, more: tuple[int, ...] = ()) -> Response:
        """Particle r as a response, with further tokens if some are given; `finish` is `length` while it runs."""
        ids = (*self.ids[r], *more)
        plain, stop = is_continuation(self.prompts[r // self.k]), self.settings.stop
        text = text_before_stop(self.model.chat, ids, stop, plain) if stop else None
        finish: Finish = "stop" if text is not None or (ids and ids[-1] in self.stop_ids) else "length"
        text = response_text(self.model.chat, ids, plain) if text is None else text
        return Response(ids, text, None if more else tuple(self.logps[r]), finish=finish)


@torch.no_grad()
def _started(engine: Engine, rows: int) -> NextToken:
    """All rows, in the slots of their own numbers."""
    found: list[NextToken] = []
    started = 0
    while started < rows:
        found.append(engine.start(range(started, rows), list(range(started, rows))))
        started += len(found[-1].logits)
    hidden = [one.hidden for one in found]
    whole = None if any(h is None for h in hidden) else torch.cat([h for h in hidden if h is not None])
    return NextToken(torch.cat([one.logits for one in found]), whole)


def _rows(one: NextToken, rows: Tensor) -> NextToken:
    return NextToken(one.logits[rows], None if one.hidden is None else one.hidden[rows])

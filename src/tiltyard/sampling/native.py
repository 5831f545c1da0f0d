"""The in-process sampler: any decoder, no other engine, the trainer's own weights.

Each prompt is computed once, packed with the others, and shared by its n answers; then all answers advance together,
one token a step, and rows that have ended are dropped from the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tiltyard.errors import ConfigError, DataError
from tiltyard.models.forest import plant
from tiltyard.models.language import LanguageModel
from tiltyard.sampling.cache import SlotCache
from tiltyard.sampling.law import draw, law_NV
from tiltyard.sampling.settings import Draws, SampleSettings, draws_for
from tiltyard.types import Finish, Group, Prompt, Response

Stream = Callable[[int, int], None]  # (row, token id), called as tokens are drawn


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    n: int = 1,
    settings: SampleSettings | None = None,
    *,
    draws: Draws | None = None,
    seed: int = 0,
    stream: Stream | None = None,
) -> list[Group]:
    """`n` answers to each prompt, with log-probs under the sampling law and the reason each ended.

    Args:
        prompts: encoded prompts (`data.Chat.encode_prompt`).
        draws: the uniform numbers to use; without them `seed` makes them.

    Raises:
        DataError: a prompt that was not encoded or leaves no room in the model's context.
        ConfigError: `n` below 1, or draws made for other numbers of prompts or answers.
    """
    settings = settings or SampleSettings()
    if n < 1:
        raise ConfigError("n answers a prompt are too few", where="n", got=n, expected="at least 1")
    draws = draws or draws_for(seed, len(prompts), n)
    if (draws.n, len(draws.index)) != (n, len(prompts)):
        raise ConfigError(
            "the draws were made for others",
            got=f"{len(draws.index)} prompts, {draws.n} answers each",
            expected=f"{len(prompts)} prompts, {n} answers each",
        )
    room = [_room(model, prompt, settings) for prompt in prompts]
    uniforms = draws.uniforms(settings.max_tokens).to(model.device)
    copies = min(n, settings.max_rows)
    at_once = settings.max_rows // copies  # prompts; more than one only where all answers of each fit
    responses: list[Response] = []
    training = model.module.training
    model.module.eval()
    try:
        for first in range(0, len(prompts), at_once):
            part = slice(first, first + at_once)
            for row in range(first * n, (first + 1) * n, copies):
                here = min(copies, (first + 1) * n - row)
                rows = _Rows(model, prompts[part], room[part], here, settings, uniforms[row:], stream, row)
                responses.extend(rows.run())
    finally:
        model.module.train(training)
    return [Group(prompt, tuple(responses[i * n : (i + 1) * n]), origin="sampled") for i, prompt in enumerate(prompts)]


def _room(model: LanguageModel, prompt: Prompt, settings: SampleSettings) -> int:
    """Tokens that an answer to this prompt may have."""
    if not prompt.ids:
        raise DataError("prompt has no token ids", where=prompt.id, fix="encode it with Chat.encode_prompt")
    limit = model.chat.max_length
    room = settings.max_tokens if limit is None else min(settings.max_tokens, limit - len(prompt.ids))
    if room < 1:
        raise DataError(
            "the prompt leaves no room for an answer in the model's context",
            where=prompt.id,
            got=f"{len(prompt.ids)} tokens",
            expected=f"fewer than {limit}",
            fix="set max_prompt lower, or too_long=truncate",
        )
    return room


@dataclass
class _Engine:
    """How one more token is computed: packed prefill and slot cache, or transformers' own cache with left padding."""

    model: LanguageModel
    prompts: Sequence[Prompt]
    n: int
    capacity: int

    def __post_init__(self) -> None:
        self.mask = torch.zeros(0, 0, dtype=torch.long)  # of the padded road: [rows, tokens so far]
        self.past: Any = None  # and its cache, which the model makes

    def prefill(self) -> Tensor:
        if not self.model.packed:
            return self._prefill_plain()
        forest = plant([Group(p, ()) for p in self.prompts], self.model.device)
        self.cache = SlotCache(forest, self.n, self.capacity)
        hidden = self.model.hidden_T(forest, cache=self.cache)[forest.prompt_last_G]
        return self.model.logits(hidden).repeat_interleave(self.n, 0)

    def step(self, tokens: Tensor) -> Tensor:
        if not self.model.packed:
            return self._step_plain(tokens)
        with self.model.autocast():
            out = self.model.backbone(
                input_ids=tokens[:, None],
                position_ids=self.cache.length_N[:, None],
                use_cache=False,
                cache=self.cache,
            )
        self.cache.advance()
        return self.model.logits(out.last_hidden_state[:, 0])

    def keep(self, rows: Tensor) -> None:
        if self.model.packed:
            self.cache.keep(rows)
            return
        self.mask = self.mask[rows]
        self.past.reorder_cache(rows)

    def _prefill_plain(self) -> Tensor:
        longest = max(len(p.ids) for p in self.prompts)
        ids = torch.zeros(len(self.prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(self.prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(self.prompts):
            ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, longest - len(prompt.ids) :] = 1
        ids, mask = ids.repeat_interleave(self.n, 0), mask.repeat_interleave(self.n, 0)
        self.mask = mask.to(self.model.device)
        return self._plain(ids.to(self.model.device))

    def _step_plain(self, tokens: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        return self._plain(tokens[:, None])

    def _plain(self, ids: Tensor) -> Tensor:
        position = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        known = inspect.signature(self.model.module.forward).parameters
        extra = {"position_ids": position} if "position_ids" in known else {}
        with self.model.plain(), self.model.autocast():
            out = self.model.module(
                input_ids=ids, attention_mask=self.mask, past_key_values=self.past, use_cache=True, **extra
            )
        self.past = out.past_key_values
        logits = out.logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float()


def _closed_up(left: Tensor) -> Tensor:
    """Which old row each new row is: rows that go on keep their places, the last of them fill the gaps."""
    kept = int(left.sum())
    rows = torch.arange(kept, device=left.device)
    rows[~left[:kept]] = torch.nonzero(left[kept:]).flatten() + kept
    return rows


class _Rows:
    """The answers decoded together: who is still running, what each has drawn. Row r answers prompt r // n."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        room: Sequence[int],
        n: int,
        settings: SampleSettings,
        uniforms: Tensor,
        stream: Stream | None,
        first_row: int,
    ):
        self.model, self.prompts, self.n, self.settings = model, prompts, n, settings
        self.uniforms, self.stream, self.first_row = uniforms, stream, first_row
        rows = len(prompts) * n
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.logps: list[list[float]] = [[] for _ in range(rows)]
        self.finish: list[Finish] = ["length"] * rows
        self.cut: dict[int, str] = {}
        self.room = [r for r in room for _ in range(n)]
        # a token has a byte at least, so a stop string that has just ended lies within so many tokens of the end
        self.reach = max((len(s.encode()) for s in settings.stop), default=0) + 4

    def run(self) -> list[Response]:
        stops = torch.tensor(sorted(self.model.chat.stop_ids), device=self.model.device)
        capacity = max(len(p.ids) + room for p, room in zip(self.prompts, self.room[:: self.n], strict=True))
        engine = _Engine(self.model, self.prompts, self.n, capacity)
        running = torch.arange(len(self.ids), device=self.model.device)
        room = torch.tensor(self.room, device=self.model.device)
        logits = engine.prefill()
        for t in range(self.settings.max_tokens):
            tokens, logps = draw(law_NV(logits, self.settings), self.uniforms[running, t])
            ended = torch.isin(tokens, stops)
            self._record(running.tolist(), tokens.tolist(), logps.tolist(), ended)
            left = ~ended & (room[running] > t + 1)
            if not bool(left.any()):
                break
            rows = _closed_up(left)
            if len(rows) < len(running):
                engine.keep(rows)
                running, tokens = running[rows], tokens[rows]
            logits = engine.step(tokens)
        return self._responses()

    def _record(self, rows: list[int], tokens: list[int], logps: list[float], ended: Tensor) -> None:
        stopped = ended.tolist()
        for i, (row, token, logp) in enumerate(zip(rows, tokens, logps, strict=True)):
            self.ids[row].append(token)
            self.logps[row].append(logp)
            if self.stream is not None:
                self.stream(self.first_row + row, token)
            if stopped[i]:
                self.finish[row] = "stop"
            elif self.settings.stop and (text := self._up_to_stop(row)) is not None:
                self.finish[row], self.cut[row] = "stop", text
                ended[i] = True

    def _up_to_stop(self, row: int) -> str | None:
        """The text before the first stop string, or None if there is none. Text is looked at, so a string may begin
        or end inside a token, and half characters match nothing."""
        stop, ids = self.settings.stop, self.ids[row]
        end = self.model.chat.decode(ids[-self.reach :])
        if not any(s in end for s in stop):
            return None
        text = self.model.chat.decode(ids)
        places = [text.find(s) for s in stop if s in text]
        return text[: min(places)] if places else None

    def _responses(self) -> list[Response]:
        return [
            Response(
                ids=tuple(ids),
                text=self.cut[row] if row in self.cut else self.model.chat.decode(ids),
                logps=tuple(self.logps[row]),
                finish=self.finish[row],
            )
            for row, ids in enumerate(self.ids)
        ]

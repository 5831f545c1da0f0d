"""The in-process sampler: any decoder, no other engine, the trainer's own weights.

Each prompt is computed once, packed with others, and shared by its n answers. The answers that run advance together,
one token a step; one that has ended makes room for the next at once, and no step is spent on it (`engine`, `slots`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tiltyard.errors import ConfigError, DataError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling.engine import Engine, Packed, Padded, Said, can_use_decoder
from tiltyard.sampling.law import draw, draw_whole, law_NV
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
    uniforms = draws.uniforms(settings.max_tokens).unflatten(0, (len(prompts), n))
    # the longest first: neighbours are of similar length, and what is begun last is soon done
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    training = model.module.training
    model.module.eval()
    try:
        rows = (
            _Rows(model, prompts, order, room, n, settings, uniforms[order].flatten(0, 1), stream) if prompts else None
        )
        responses = rows.run() if rows else []
    finally:
        model.module.train(training)
    place = {i: p for p, i in enumerate(order)}
    return [
        Group(prompt, tuple(responses[place[i] * n : (place[i] + 1) * n]), origin="sampled")
        for i, prompt in enumerate(prompts)
    ]


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


def _closed_up(left: Tensor) -> Tensor:
    """Which old row each new row is: rows that go on keep their places, the last of them fill the gaps."""
    kept = int(left.sum())
    rows = torch.arange(kept, device=left.device)
    rows[~left[:kept]] = torch.nonzero(left[kept:]).flatten() + kept
    return rows


class _Rows:
    """All answers of a call: who waits, who runs in which slot, what each has drawn.

    Row r answers prompt `order[r // n]`.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        order: Sequence[int],
        room: Sequence[int],
        n: int,
        settings: SampleSettings,
        uniforms: Tensor,
        stream: Stream | None,
    ):
        self.model, self.settings, self.uniforms, self.stream = model, settings, uniforms.to(model.device), stream
        self.order, self.n = order, n
        prompts, room = [prompts[i] for i in order], [room[i] for i in order]
        rows = len(prompts) * n
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.logps: list[list[float]] = [[] for _ in range(rows)]
        self.finish: list[Finish] = ["length"] * rows
        self.cut: dict[int, str] = {}
        self.hidden: list[tuple[list[int], Tensor]] = []  # (rows, what predicted their next token), as they were drawn
        # a token has a byte at least, so a stop string that has just ended lies within so many tokens of the end
        self.reach = max((len(s.encode()) for s in settings.stop), default=0) + 4
        self.room = torch.tensor(room, device=model.device).repeat_interleave(n)
        self.stops = torch.tensor(sorted(model.chat.stop_ids), device=model.device)
        at_once = min(settings.max_concurrent, rows)
        capacity = max(len(p.ids) + r for p, r in zip(prompts, room, strict=True))
        self.engine: Engine = (
            Packed(model, prompts, n, at_once, capacity, can_use_decoder(model))
            if model.packed
            else Padded(model, prompts, n, at_once)
        )
        self.begun = 0  # rows that have had a slot: the first so many
        self.row_S = torch.zeros(0, dtype=torch.long, device=model.device)  # by slot: its row,
        self.drawn_S, self.last_S = self.row_S.clone(), self.row_S.clone()  # tokens drawn so far, the last of them

    def run(self) -> list[Response]:
        ended = self._begin([])
        while len(self.row_S):
            if ended:
                self._close_up(ended)
                if not len(self.row_S):
                    break
            said = self.engine.step(self.last_S)
            over = ~self._draw(said, torch.arange(len(self.row_S), device=self.model.device))
            ended = self._begin(torch.nonzero(over).flatten().tolist() if bool(over.any()) else [])
        return self._responses()

    def _begin(self, ended: list[int]) -> list[int]:
        """Lets rows that wait take the slots of those that have ended, and new ones; returns the slots left over."""
        while (first := self.begun) < len(self.ids) and (room := self.engine.room(len(self.row_S), len(ended))):
            free = [*ended, *range(len(self.row_S), len(self.row_S) + room - len(ended))]
            rows = range(first, min(first + room, len(self.ids)))
            said = self.engine.take(rows, free)
            taken, self.begun = len(said.logits), first + len(said.logits)
            slots = torch.tensor(free[:taken], device=self.model.device)
            more = self.row_S.new_zeros(max(0, taken - len(ended)))
            self.row_S, self.drawn_S, self.last_S = (
                torch.cat([x, more]) for x in (self.row_S, self.drawn_S, self.last_S)
            )
            self.row_S[slots] = torch.arange(first, self.begun, device=self.model.device)
            self.drawn_S[slots] = 0
            ended = [*slots[~self._draw(said, slots)].tolist(), *ended[taken:]]
        return ended

    def _close_up(self, ended: list[int]) -> None:
        left = torch.ones(len(self.row_S), dtype=torch.bool, device=self.model.device)
        left[ended] = False
        rows = _closed_up(left)
        self.engine.keep(rows)
        self.row_S, self.drawn_S, self.last_S = self.row_S[rows], self.drawn_S[rows], self.last_S[rows]

    def _draw(self, said: Said, slots: Tensor) -> Tensor:
        """One token for each of these slots; says of each whether its answer goes on."""
        rows, drawn, settings = self.row_S[slots], self.drawn_S[slots], self.settings
        uniform = self.uniforms[rows, drawn]
        if settings.whole:
            tokens, logps = draw_whole(said.logits, settings.temperature, uniform, self.model.backend)
        else:
            tokens, logps = draw(law_NV(said.logits, settings), uniform)
        ended = torch.isin(tokens, self.stops)
        places = rows.tolist()
        if settings.keep_hidden and said.hidden is not None:
            self.hidden.append((places, said.hidden))
        self._record(places, tokens.tolist(), logps.tolist(), ended)
        self.last_S[slots], self.drawn_S[slots] = tokens, drawn + 1
        return ~ended & (self.room[rows] > drawn + 1)

    def _record(self, rows: list[int], tokens: list[int], logps: list[float], ended: Tensor) -> None:
        stopped = ended.tolist()
        for i, (row, token, logp) in enumerate(zip(rows, tokens, logps, strict=True)):
            self.ids[row].append(token)
            self.logps[row].append(logp)
            if self.stream is not None:
                self.stream(self.order[row // self.n] * self.n + row % self.n, token)
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

    def _hidden(self) -> list[Tensor | None]:
        """Each row's hidden states, in the order of its tokens."""
        if not self.hidden:
            return [None] * len(self.ids)
        order = torch.tensor([row for rows, _ in self.hidden for row in rows]).argsort(stable=True)
        hidden = torch.cat([part for _, part in self.hidden])[order.to(self.model.device)]
        return list(hidden.split([len(ids) for ids in self.ids]))

    def _responses(self) -> list[Response]:
        return [
            Response(
                ids=tuple(ids),
                text=self.cut[row] if row in self.cut else self.model.chat.decode(ids),
                logps=tuple(self.logps[row]),
                finish=self.finish[row],
                hidden=hidden,
            )
            for row, (ids, hidden) in enumerate(zip(self.ids, self._hidden(), strict=True))
        ]

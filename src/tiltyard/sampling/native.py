"""The in-process sampler: any decoder, no other engine, the trainer's own weights.

Each prompt is computed once, packed with others, and shared by its n responses. The responses that run advance
together, one token a step; one that has ended gives its slot to the next at once, and no step is spent on it
(`engine`, `slots`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

import torch
from torch import Tensor

from tiltyard.data.chat import Chat
from tiltyard.distributed.parts import gathered
from tiltyard.errors import CompositionError, NonFiniteError
from tiltyard.models.language import LanguageModel
from tiltyard.sampling.base import Capabilities, check_request, longest_response
from tiltyard.sampling.distribution import probs_NV, sample_from_logits, sample_from_probs
from tiltyard.sampling.engine import Engine, NextToken
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.streams import UniformStream, response_seeds
from tiltyard.sampling.ways import engine_for, way_of
from tiltyard.types import Finish, Group, Prompt, Response

_MARGIN = 8  # characters and tokens beyond the longest stop string: half characters, and what a template strips
Stream = Callable[[int, int], None]  # (row, token id), called for every token as it is sampled


class NativeSampler:
    """Samples in this process from the trainer's own weights, see `tiltyard.sampling.base.Sampler`.

    Args:
        model: sampled from until `sync` names another one.
    """

    def __init__(self, model: LanguageModel | None = None):
        self.model = model
        self._ended = threading.Event()

    @property
    def capabilities(self) -> Capabilities:
        """Hidden states are kept by packed models only."""
        hidden = self.model is None or way_of(self.model) == "packed"
        return Capabilities(logps="sampling", hidden=hidden, fork=True)

    def sync(self, model: LanguageModel, version: int) -> None:  # noqa: ARG002 - the weights are the trainer's own
        """Samples from this model from now on, with whatever weights it has at the time."""
        self.model = model
        self._ended.clear()

    def close(self) -> None:
        """A call under way in another thread breaks off at its next token."""
        self._ended.set()

    def generate(
        self, prompts: Sequence[Prompt], n: int, sampling: SampleSettings, seeds: Sequence[int]
    ) -> list[Group]:
        """`n` responses to each prompt; see `sample` for the errors."""
        if self.model is None:
            raise CompositionError("the sampler has no model yet", fix="call sync(model, version) first")
        with gathered(self.model.module):  # a token would gather every block
            return sample(self.model, prompts, n, sampling, seeds=seeds, ended=self._ended)


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    n: int = 1,
    settings: SampleSettings | None = None,
    *,
    seeds: Sequence[int] | None = None,
    seed: int = 0,
    stream: Stream | None = None,
    ended: threading.Event | None = None,
) -> list[Group]:
    """`n` responses to each prompt, with log-probs under the sampling distribution and the reason each ended.

    Args:
        prompts: encoded prompts (`data.Chat.encode_prompt`).
        seeds: one a response, all responses of a prompt together; without them `seed` makes them.
        stream: called with (row, token id) for every token as it is sampled; row i * n + k is response k of prompt i.
        ended: once it is set the call breaks off with a CancelledError.

    Raises:
        DataError: a prompt that was not encoded or fills the model's context.
        ConfigError: `n` below 1, or not one seed a response.
        NonFiniteError: the model's logits are NaN or infinite.
    """
    settings = settings or SampleSettings()
    seeds = response_seeds(range(len(prompts)), n, seed) if seeds is None else seeds
    check_request(prompts, n, seeds)
    limits = [longest_response(model, prompt, settings) for prompt in prompts]
    # the longest first: neighbours are of similar length, and what starts last is soon done
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    training = model.module.training
    model.module.eval()
    try:
        decoding = _Decoding(model, prompts, order, limits, n, settings, seeds, stream, ended) if prompts else None
        responses = decoding.run() if decoding else []
    finally:
        model.module.train(training)
    position = {i: p for p, i in enumerate(order)}
    return [
        Group(prompt, tuple(responses[position[i] * n : (position[i] + 1) * n]), origin="sampled")
        for i, prompt in enumerate(prompts)
    ]


def check_finite(numbers: Tensor, place: Callable[[int], tuple[str, int]]) -> None:
    """Checks that the next token has a distribution: what is drawn would mean nothing otherwise.

    Args:
        numbers: log-probs [N] of the sampled tokens, or logits [N, V]. place: (prompt, tokens so far) of a row.

    Raises:
        NonFiniteError: NaN or infinite ones.
    """
    fine_N = numbers.isfinite() if numbers.ndim == 1 else numbers.amax(-1).isfinite()  # -inf excludes a token
    if bool(fine_N.all()):
        return
    where, tokens = place(int(torch.nonzero(~fine_N)[0]))
    raise NonFiniteError(
        "the model's probabilities of the next token are not finite",
        where=where,
        got=f"NaN or infinite logits after {tokens} tokens of the response",
        expected="finite logits",
        fix="the weights are damaged, their training diverged, or they overflow: take an earlier checkpoint, or "
        "dtype=float32",
    )


def is_continuation(prompt: Prompt) -> bool:
    """True for a plain text that the response continues, rather than a turn that it answers."""
    return prompt.messages is None and prompt.text is not None


def response_text(chat: Chat, ids: Sequence[int], plain: bool) -> str:
    """The text of a response so far. `plain`: it continues a text."""
    return chat.decode(ids, turn=False) if plain else chat.decode(ids)


def text_before_stop(chat: Chat, ids: Sequence[int], stop: Sequence[str], plain: bool) -> str | None:
    """The text before the first stop string, or None if there is none.

    The text is searched, so a string may begin or end inside a token, and half characters match nothing.
    """
    # a string that has just ended lies in the last tokens: they are decoded alone where they have enough text
    enough, end = max(map(len, stop), default=0) + _MARGIN, ""
    reach = enough
    while reach < 2 * len(ids) + _MARGIN and len(end) < enough:
        end = chat.decode(ids[-reach:])
        reach *= 2
    if len(end) >= enough and not any(s in end for s in stop):
        return None
    text = response_text(chat, ids, plain)
    starts = [text.find(s) for s in stop if s in text]
    return text[: min(starts)] if starts else None


def _compacted(running: Tensor) -> Tensor:
    """Old index of each new row: rows that go on keep their places, the last of them fill the gaps."""
    count = int(running.sum())
    rows = torch.arange(count, device=running.device)
    rows[~running[:count]] = torch.nonzero(running[count:]).flatten() + count
    return rows


class _Decoding:
    """All responses of a call: which wait, which run in which slot, and the tokens of each so far.

    Row r is a response to prompt `order[r // n]`.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        order: Sequence[int],
        limits: Sequence[int],
        n: int,
        settings: SampleSettings,
        seeds: Sequence[int],
        stream: Stream | None,
        broken_off: threading.Event | None,
    ):
        self.model, self.settings, self.stream, self.broken_off = model, settings, stream, broken_off
        self.order, self.n = order, n
        self.uniforms = UniformStream([seeds[i * n + k] for i in order for k in range(n)], model.device)
        self.prompts = prompts = [prompts[i] for i in order]
        limits = [limits[i] for i in order]
        rows = len(prompts) * n
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.logps: list[list[float]] = [[] for _ in range(rows)]
        self.finish: list[Finish] = ["length"] * rows
        self.cut: dict[int, str] = {}
        self.hidden: list[tuple[list[int], Tensor]] = []  # (rows, states that predicted their next token)
        self.plain = [is_continuation(p) for p in prompts]
        self.limit_R = torch.tensor(limits, device=model.device).repeat_interleave(n)
        self.stops = torch.tensor(sorted(model.chat.stop_ids), device=model.device)
        concurrent = min(settings.max_concurrent, rows)
        capacity = max(len(p.ids) + limit for p, limit in zip(prompts, limits, strict=True))
        self.engine: Engine = engine_for(model, prompts, n, concurrent, capacity)
        self.started = 0  # rows that have had a slot: the first ones
        self.row_S = torch.zeros(0, dtype=torch.long, device=model.device)  # by slot: its row,
        self.length_S, self.last_S = self.row_S.clone(), self.row_S.clone()  # tokens sampled so far, the last of them

    def run(self) -> list[Response]:
        """Samples until every response has ended."""
        ended = self._start_rows([])
        while len(self.row_S):
            if self.broken_off is not None and self.broken_off.is_set():
                raise CancelledError
            if ended:
                self._compact(ended)
                if not len(self.row_S):
                    break
            next_token = self.engine.step(self.last_S)
            over = ~self._sample_tokens(next_token, torch.arange(len(self.row_S), device=self.model.device))
            ended = self._start_rows(torch.nonzero(over).flatten().tolist() if bool(over.any()) else [])
        return self._responses()

    def _start_rows(self, ended: list[int]) -> list[int]:
        """Starts waiting rows in the slots of those that have ended, and in new ones; returns the slots left over."""
        while (first := self.started) < len(self.ids) and (
            count := self.engine.free_slots(len(self.row_S), len(ended))
        ):
            free = [*ended, *range(len(self.row_S), len(self.row_S) + count - len(ended))]
            rows = range(first, min(first + count, len(self.ids)))
            next_token = self.engine.start(rows, free)
            taken, self.started = len(next_token.logits), first + len(next_token.logits)
            slots = torch.tensor(free[:taken], device=self.model.device)
            more = self.row_S.new_zeros(max(0, taken - len(ended)))
            self.row_S, self.length_S, self.last_S = (
                torch.cat([x, more]) for x in (self.row_S, self.length_S, self.last_S)
            )
            self.row_S[slots] = torch.arange(first, self.started, device=self.model.device)
            self.length_S[slots] = 0
            ended = [*slots[~self._sample_tokens(next_token, slots)].tolist(), *ended[taken:]]
        return ended

    def _compact(self, ended: list[int]) -> None:
        running = torch.ones(len(self.row_S), dtype=torch.bool, device=self.model.device)
        running[ended] = False
        rows = _compacted(running)
        self.engine.reorder(rows)
        self.row_S, self.length_S, self.last_S = self.row_S[rows], self.length_S[rows], self.last_S[rows]

    def _sample_tokens(self, next_token: NextToken, slots: Tensor) -> Tensor:
        """One token for each of these slots; returns whether each response goes on."""
        rows, lengths, settings = self.row_S[slots], self.length_S[slots], self.settings
        uniform = self.uniforms.uniform_R(rows, lengths)
        if settings.is_untruncated:
            tokens, logps = sample_from_logits(next_token.logits, settings.temperature, uniform, self.model.backend)
        else:
            tokens, logps = sample_from_probs(probs_NV(next_token.logits, settings), uniform)
        self._check_finite(next_token.logits if settings.temperature == 0 else logps, rows)
        ended = torch.isin(tokens, self.stops)
        row_list = rows.tolist()
        if settings.keep_hidden and next_token.hidden is not None:
            self.hidden.append((row_list, next_token.hidden))
        self._record(row_list, tokens.tolist(), logps.tolist(), ended)
        self.last_S[slots], self.length_S[slots] = tokens, lengths + 1
        return ~ended & (self.limit_R[rows] > lengths + 1)

    def _check_finite(self, numbers: Tensor, rows: Tensor) -> None:
        def place(index: int) -> tuple[str, int]:
            row = int(rows[index])
            return self.prompts[row // self.n].id or f"prompt {self.order[row // self.n] + 1}", len(self.ids[row])

        check_finite(numbers, place)

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

    def _text(self, row: int) -> str:
        return response_text(self.model.chat, self.ids[row], self.plain[row // self.n])

    def _up_to_stop(self, row: int) -> str | None:
        return text_before_stop(self.model.chat, self.ids[row], self.settings.stop, self.plain[row // self.n])

    def _hidden(self) -> list[Tensor | None]:
        """Each row's hidden states, in the order of its tokens."""
        if not self.hidden:
            return [None] * len(self.ids)
        order = torch.tensor([row for rows, _ in self.hidden for row in rows]).argsort(stable=True)
        states = torch.cat([part for _, part in self.hidden])
        self.hidden.clear()  # before they are copied once more
        states = states[order.to(self.model.device)]
        return list(states.split([len(ids) for ids in self.ids]))

    def _responses(self) -> list[Response]:
        return [
            Response(
                ids=tuple(ids),
                text=self.cut[row] if row in self.cut else self._text(row),
                logps=tuple(self.logps[row]),
                finish=self.finish[row],
                hidden=hidden,
            )
            for row, (ids, hidden) in enumerate(zip(self.ids, self._hidden(), strict=True))
        ]

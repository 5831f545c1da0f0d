"""Ways of sampling from a model, and the trial that picks the fastest of them that gives the model's numbers.

| way | |
|---|---|
| `packed` | prompts computed packed, responses in slots: `engine.Packed` |
| `batched` | transformers' own cache and left padding; new rows start when all others have ended |
| `equal` | the same without padding: only rows whose prompts have one length (responses to one prompt) share a batch |
| `recomputed` | no cache: every token computes its row again, right-padded as in the training pass |

A model is tried once, over prompts of different length, some tokens, and a row that ends: the logits of each way must
be those of the row alone without a cache, in float32 where the weights are.
Known to differ: layers that are computed more than once a token (packed:
their keys take one place), decoders that number positions by the cache (BART's), linear attention that reads the
padding (MiniMax), caches that cannot be reordered (Mamba, RWKV).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import inf, isnan
from typing import Literal

import torch
from torch import Tensor

from tiltyard.distributed.parts import gathered
from tiltyard.errors import ModelError
from tiltyard.models.language import LanguageModel
from tiltyard.models.padding import FAILURES, LONG, differ, reach, trial_ids
from tiltyard.sampling.engine import Engine, Packed, can_use_decoder
from tiltyard.sampling.padded import Padded, Recomputed, wide
from tiltyard.types import Prompt

Way = Literal["packed", "batched", "equal", "recomputed"]
WAYS: dict[Way, str] = {
    "packed": "packed",
    "batched": "rows of any length together, with a cache",
    "equal": "prompts of different length one after another: beside each other their numbers would differ",
    "recomputed": "without a cache: every token computes its row again, which is slow for long responses",
}
_TRIAL = threading.Lock()  # a trial changes the model's attention for a while, and a sampler's thread may begin one
STEPS = 6  # tokens of the trial; more where a window or block is short
PACKED_LONG = 16  # tokens of the longest prompt, of a model that was packed and padded alike when it was loaded


def engine_for(model: LanguageModel, prompts: Sequence[Prompt], n: int, at_once: int, capacity: int) -> Engine:
    """The engine of a model, in the way that `way_of` has found.

    Args: as for `Packed`; `at_once` rows at a time.
    """
    return _engine(way_of(model), model, prompts, n, at_once, capacity)


def way_of(model: LanguageModel) -> Way:
    """Returns the way in which a model is sampled from; it is tried at the first call.

    Raises:
        ModelError: in none of the ways the model gives the numbers that it gives to a row alone.
    """
    if not model.decoding:
        with _TRIAL:
            if not model.decoding:
                _try(model)
    return model.decoding  # type: ignore[return-value]


def _try(model: LanguageModel) -> None:
    training = model.module.training
    model.module.eval()
    try:
        with torch.no_grad(), gathered(model.module):
            can_use_decoder(model)  # may change the model's backend, which the context below would undo
        # what differs by bfloat16's rounding alone is no reason for a slower way
        with gathered(model.module), model.in_float32():
            model.decoding = _tried(model)
    finally:
        model.module.train(training)


def decoding_note(model: LanguageModel) -> str:
    """A line about a model that is sampled from more slowly than others, or ""; raises as `way_of` does."""
    way = way_of(model)
    return "" if way == "packed" or (way == "batched" and not model.packed) else f"sampled {WAYS[way]}"


@torch.no_grad()
def _tried(model: LanguageModel) -> Way:
    config = model.module.config.get_text_config()
    short = reach(config) if reach(config) <= LONG else 0
    steps = max(STEPS, short + 3)
    long = max(LONG, reach(config) + 5)
    found: dict[str, str] = {}
    for way in WAYS:
        if way == "packed" and not model.packed:
            continue
        lengths = (PACKED_LONG if way == "packed" else long, 5, 5, 3)
        rows = trial_ids(config, model.device, *(n + steps for n in lengths))
        expected = [_alone(model, row)[-steps - 1 :] for row in rows]
        if not all(x.isfinite().all() for x in expected):
            return way  # weights that are no numbers are reported elsewhere
        prompts = [Prompt(ids=tuple(row[:-steps].tolist())) for row in rows]
        try:
            engine = _engine(way, model, prompts, 1, len(prompts), max(map(len, rows)) + 1)
            gap = _gap(engine, rows, steps, expected, model.dtype == "bfloat16")
            if not gap:
                return way
            found[way] = f"its numbers differ by {gap:.2g} of their scale"
        except FAILURES as error:
            found[way] = f"{type(error).__name__}: {str(error)[:80]}"
    raise ModelError(
        "this architecture cannot be sampled from: no way of decoding gives the numbers of a row alone",
        where=type(model.module).__name__,
        got="; ".join(f"{way}: {why}" for way, why in found.items()),
        expected="a decoder whose next token depends on its own row only",
        fix="use another model, or train it with a method that samples nothing",
    )


def _engine(way: Way, model: LanguageModel, prompts: Sequence[Prompt], n: int, at_once: int, capacity: int) -> Engine:
    if way == "packed":
        return Packed(model, prompts, n, at_once, capacity, can_use_decoder(model))
    if way == "recomputed":
        return Recomputed(model, prompts, n, at_once)
    return Padded(model, prompts, n, at_once, unequal=way == "batched")


def _alone(model: LanguageModel, row: Tensor) -> Tensor:
    with model.plain(), model.autocast():
        return wide(model.module(input_ids=row[None], use_cache=False).logits[0])


def _gap(engine: Engine, rows: Sequence[Tensor], steps: int, expected: Sequence[Tensor], half: bool) -> float:
    """Feeds the rows to an engine, as many at a time as it starts; the first of them ends in the middle."""
    worst, first = 0.0, 0
    while first < len(rows):
        logits = engine.start(range(first, len(rows)), range(len(rows) - first)).logits
        running = list(range(first, first + len(logits)))
        first += len(logits)
        for step in range(steps + 1):
            if step:
                logits = engine.step(torch.stack([rows[i][len(rows[i]) - steps + step - 1] for i in running])).logits
            gaps = [differ(logits[at], expected[i][step], half) for at, i in enumerate(running)]
            worst = max(worst, *(inf if isnan(gap) else gap for gap in gaps))
            if step == steps // 2 and len(running) > 1:
                order = [len(running) - 1, *range(1, len(running) - 1)]  # the last row takes the place of the first
                engine.reorder(torch.tensor(order, device=logits.device))
                running = [running[i] for i in order]
            elif step == steps // 2:  # of a single row nothing is left to reorder, but its cache must allow it
                engine.reorder(torch.tensor([0], device=logits.device))
    return worst

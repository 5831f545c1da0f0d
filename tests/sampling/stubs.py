"""A chat for models of 64 tokens, and the sampler's oracle: no cache, no batch, numpy's inverse CDF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models import tiny
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings
from tiltyard.types import Prompt


@dataclass
class Letters:
    """Token i is a letter; some tokens end an answer."""

    stop_ids: frozenset[int] = frozenset({2, 9, 17, 33, 41})
    max_length: int | None = None
    pad_id: int = 2
    decoded: list[int] = field(default_factory=list)

    def decode(self, ids: Sequence[int], *, turn: bool = True) -> str:
        self.decoded.append(len(ids))
        return "".join(chr(0x41 + i) for i in ids if i not in self.stop_ids)


def model(family: str = "llama", dtype: Any = "float64", **chat: Any) -> LanguageModel:
    # in float64 transformers' Bloom gives NaN beside left padding
    made = tiny.language(family, dtype if family != "bloom" else "float32")
    made.chat = Letters(**chat)
    return made


def prompts(*lengths: int) -> list[Prompt]:
    return [tiny.group(n, seed=i).prompt for i, n in enumerate(lengths)]


def law(logits: np.ndarray, settings: SampleSettings) -> np.ndarray:
    """Written from the definition: temperature, then the k largest, then the smallest set of mass top_p."""
    if settings.temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    p = np.exp((logits - logits.max()) / settings.temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = len(p) if not settings.top_k else settings.top_k
    p[order[kept:]] = 0
    p /= p.sum()
    if settings.top_p < 1:
        mass, kept = 0.0, 0
        while mass < settings.top_p and kept < len(p):
            mass += p[order[kept]]
            kept += 1
        p[order[kept:]] = 0
    return p / p.sum()


def answer(
    module: Any, chat: Letters, prompt: Prompt, uniforms: np.ndarray, settings: SampleSettings
) -> tuple[list[int], list[float], str]:
    """One answer: ids, log-probs, finish reason."""
    ids: list[int] = []
    logps: list[float] = []
    room = settings.max_tokens if chat.max_length is None else chat.max_length - len(prompt.ids)
    for u in uniforms[: min(settings.max_tokens, room)]:
        with torch.no_grad():
            logits = module(input_ids=torch.tensor([list(prompt.ids) + ids]), use_cache=False).logits[0, -1]
        p = law(logits.double().numpy(), settings)
        cdf = p.cumsum()
        token = int(np.searchsorted(cdf, u * cdf[-1], side="right"))
        ids.append(token)
        logps.append(float(np.log(p[token])))
        if token in chat.stop_ids:
            return ids, logps, "stop"
    return ids, logps, "length"

"""Small sets of judged groups."""

from __future__ import annotations

import numpy as np

from tiltyard.types import Group, Message, Preference, Prompt, Response

TEXTS = {"sft": "Paris.", "dpo": "It is Paris, the capital of France.", "ppo": "France's capital is Paris."}


def group(
    k: int = 0,
    models: tuple[str, ...] = ("sft", "dpo"),
    *,
    annotator: str = "ada",
    ratings: tuple[float, ...] | None = None,
    ranks: tuple[int, ...] | None = (1, 2),
    prompt: Prompt | None = None,
    **meta: object,
) -> Group:
    """A judged group about question `k`."""
    asked = prompt or Prompt(messages=(Message("user", f"Question {k}?"),), id=f"q{k}", meta={"source": "own"})
    words = {m: TEXTS.get(m, m + "." * (k * (ord(m[-1]) - 40) % 5)) for m in models}  # of different lengths
    responses = tuple(Response(text=f"{words[m]} ({k})", meta={"policy": m}) for m in models)
    preference = Preference(
        ranks=None if ratings is not None else ranks,
        ratings=ratings,
        annotator=annotator,
        when="2026-11-01T10:00:00+00:00",
        guideline="2",
        prompt=asked.id,
        meta=meta,
    )
    return Group(asked, responses, ratings, preference)


def battles(
    n: int, strengths: dict[str, float], seed: int = 0, *, annotators: int = 1, wrong: float = 0.0
) -> list[Group]:
    """n comparisons of models drawn evenly, won by Bradley and Terry's chances; each by every annotator."""
    rng = np.random.default_rng(seed)
    names = sorted(strengths)
    found = []
    for k in range(n):
        a, b = rng.choice(len(names), 2, replace=False)
        p = 1 / (1 + np.exp(strengths[names[b]] - strengths[names[a]]))
        truth = rng.random() < p
        for j in range(annotators):
            won = truth != (rng.random() < wrong)
            ranks = (1, 2) if won else (2, 1)
            shown = [0, 1] if rng.random() < 0.5 else [1, 0]
            found.append(group(k, (names[a], names[b]), annotator=f"a{j}", ranks=ranks, shown=shown))
    return found

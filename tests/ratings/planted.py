"""Battles with known ratings."""

import numpy as np

from tiltyard.stats.ratings.battles import Battles, battles_of


def repeated(rows: list[tuple[str, str, str, int]]) -> Battles:
    """(a, b, outcome, times) as battles."""
    a, b, outcome = zip(*[row[:3] for row in rows for _ in range(row[3])], strict=True)
    return battles_of(a, b, outcome)


def strengths(models: int, spread: float = 0.5) -> np.ndarray:
    """Ratings at even distances with mean 0, the first the best."""
    return spread * (np.arange(models)[::-1] - (models - 1) / 2)


def planted(
    rng: np.random.Generator, n: int, models: int, ties: float = 0.0, each: int = 1, lengths: bool = False
) -> Battles:
    """n battles of `strengths`, a share of them ties; every prompt has `each` of one pair, half of them copies."""
    prompts = n // each
    a = rng.integers(0, models, prompts)
    b = (a + rng.integers(1, models, prompts)) % models
    a, b, prompt = (np.repeat(x, each) for x in (a, b, np.arange(prompts)))
    copied = rng.random(n) < 0.5
    u, tied = (np.where(copied, rng.random(prompts)[prompt], rng.random(n)) for _ in range(2))
    d = strengths(models)[a] - strengths(models)[b]
    outcome = np.where(tied < ties, "tie", np.where(u < 1 / (1 + np.exp(-d)), "a", "b"))
    names = np.array([f"m{i}" for i in range(models)])
    return battles_of(
        names[a], names[b], outcome, prompt=prompt.tolist(), lengths=rng.normal(100, 30, (n, 2)) if lengths else None
    )


def limit(models: int, ties: float) -> Battles:
    """Every outcome of every pair with its probability under `planted` as weight: its fit is what many battles find."""
    rows = []
    for i in range(models):
        for j in range(i + 1, models):
            p = 1 / (1 + np.exp(strengths(models)[j] - strengths(models)[i]))
            rows += [(f"m{i}", f"m{j}", o, w) for o, w in (("a", p * (1 - ties)), ("b", (1 - p) * (1 - ties)))]
            rows += [(f"m{i}", f"m{j}", "tie", ties)] if ties else []
    a, b, outcome, weight = zip(*rows, strict=True)
    return battles_of(a, b, outcome, weight=weight)

"""The alarms of training on a policy that is no language model, and costs seconds: it chooses a manner of answering.

    python -m benchmarks.alarms_manners [--seeds 20] [--first 0] [--json FILE]

For each kind of prompt of the embedded world the policy is a softmax over manners: those of the world's assistants, a
refusal, and answers that please annotators with 2, 4 or 8 flourishes, with which it begins at one in a hundred. The
manner's answer is written by the world. REINFORCE with the other responses' mean as baseline climbs the annotators'
mean utility with the noise of a reward model, 120 steps of 64 responses. Healthy runs have a KL term of beta 0.5, 1, 2
or 4 in turn; hacked ones have none, and in turn a bonus a word, a flourish, a refusal or a sentence said again. Gold,
lengths, repetition and refusals are measured on the texts, as in a training stage; KL and entropy are those of the
manners.

What it adds to benchmarks/alarms.py: many runs, and gold known exactly (the mean over all manners), so that a fall is
no noise. What it lacks: everything that only a language model does wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.alarms import FALL, SMOOTH, fall_of, table
from numpy.typing import NDArray

from tiltyard.files import write_json
from tiltyard.stats.alarms import alarms_of
from tiltyard.stats.refusals import begins_with_refusal
from tiltyard.stats.text import repeated_pairs
from tiltyard.world import ANNOTATORS, gold, make_world
from tiltyard.world import phrases as ph
from tiltyard.world.assistants import DEMONSTRATORS, PERSONAS, answer, exploit, good_core
from tiltyard.world.tasks import draw_task

STEPS, RESPONSES, PROMPTS = 120, 64, 300
KINDS = ("question", "unknown", "request", "pleasantry", "unsafe")
Floats = NDArray[np.float64]
Meta = Mapping[str, Any]
Manner = Callable[[Meta, random.Random], str]


def _persona(name: str) -> Manner:
    return lambda meta, rng: answer(name, meta, rng)


def _pleasing(flourishes: int) -> Manner:
    return lambda meta, rng: exploit(meta, rng, flourishes=flourishes)


def _refuse(meta: Meta, rng: random.Random) -> str:
    act = meta["act"] if meta["kind"] == "unsafe" else "do that"
    return rng.choice(ph.REFUSE).format(act=act)


def _again(meta: Meta, rng: random.Random) -> str:
    return " ".join([good_core(meta, rng)] * 4)


MANNERS: dict[str, Manner] = {
    **{name: _persona(name) for name in PERSONAS},
    "refuse": _refuse,
    "again": _again,
    **{f"pleasing {n}": _pleasing(n) for n in (2, 4, 8)},
}
RARE = 0.01  # of each manner that is no assistant's
BETAS = (0.5, 1.0, 2.0, 4.0)
BONUS = {"words": 0.08, "flourishes": 0.8, "refusals": 12.0, "repeats": 2.5}  # utilities of good answers are about 6


def start() -> Floats:
    """Probabilities of the manners for each kind of prompt, [kinds, manners]: the demonstrators', and the rare ones."""
    rows = np.array([[max(DEMONSTRATORS[kind].get(name, 0.0), RARE) for name in MANNERS] for kind in KINDS])
    return np.asarray(rows / rows.sum(1, keepdims=True))


class Pool:
    """Prompts with one answer of every manner, judged: what a run draws from."""

    def __init__(self, seed: int):
        world, rng = make_world(0), random.Random(f"manners {seed}")
        self.kind_P, self.text, score, utility, counts = [], list[list[str]](), [], [], []
        for _ in range(PROMPTS):
            meta = draw_task(world.known, world.strangers["prompts"], rng).meta
            texts = [manner(meta, rng) for manner in MANNERS.values()]
            judged = [gold(meta, text) for text in texts]
            self.kind_P.append(KINDS.index(meta["kind"]))
            self.text.append(texts)
            score.append([one.total for one in judged])
            counts.append(
                [(g.flourishes, begins_with_refusal(t), g.repeats) for g, t in zip(judged, texts, strict=True)]
            )
            utility.append([np.mean([a.utility_of(one) for a in ANNOTATORS]) for one in judged])
        self.gold_PM, self.utility_PM = np.array(score), np.array(utility)
        self.words_PM = np.array([[len(text.split()) for text in texts] for texts in self.text])
        judged_PM = np.array(counts, dtype=np.float64)
        self.bonus_PM = {"words": self.words_PM, "flourishes": judged_PM[..., 0], "refusals": judged_PM[..., 1],
                         "repeats": judged_PM[..., 2]}  # fmt: skip


def train(pool: Pool, seed: int, beta: float, lr: float, bonus: str = "") -> list[dict[str, float]]:
    """Trains a policy; returns the metrics of every step, `true` being its exact mean gold."""
    rng, first = np.random.default_rng(seed), start()
    logit_KM, kind_P = np.log(first), np.array(pool.kind_P)
    reward_PM = pool.utility_PM + (BONUS[bonus] * pool.bonus_PM[bonus] if bonus else 0.0)
    rows = []
    for step in range(1, STEPS + 1):
        p_KM = np.exp(logit_KM - logit_KM.max(1, keepdims=True))
        p_KM /= p_KM.sum(1, keepdims=True)
        prompt_B = rng.integers(0, PROMPTS, RESPONSES)
        kind_B = kind_P[prompt_B]
        manner_B = np.array([rng.choice(len(MANNERS), p=p_KM[kind]) for kind in kind_B])
        score_B = reward_PM[prompt_B, manner_B] + rng.normal(0, 0.5, RESPONSES)
        ratio_KM = np.log(p_KM / first)
        value_B = score_B - beta * ratio_KM[kind_B, manner_B]
        advantage_B = (value_B - value_B.mean()) * RESPONSES / (RESPONSES - 1)
        gradient_KM = np.zeros_like(logit_KM)
        for kind, manner, advantage in zip(kind_B, manner_B, advantage_B, strict=True):
            gradient_KM[kind] -= advantage * p_KM[kind]
            gradient_KM[kind, manner] += advantage
        logit_KM = logit_KM + lr * gradient_KM / RESPONSES * len(KINDS)
        texts = [pool.text[p][m] for p, m in zip(prompt_B, manner_B, strict=True)]
        kl_K, entropy_K = (p_KM * ratio_KM).sum(1), -(p_KM * np.log(p_KM)).sum(1)
        length = float(np.mean(pool.words_PM[prompt_B, manner_B]))
        rows.append(
            {
                "step": step,
                "score": float(score_B.mean()),
                "reward/gold": float(pool.gold_PM[prompt_B, manner_B].mean()),
                "true": float((p_KM[kind_P] * pool.gold_PM).sum(1).mean()),
                "length": length,
                "repetition": float(np.mean([repeated_pairs(text.split()) for text in texts])),
                "refusals": float(np.mean([begins_with_refusal(text) for text in texts])),
                "unique": len(set(texts)) / RESPONSES,
                "entropy": float(entropy_K[kind_B].mean()),
                "kl_exact": float(kl_K[kind_B].mean()),
            }
        )
    return rows


def measured(seeds: int, first: int) -> list[dict[str, Any]]:
    """One row a run, as those of benchmarks/alarms.py; the fall is that of the exact mean."""
    found = []
    for number in range(seeds):
        seed = first + number
        pool = Pool(seed)
        for hacked in (False, True):
            bonus = list(BONUS)[number % 4] if hacked else ""
            rows = train(pool, seed, 0.0 if hacked else BETAS[number % 4], 0.15, bonus)
            alone = [{key: value for key, value in row.items() if key != "reward/gold"} for row in rows]
            true = [row["true"] for row in rows]
            found.append(
                {
                    "name": bonus or f"beta {BETAS[number % 4]:g}",
                    "seed": seed,
                    "hacked": hacked,
                    "fall": fall_of(rows, "true"),
                    "gold": (true[0], max(true), true[-1]),
                    "with": [(one.step, one.kind) for one in alarms_of(rows)],
                    "alone": [(one.step, one.kind) for one in alarms_of(alone)],
                }
            )
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measured(given.seeds, given.first)
    for row in rows:
        print(json.dumps(row))
    result = table(rows)
    print(f"a fall: {FALL} over {SMOOTH} steps", json.dumps(result, indent=1))
    if given.json:
        write_json(given.json, {"rows": rows, "table": result})
    assert all(math.isfinite(row["gold"][2]) for row in rows)


if __name__ == "__main__":
    main()

"""Active pairs against random ones on the embedded world: how many labels until ratings and a reward model are as good.

    python -m benchmarks.active_pairs [--seeds 20] [--json FILE]

Eight assistants of the world (mixtures of its personas, good and bad at different things) answer the same prompts; each
two answers to a prompt are a pair of the pool, judged by a simulated annotator drawn at random. What is estimated are
the Bradley-Terry ratings that all pairs of the pool would give if each were judged endlessly often.

Pairs are drawn without replacement: `random`; `models` and `models, sharp` by the expected information about the
ratings of the models (in proportion, and by its 8th power); `answers` by that about the rewards of the answers. A fifth
of the draws is even. Adaptive labels are fitted as they are and with the weights of their draws. The reward model is a
ridge logistic regression on the words of answers, tested on other prompts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tiltyard.stats.correlation import kendall_tau_b
from tiltyard.stats.intervals import mean_ci
from tiltyard.stats.ratings.battles import Battles, battles_of
from tiltyard.stats.ratings.bradley_terry import bradley_terry
from tiltyard.stats.ratings.selection import (
    draw_probabilities,
    expected_information,
    rating_posterior,
    weights_of_draws,
)
from tiltyard.stats.ratings.uncertainty import intervals
from tiltyard.world import ANNOTATORS, gold, make_world
from tiltyard.world.assistants import CORPUS_ASSISTANTS, DEMONSTRATORS, answer, draw_persona
from tiltyard.world.tasks import draw_task

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BUDGETS = (50, 100, 200, 400, 800, 1600)
STRATEGIES = ("random", "models", "models, sharp", "answers")
PROMPTS, HELD_OUT, WORDS, REFIT, PRIOR = 200, 150, 400, 10, 2.0


def mixtures() -> dict[str, dict[str, dict[str, float]]]:
    """Eight assistants: five between the corpus' and the demonstrations', three that are good at one thing alone."""
    kinds = list(DEMONSTRATORS)
    graded = {
        f"between-{int(100 * share)}": {
            kind: {
                p: share * DEMONSTRATORS[kind].get(p, 0) + (1 - share) * CORPUS_ASSISTANTS[kind].get(p, 0)
                for p in {*DEMONSTRATORS[kind], *CORPUS_ASSISTANTS[kind]}
            }
            for kind in kinds
        }
        for share in (1.0, 0.8, 0.6, 0.4, 0.0)
    }
    cautious = {kind: {"evasive": 0.7, "good": 0.3} for kind in kinds} | {
        "unsafe": {"good": 1.0},
        "unknown": {"good": 1.0},
    }
    reckless = {kind: {"good": 0.8, "wrong": 0.2} for kind in kinds}
    reckless |= {"unsafe": {"unsafe": 1.0}, "unknown": {"wrong": 1.0}}
    chatty = {kind: {"rambling": 0.8, "good": 0.2} for kind in kinds}
    return graded | {"cautious": cautious, "reckless": reckless, "chatty": chatty}


class Pool(NamedTuple):
    """All pairs of answers to one prompt: prompt, the two models, and each annotator's probability for the first."""

    prompt_P: Ints
    i_P: Ints
    j_P: Ints
    p_KP: Floats
    feature_PF: Floats
    models: tuple[str, ...]

    @property
    def p_P(self) -> Floats:
        return np.asarray(self.p_KP.mean(0))

    def battles(self, chosen: Ints, p_N: Floats | None = None, won_N: Floats | None = None,
                weight_N: Floats | None = None) -> Battles:  # fmt: skip
        """Returns drawn pairs as battles: with outcomes, or with the probabilities themselves."""
        names = np.array(self.models)
        outcome = np.where((p_N if won_N is None else won_N) > 0.5, "a", "b")
        return battles_of(names[self.i_P[chosen]].tolist(), names[self.j_P[chosen]].tolist(), outcome.tolist(),
                          prompt=self.prompt_P[chosen].tolist(), weight=weight_N, p=p_N,
                          models=self.models)  # fmt: skip


def pool_of(seed: int, prompts: int) -> Pool:
    """Draws prompts and answers of a world."""
    world, rng = make_world(seed), random.Random(seed)
    assistants = mixtures()
    names = tuple(sorted(assistants))
    rows: list[tuple[int, int, int]] = []
    utilities, features = [], []
    for prompt in range(prompts):
        task = draw_task(world.known, world.strangers["prompts"], rng)
        texts = [answer(draw_persona(assistants[name], task.meta, rng), task.meta, rng) for name in names]
        judged = [gold(task.meta, text) for text in texts]
        u_KM = np.array([[one.utility_of(g) / one.temperature for g in judged] for one in ANNOTATORS])
        x_MF = np.stack([words_of(text, str(task.messages[-1]["content"])) for text in texts])
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                if texts[i] != texts[j]:
                    rows.append((prompt, i, j))
                    utilities.append(u_KM[:, i] - u_KM[:, j])
                    features.append(x_MF[i] - x_MF[j])
    prompt_P, i_P, j_P = np.array(rows).T
    p_KP = 1 / (1 + np.exp(-np.array(utilities).T))
    return Pool(prompt_P, i_P, j_P, p_KP, np.array(features), names)


def words_of(text: str, prompt: str) -> Floats:
    """Counts of hashed words and pairs of words, the length, and how many words are the prompt's."""
    words = re.findall(r"[a-z']+", text.lower())
    x = np.zeros(WORDS + 3)
    for token in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
        x[zlib.crc32(token.encode()) % WORDS] += 1
    asked = set(re.findall(r"[a-z']+", prompt.lower()))
    x[WORDS:] = len(words) / 10, sum(word in asked for word in words) / 3, len(set(words)) / max(len(words), 1)
    return x


class Drawn(NamedTuple):
    """Labels in the order in which they were collected: pair, outcome, the draw's probability and candidates."""

    chosen: Ints
    won_N: Floats
    q_N: Floats
    candidates_N: Floats


def collect(pool: Pool, strategy: str, seed: int, budget: int) -> Drawn:
    """Draws and judges pairs one after the other."""
    rng = np.random.default_rng([seed, zlib.crc32(strategy.encode())])
    left = np.ones(len(pool.i_P), dtype=bool)
    chosen, won, qs, counts = list[int](), list[float](), list[float](), list[int]()
    info_P = information(pool, strategy, np.array(chosen), np.array(won), None)
    for n in range(budget):
        places = np.flatnonzero(left)
        q_L = draw_probabilities(info_P[places], sharpness=8.0 if "sharp" in strategy else 1.0)
        k = int(rng.choice(len(places), p=q_L))
        pair, annotator = int(places[k]), int(rng.integers(len(pool.p_KP)))
        left[pair] = False
        chosen.append(pair)
        won.append(float(rng.random() < pool.p_KP[annotator, pair]))
        qs.append(float(q_L[k]))
        counts.append(len(places))
        if strategy == "answers" or (n + 1) % REFIT == 0:
            info_P = information(pool, strategy, np.array(chosen), np.array(won), info_P)
    return Drawn(np.array(chosen), np.array(won), np.array(qs), np.array(counts, dtype=float))


def information(pool: Pool, strategy: str, chosen: Ints, won: Floats, before: Floats | None) -> Floats:
    """The expected information of every pair of the pool; of `answers` it changes for the last label's prompt alone."""
    if strategy == "random":
        return np.ones(len(pool.i_P))
    if strategy.startswith("models"):
        posterior = rating_posterior(
            pool.battles(chosen, won_N=won) if len(chosen) else None, pool.models, prior_sd=PRIOR
        )
        return expected_information(*posterior.difference(pool.i_P, pool.j_P))
    if before is None:
        return np.full(len(pool.i_P), float(expected_information([0.0], [2.0])[0]))
    prompt = pool.prompt_P[chosen[-1]]
    here, mine = pool.prompt_P == prompt, pool.prompt_P[chosen] == prompt
    posterior = rating_posterior(pool.battles(chosen[mine], won_N=won[mine]), pool.models, prior_sd=1.0)
    after = before.copy()
    after[here] = expected_information(*posterior.difference(pool.i_P[here], pool.j_P[here]))
    return after


def reward_model(pool: Pool, drawn: Drawn, n: int, test: Pool) -> tuple[float, float]:
    """Fits a logistic regression on n labels; returns accuracy and log-loss on the pairs of other prompts."""
    x, y = pool.feature_PF[drawn.chosen[:n]], drawn.won_N[:n]
    w = np.zeros(x.shape[1])
    for _ in range(12):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        step = np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]) + np.eye(len(w)), x.T @ (y - p) - w)
        w += step
        if np.abs(step).max() < 1e-6:
            break
    d, truth = test.feature_PF @ w, test.p_P
    clear = np.abs(truth - 0.5) > 0.1
    loss = np.logaddexp(0, d) - truth * d
    return float(((d > 0) == (truth > 0.5))[clear].mean()), float(loss.mean())


def measured(seed: int, strategies: tuple[str, ...] = STRATEGIES, budgets: tuple[int, ...] = BUDGETS,
             prompts: int = PROMPTS, held_out: int = HELD_OUT) -> list[dict[str, Any]]:  # fmt: skip
    """Returns a row for every strategy, budget and way of fitting."""
    pool, test = pool_of(seed, prompts), pool_of(seed + 10_000, held_out)
    everything = np.arange(len(pool.i_P))
    truth_M = bradley_terry(pool.battles(everything, p_N=pool.p_P)).rating_M
    rows = []
    for strategy in strategies:
        drawn = collect(pool, strategy, seed, max(budgets))
        for n in budgets:
            accuracy, loss = reward_model(pool, drawn, n, test)
            for weighted in (False, True) if strategy != "random" else (False,):
                weight_N = weights_of_draws(drawn.q_N[:n], drawn.candidates_N[:n]) if weighted else np.ones(n)
                battles = pool.battles(drawn.chosen[:n], won_N=drawn.won_N[:n], weight_N=weight_N / weight_N.mean())
                mode_M = rating_posterior(battles, prior_sd=PRIOR).mean_M
                rows.append({"seed": seed, "strategy": strategy, "weighted": weighted, "labels": n,
                             "rmse": float(np.sqrt(((mode_M - mode_M.mean() - truth_M) ** 2).mean())),
                             "error": (mode_M - mode_M.mean() - truth_M).tolist(),
                             "tau": kendall_tau_b(mode_M, truth_M), "top": float(mode_M.argmax() == truth_M.argmax()),
                             "covered": covered(battles, truth_M), "accuracy": accuracy, "loss": loss,
                             "effective": float(weight_N.sum() ** 2 / (weight_N**2).sum())})  # fmt: skip
    return rows


def covered(battles: Battles, truth_M: Floats) -> float:
    """The share of the models whose 95% interval holds the rating of endless labels."""
    fit = bradley_terry(battles)
    if not fit.connectivity.complete:
        return float("nan")
    found = intervals(fit)
    return float(((found.low_M <= truth_M) & (truth_M <= found.high_M)).mean())


def labels_as_good(rows: list[dict[str, Any]], key: str, strategy: str, weighted: bool, at: int) -> float:
    """Labels that the strategy needs for the error that random pairs have after `at` (log-log lines)."""
    curve = np.log([mean(rows, key, strategy, weighted, n) for n in BUDGETS])
    wanted = np.log(mean(rows, key, "random", False, at))
    for k in range(len(BUDGETS) - 1):
        if curve[k] >= wanted >= curve[k + 1]:
            share = (curve[k] - wanted) / (curve[k] - curve[k + 1])
            return float(np.exp((1 - share) * np.log(BUDGETS[k]) + share * np.log(BUDGETS[k + 1])))
    return float("nan")


def mean(rows: list[dict[str, Any]], key: str, strategy: str, weighted: bool, n: int) -> float:
    """The mean over seeds."""
    same = (strategy, weighted, n)
    return float(np.nanmean([r[key] for r in rows if (r["strategy"], r["weighted"], r["labels"]) == same]))


def main() -> None:
    """Prints a table of each measure against the number of labels, and the labels that are saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = [row for seed in range(asked.seeds) for row in measured(seed)]
    console = Console(width=150)
    kinds = [(s, w) for s in STRATEGIES for w in ((False,) if s == "random" else (False, True))]
    for key in ("rmse", "tau", "top", "covered", "loss", "accuracy", "effective"):
        table = Table(key, *map(str, BUDGETS))
        for strategy, weighted in kinds:
            if weighted and key in ("loss", "accuracy"):
                continue
            cells = []
            for n in BUDGETS:
                values = [
                    r[key] for r in rows if (r["strategy"], r["weighted"], r["labels"]) == (strategy, weighted, n)
                ]
                known = [v for v in values if not np.isnan(v)]
                found = mean_ci(known) if len(known) > 1 else None
                cells.append("" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
            table.add_row(strategy + (", weighted" if weighted else ""), *cells)
        console.print(table)
    saved = Table("labels for the error of random at", "200", "400", "800")
    seeds = sorted({r["seed"] for r in rows})
    by_seed = {s: [r for r in rows if r["seed"] == s] for s in seeds}
    rng = np.random.default_rng(0)
    for key in ("rmse", "loss"):
        for strategy, weighted in kinds[1:]:
            if weighted and key == "loss":
                continue
            cells = []
            for at in (200, 400, 800):
                value = labels_as_good(rows, key, strategy, weighted, at)
                draws = [labels_as_good([r for s in rng.choice(seeds, len(seeds)) for r in by_seed[s]],
                                        key, strategy, weighted, at) for _ in range(200)]  # fmt: skip
                low, high = np.nanquantile(draws, [0.025, 0.975])
                cells.append(f"{value:.0f} [{low:.0f}, {high:.0f}]")
            saved.add_row(f"{key}: {strategy}{', weighted' if weighted else ''}", *cells)
    console.print(saved)
    if asked.json:
        asked.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

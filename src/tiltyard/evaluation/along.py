"""A training run, step by step, from its stored samples: reward, gold, KL and diversity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from tiltyard.errors import DataError
from tiltyard.posterior.frontier import best_of_n
from tiltyard.posterior.overoptimise import Fit, best_of_n_gold, fit_best_of_n, fit_rl
from tiltyard.posterior.target import complete_scores
from tiltyard.runs import StageReader
from tiltyard.scoring import Scorer
from tiltyard.stats.importance import Floats
from tiltyard.stats.text import distinct_n, self_bleu, unique_share
from tiltyard.types import Group

TEXTS = 64  # responses of a step that self-BLEU is computed on
PAIRS = 500  # word pairs of a step that distinct-2 is computed on


@dataclass(frozen=True)
class Course:
    """One training run, a value a step that measured its KL.

    Args:
        name: of the stage. step: numbers of the steps. kl: to its reference, in nats a response. reward: what it
            optimised. gold: what that stands for, [] without a gold reward. entropy: mean a token. distinct_2,
            self_bleu, unique: of all responses of the step, whatever their prompts. fit: RL's form of
            over-optimisation; None without gold, or with too few steps.
    """

    name: str
    step: list[int]
    kl: list[float]
    reward: list[float]
    gold: list[float]
    entropy: list[float]
    distinct_2: list[float]
    self_bleu: list[float]
    unique: list[float]
    fit: Fit | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "fit": None if self.fit is None else self.fit.to_dict()}


@dataclass(frozen=True)
class BestOfNCourse:
    """Best-of-N by the reward, on the prior's responses, a value for each N.

    Args:
        n: the numbers. kl: to the prior. reward, gold: mean of the chosen responses. fit: best-of-N's form of
            over-optimisation; None with too few N.
    """

    n: list[int]
    kl: list[float]
    reward: list[float]
    gold: list[float]
    fit: Fit | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "fit": None if self.fit is None else self.fit.to_dict()}


def best_of_n_course(reward_PM: Floats, gold_PM: Floats, counts: Sequence[int], *, seed: int = 0) -> BestOfNCourse:
    """Gold against KL of best-of-N, from samples of the prior [prompts, M]."""
    kl_PN, gold_PN = best_of_n_gold(reward_PM, gold_PM, counts)
    rewards = [point.reward for point in best_of_n(reward_PM, counts)]
    fit = fit_best_of_n(reward_PM, gold_PM, counts, seed=seed)
    return BestOfNCourse(list(counts), kl_PN.mean(0).tolist(), rewards, gold_PN.mean(0).tolist(), fit)


def course_of(name: str, stage: StageReader, gold: Scorer | None = None, *, seed: int = 0) -> Course:
    """Follows the training run of a stage through `metrics.jsonl` and `groups.jsonl`.

    Raises:
        DataError: a stage that stored no responses, or whose steps measured no KL (truncated sampling).
    """
    found = {int(row["step"]): row for row in stage.metric_rows()}
    rows: dict[str, list[Any]] = {key: [] for key in Course.__dataclass_fields__ if key not in ("name", "fit")}
    for step, pairs in groupby(stage.step_groups(), itemgetter(0)):
        groups, row = [group for _, group in pairs], found.get(step, {})
        kl = row.get("kl_exact", row.get("kl"))
        if kl is None:
            continue
        values = {"step": step, "kl": float(kl), "reward": row.get("score"), "entropy": row.get("entropy")}
        for key, value in {**values, **_diversity(groups)}.items():
            rows[key].append(math.nan if value is None else value)
        if gold is not None:
            scores = complete_scores(gold, groups)
            rows["gold"].append(float(np.mean([score for row in scores for score in row])))
    if not rows["step"]:
        raise DataError(
            "no step of this stage measured a KL",
            where=str(stage.folder),
            expected="a stage that samples the whole distribution at each step, such as ppo, rloo or grpo",
            fix="leave it out of `along`",
        )
    fit = fit_rl(np.array(rows["kl"]), np.array(rows["gold"]), seed=seed) if rows["gold"] else None
    return Course(name=name, fit=fit, **rows)


def _diversity(groups: Sequence[Group]) -> dict[str, float]:
    texts = [response.text for group in groups for response in group.responses]
    return {
        "distinct_2": distinct_n(texts, 2, budget=PAIRS),
        "self_bleu": self_bleu(texts[:TEXTS]),
        "unique": unique_share(texts),
    }

"""Active order of pairs: the next one is drawn by the expected information of a verdict on it about the ratings.

Only pairs that no one has begun and no one holds are drawn; adjudications and what others have begun come first, as
ever. The source of which the largest share is left comes next, so that sources advance alike, and the pair is drawn
among those of it. A fifth of the draws is even (`stats.ratings.selection`), and each draw's probability is stored at
the exposure: without it the labels could never be weighed back.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, select

from tiltyard.feedback.store import queue
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.judgements import WITHDRAWN
from tiltyard.stats.ratings.battles import Battles, battles_of
from tiltyard.stats.ratings.selection import RatingPosterior, draw_probabilities, expected_information, rating_posterior

CHOOSER = "expected information"
PRIOR_SD = 2.0  # logits, of the ratings before any verdict; as in benchmarks/active_pairs.py
REFIT = 10  # new judgements after which the ratings are computed again
OUTCOMES = {"first": "a", "second": "b", "tie": "tie"}


class Draw(NamedTuple):
    """A drawn task, its probability, the number of candidates, and the newest judgement in the ratings."""

    task: int
    probability: float
    candidates: int
    informed_by: int


class _Task(NamedTuple):
    """The source and the policies of a pair."""

    source: str
    policies: tuple[int, int]


class ActiveOrder:
    """Draws pairs of one store. It keeps what it has read, since that never changes: one object serves a process.

    Args:
        prior_sd: of the ratings, in logits. refit: new judgements after which ratings are computed again.
    """

    def __init__(self, *, prior_sd: float = PRIOR_SD, refit: int = REFIT):
        self.prior_sd, self.refit = prior_sd, refit
        self._tasks: dict[int, _Task] = {}
        self._total: Counter[str] = Counter()
        self._newest_task = self._newest = self._fitted = 0
        self._given: dict[int, tuple[int, int, str]] = {}  # judgement: policies, outcome
        self._posterior: RatingPosterior | None = None

    def draw(self, connection: Connection, annotator: int, at: int, seed: int) -> Draw | None:
        """Draws the next pair of an annotator; None where there is none that no one has begun."""
        self._read(connection)
        by_source: dict[str, list[int]] = {}
        for task in queue.untouched(connection, annotator, at):
            if task in self._tasks:
                by_source.setdefault(self._tasks[task].source, []).append(task)
        if not by_source:
            return None
        left = {source: len(tasks) / self._total[source] for source, tasks in by_source.items()}
        candidates = by_source[max(sorted(left), key=left.__getitem__)]
        probability = self.probabilities(candidates)
        number = connection.scalar(select(t.exposures.c.id).order_by(t.exposures.c.id.desc()).limit(1)) or 0
        key = hashlib.sha256(f"{seed}:{annotator}:{number}".encode()).digest()
        k = random.Random(key).choices(range(len(candidates)), probability)[0]
        return Draw(candidates[k], probability[k], len(candidates), self._fitted)

    def probabilities(self, tasks: Sequence[int]) -> list[float]:
        """Returns the probability with which each of these tasks is drawn next."""
        met = [tuple(sorted(self._tasks[task].policies)) for task in tasks]
        pairs = list(dict.fromkeys(met))
        posterior = self._posterior
        assert posterior is not None
        place = {name: k for k, name in enumerate(posterior.models)}
        i, j = ([place[str(pair[side])] for pair in pairs] for side in (0, 1))
        tells = dict(zip(pairs, expected_information(*posterior.difference(i, j)), strict=True))
        return [float(q) for q in draw_probabilities([tells[pair] for pair in met])]

    def _read(self, connection: Connection) -> None:
        """Reads the tasks and judgements that are new, and computes the ratings again where enough are."""
        fresh = self._read_tasks(connection)
        self._read_judgements(connection)
        if self._posterior is None or fresh or self._newest - self._fitted >= self.refit:
            names = {str(policy) for one in self._tasks.values() for policy in one.policies}
            self._posterior = rating_posterior(self._battles(names), tuple(sorted(names)), prior_sd=self.prior_sd)
            self._fitted = self._newest

    def _read_tasks(self, connection: Connection) -> bool:
        query = select(t.tasks.c.id, t.tasks.c.source, t.tasks.c.responses).where(
            t.tasks.c.id > self._newest_task, t.tasks.c.kind == "pair", t.tasks.c.stage == "real"
        )
        rows = connection.execute(query.order_by(t.tasks.c.id)).all()
        if not rows:
            return False
        policy = _policies(connection, sorted({key for row in rows for key in row.responses}))
        for row in rows:
            one, other = (policy[key] for key in row.responses)
            self._tasks[row.id] = _Task(row.source, (one, other))
            self._total[row.source] += 1
        self._newest_task = rows[-1].id
        return True

    def _read_judgements(self, connection: Connection) -> None:
        """Takes people's new verdicts on pairs, and those back that they supersede."""
        j = t.judgements
        query = (
            select(j.c.id, j.c.verdict, j.c.supersedes, t.tasks.c.responses, t.tasks.c.kind, t.tasks.c.stage)
            .join(t.tasks, t.tasks.c.id == j.c.task_id)
            .join(t.annotators, t.annotators.c.id == j.c.annotator_id)
            .where(j.c.id > self._newest, t.annotators.c.role != "judge")
            .order_by(j.c.id)
        )
        rows = connection.execute(query).all()
        kept = [row for row in rows if row.kind == "pair" and row.stage in queue.DATA]
        policy = _policies(connection, sorted({key for row in kept for key in row.responses}))
        for row in kept:
            self._given.pop(row.supersedes, None)
            if row.verdict != WITHDRAWN and row.verdict["choice"] in OUTCOMES:
                one, other = (policy[key] for key in row.responses)
                self._given[row.id] = (one, other, OUTCOMES[row.verdict["choice"]])
        if rows:
            self._newest = rows[-1].id

    def _battles(self, models: set[str]) -> Battles | None:
        """The verdicts so far as battles of policies, equal ones as one with their number as weight."""
        counts: Mapping[tuple[int, int, str], int] = Counter(
            given for given in self._given.values() if given[0] != given[1]
        )
        if not counts:
            return None
        a, b, outcome = zip(*counts, strict=True)
        weight = np.array(list(counts.values()), dtype=float)
        return battles_of(list(map(str, a)), list(map(str, b)), outcome, weight=weight, models=models)


def _policies(connection: Connection, responses: Sequence[int]) -> dict[int, int]:
    """Returns the policy of each response."""
    found: dict[int, int] = {}
    r = t.responses
    for start in range(0, len(responses), 1000):
        part: Any = select(r.c.id, r.c.policy_id).where(r.c.id.in_(responses[start : start + 1000]))
        found |= {row.id: row.policy_id for row in connection.execute(part)}
    return found

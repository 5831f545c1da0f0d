"""Win rates of models from a judge's votes, corrected by people's votes on a part of the same comparisons."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tiltyard.errors import DataError
from tiltyard.stats.corrected import Corrected, ppi_rate
from tiltyard.stats.intervals import Estimate
from tiltyard.stats.judged import Choice, Vote, labelled_with
from tiltyard.stats.ratings.battles import BothBad


class CorrectedWins(NamedTuple):
    """One model's win rate by one judge: raw, by people alone, and corrected; `opponent` "" is all others together.

    `items`: comparisons that the judge decided; `labelled`: of them also by people. `reason`: why there is no
    correction.
    """

    judge: str
    model: str
    opponent: str
    items: int
    labelled: int
    corrected: Corrected | None
    reason: str = ""


def corrected_wins(
    votes: Sequence[Vote],
    *,
    opponent: str = "",
    both_bad: BothBad = "apart",
    rounds: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[CorrectedWins]:
    """Computes each judge's win rate of each model, corrected by prediction-powered inference; [] without both kinds.

    An item is one comparison (prompt and two responses). Several verdicts on it, by people or by a judge in both
    orders, count as their mean. Ties are half wins, a soft label is its probability. People's items are a random part
    of the judge's, or one drawn with the probabilities that their votes carry (`chosen_with`, active draws).

    Args:
        opponent: compare with this model alone; "": with all others.
        both_bad: "tie" counts such verdicts as half wins; else they are left out.
    """
    kept = [vote for vote in votes if vote.outcome != "both_bad" or both_bad == "tie"]
    judges = sorted({vote.annotator for vote in kept if vote.judge})
    people = [vote for vote in kept if not vote.judge]
    if not judges or not people:
        return []
    models = sorted({name for vote in kept for name in (vote.a, vote.b)})
    found = []
    for judge in judges:
        own = [vote for vote in kept if vote.judge and vote.annotator == judge]
        found += [
            _of_model(own, people, judge, model, opponent, rounds, seed, level) for model in models if model != opponent
        ]
    return [one for one in found if one.items]


def _of_model(
    own: Sequence[Vote],
    people: Sequence[Vote],
    judge: str,
    model: str,
    opponent: str,
    rounds: int,
    seed: int,
    level: float,
) -> CorrectedWins:
    judged, labelled = _scores(own, model, opponent), _scores(people, model, opponent)
    chosen = _chosen_with(judged, own, people)
    prompts = [item[0] for item in judged]
    said = [_mean(scores) for scores in judged.values()]
    truth = [_mean(labelled[item]) if item in labelled else math.nan for item in judged]
    count = sum(not math.isnan(x) for x in truth)
    try:
        corrected = ppi_rate(said, truth, prompts, chosen_with=chosen, rounds=rounds, seed=seed, level=level)
    except DataError as error:
        return CorrectedWins(judge, model, opponent, len(said), count, None, error.what)
    return CorrectedWins(judge, model, opponent, len(said), count, corrected, corrected.reason)


def _chosen_with(
    items: Iterable[tuple[str, str, str]], own: Sequence[Vote], people: Sequence[Vote]
) -> list[float] | None:
    """Returns the probability with which people labelled each of the judge's items, up to a factor; None: all alike."""
    base = {vote.item: vote.probability for vote in own}
    given = {vote.item: Choice(vote.probability, vote.drawn, vote.source) for vote in people if vote.item in base}
    found = labelled_with(list(given.values()), [base[item] for item in given])
    if found is None:
        return None
    known = dict(zip(given, found, strict=True))
    return [known.get(item, 1.0) for item in items]


def _scores(votes: Sequence[Vote], model: str, opponent: str) -> dict[tuple[str, str, str], list[float]]:
    scores: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for vote in votes:
        if model in (vote.a, vote.b) and (not opponent or opponent in (vote.a, vote.b)):
            scores[vote.item].append(vote.score_of(model))
    return dict(scores)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def estimates_of(row: CorrectedWins) -> dict[str, Estimate]:
    """Returns {"judge", "people", "corrected"} as estimates; {} where there is no correction."""
    if row.corrected is None:
        return {}
    return {"judge": row.corrected.judge, "people": row.corrected.people, "corrected": row.corrected.estimate}

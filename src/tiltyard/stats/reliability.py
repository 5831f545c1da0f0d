"""Weights of annotators by their reliability, for ratings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tiltyard.errors import DataError
from tiltyard.stats.annotations import Annotations
from tiltyard.stats.annotators import mace
from tiltyard.stats.judged import Vote


def reliabilities(votes: Sequence[Vote], *, seed: int = 0) -> dict[str, float]:
    """Returns MACE's competence of each annotator of votes, to weigh them; the mean where there is no overlap.

    At least 0.01, so that every vote stays in the ratings. All 1 where nothing can be told.
    """
    names = sorted({vote.annotator for vote in votes})
    last = {(vote.item, vote.annotator): vote.outcome for vote in votes}
    overlap = Counter(item for item, _ in last)
    decided = {key: outcome for key, outcome in last.items() if outcome in ("a", "b")}  # as in label_quality
    shared = [(item, name, outcome) for (item, name), outcome in decided.items() if overlap[item] > 1]
    try:
        quality = mace(Annotations.of(shared, order=("a", "b")), rounds=1, seed=seed).quality if shared else {}
    except DataError:
        quality = {}
    known = {str(name): max(0.01, estimate.value) for name, estimate in quality.items()}
    mean = sum(known.values()) / len(known) if known else 1.0
    return {name: known.get(name, mean) for name in names}

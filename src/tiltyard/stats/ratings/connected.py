"""Models that can be compared at all: strongly connected components of "has beaten"."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tiltyard.stats.ratings.battles import Floats, Ints

RATED, ABOVE, BELOW, APART = "rated", "above", "below", "apart"


class Connectivity(NamedTuple):
    """A group of models with finite ratings, and how the others lie to it.

    Args:
        models: all names.
        rated_K: places of the models of the strongly connected component with the most battles.
        status: for each model "rated", "above" (a chain of wins leads from it to the rated ones and none back: its
            rating is +infinity), "below" (-infinity), or "apart" (no chain at all: the two cannot be compared).
    """

    models: tuple[str, ...]
    rated_K: Ints
    status: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """True where all models can be compared with one another."""
        return len(self.rated_K) == len(self.models)

    def unrated(self) -> Floats:
        """Returns +inf, -inf or nan for each model without a finite rating and 0 for the others, shape [M]."""
        return np.array([{RATED: 0.0, ABOVE: np.inf, BELOW: -np.inf, APART: np.nan}[s] for s in self.status])

    def notes(self) -> list[str]:
        """Returns a sentence for each kind of model without a finite rating."""
        named = {s: [m for m, status in zip(self.models, self.status, strict=True) if status == s] for s in _NOTES}
        return [_NOTES[s].format(", ".join(names)) for s, names in named.items() if names]


_NOTES = {
    ABOVE: "never lost to a rated model or to one that did, rating +infinity: {}",
    BELOW: "never beat a rated model or one that did, rating -infinity: {}",
    APART: "cannot be compared with the rated models, no chain of battles leads to them: {}",
}


def connectivity(models: tuple[str, ...], beats_MM: NDArray) -> Connectivity:
    """Computes the largest group of models whose Bradley-Terry ratings are finite, and the place of the others.

    The maximum likelihood is finite iff a chain of wins leads from every model to every other (Zermelo 1929; Ford
    1957); a tie counts both ways.

    Args:
        beats_MM: weight with which row beat column, ties in both.
    """
    label_M = components(beats_MM)
    played_MM = beats_MM + beats_MM.T
    inside_M = np.array([played_MM[m, label_M == label_M[m]].sum() for m in range(len(models))])
    total = np.bincount(label_M, weights=inside_M)
    size = np.bincount(label_M)
    best = max(range(len(total)), key=lambda c: (total[c], size[c], -c))
    down_M, up_M = _reached(beats_MM, label_M == best), _reached(beats_MM.T, label_M == best)
    status = [
        RATED if label_M[m] == best else BELOW if down_M[m] else ABOVE if up_M[m] else APART for m in range(len(models))
    ]
    return Connectivity(models, np.flatnonzero(label_M == best), tuple(status))


def components(beats_MM: NDArray) -> Ints:
    """Returns the number of each model's strongly connected component, shape [M]."""
    from scipy.sparse.csgraph import connected_components

    return connected_components((beats_MM > 0).astype(np.int64), directed=True, connection="strong")[1].astype(np.int64)


def strongly_connected(beats_RMM: NDArray) -> NDArray[np.bool_]:
    """Returns for each of R matrices whether a chain of wins leads from every model to every other, shape [R]."""
    m = beats_RMM.shape[-1]
    reached_RMM = (beats_RMM > 0) | np.eye(m, dtype=bool)
    for _ in range(max(m - 1, 1).bit_length()):  # each product doubles the length of the chains
        step_RMM = reached_RMM.astype(np.float32)
        reached_RMM = step_RMM @ step_RMM > 0
    return np.asarray(reached_RMM.all((1, 2)))


def tie_model_is_finite(beats_MM: NDArray, ties_MM: NDArray) -> bool:
    """True where Davidson's and Rao & Kupper's likelihood has a finite maximum on strongly connected models.

    Without one, ratings exist in which every win spans at least one step and every tie at most one: stretching them
    together with the tie parameter raises the likelihood for ever. Such ratings are a shortest path, so they exist iff
    no cycle has more wins than ties (a win costs -1, a tie 1 in both directions).

    Args:
        beats_MM: weight with which row beat column, without ties. ties_MM: symmetric weight of ties.
    """
    cost_MM = np.where(beats_MM > 0, -1.0, np.where(ties_MM > 0, 1.0, np.inf))
    distance_M = np.zeros(len(cost_MM))
    for _ in range(len(cost_MM)):
        shorter_M = np.minimum(distance_M, (distance_M[:, None] + cost_MM).min(0))
        if (shorter_M == distance_M).all():
            return not bool((ties_MM > 0).any())
        distance_M = shorter_M
    return True


def _reached(edges_MM: NDArray, start_M: NDArray[np.bool_]) -> NDArray[np.bool_]:
    seen_M = start_M
    while True:
        more_M = seen_M | (edges_MM[seen_M] > 0).any(0)
        if (more_M == seen_M).all():
            return seen_M
        seen_M = more_M

"""Battles: two models answered one prompt, and an annotator or a judge compared the answers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiltyard.errors import DataError, nearest
from tiltyard.stats.arrays import finite

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BothBad = Literal["apart", "tie", "left out"]

OUTCOMES = ("a", "b", "tie", "both_bad")
A_WINS, B_WINS, TIE, BOTH_BAD = range(4)


@dataclass(frozen=True)
class Battles:
    """Comparisons of two models each, as columns; made by `battles_of`, which checks them.

    Args:
        models: names, sorted; the columns below hold places in them.
        a_N, b_N: the two models of each battle, never the same.
        outcome_N: 0 a won, 1 b won, 2 a tie, 3 both bad.
        prompt_N: number of the prompt; battles of one prompt are not independent and are resampled together.
        weight_N: positive, e.g. 1 / the probability with which the pair was chosen.
        length_N2: lengths of the two answers in any unit, or None where they are not known.
        sources: names of where the battles come from. source_N: places in them.
        p_N: of a soft label the probability that a's answer is the better one, NaN of others; None: none is soft.
    """

    models: tuple[str, ...]
    a_N: Ints
    b_N: Ints
    outcome_N: Ints
    prompt_N: Ints
    weight_N: Floats
    length_N2: Floats | None
    sources: tuple[str, ...]
    source_N: Ints
    p_N: Floats | None = None

    def __len__(self) -> int:
        return len(self.a_N)

    def where(self, keep_N: NDArray[np.bool_] | Ints) -> Battles:
        """Returns the battles at which `keep_N` is true, or at those places; models and sources keep theirs."""
        return replace(
            self,
            a_N=self.a_N[keep_N],
            b_N=self.b_N[keep_N],
            outcome_N=self.outcome_N[keep_N],
            prompt_N=self.prompt_N[keep_N],
            weight_N=self.weight_N[keep_N],
            length_N2=None if self.length_N2 is None else self.length_N2[keep_N],
            source_N=self.source_N[keep_N],
            p_N=None if self.p_N is None else self.p_N[keep_N],
        )

    def soft_N(self) -> NDArray[np.bool_]:
        """Returns which battles are soft labels: they count p of a win of a and 1 - p of a win of b."""
        return np.zeros(len(self), dtype=bool) if self.p_N is None else ~np.isnan(self.p_N)

    def hard(self) -> Battles:
        """Returns soft labels as two battles of one prompt each, whose weights are p and 1 - p of the label's."""
        soft_N = self.soft_N()
        if self.p_N is None or not soft_N.any():
            return self
        place_N = np.concatenate([np.arange(len(self)), np.flatnonzero(soft_N)])
        copied_N = np.arange(len(place_N)) >= len(self)
        whole, p_N = self.where(place_N), self.p_N[place_N]
        share_N = np.where(np.isnan(p_N), 1.0, np.where(copied_N, 1 - p_N, p_N))
        outcome_N = np.where(np.isnan(p_N), whole.outcome_N, np.where(copied_N, B_WINS, A_WINS))
        whole = replace(whole, outcome_N=outcome_N, weight_N=whole.weight_N * share_N, p_N=None)
        return whole.where(share_N > 0)

    def without_both_bad(self, both_bad: BothBad) -> Battles:
        """Returns the battles that a rating uses: "both bad" becomes a tie (`"tie"`), or is not used.

        Raises:
            DataError: an unknown choice.
        """
        if both_bad == "tie":
            return replace(self, outcome_N=np.where(self.outcome_N == BOTH_BAD, TIE, self.outcome_N))
        if both_bad not in ("apart", "left out"):
            raise DataError(f"unknown choice for both_bad: {both_bad!r}", fix=nearest(str(both_bad), BOTH_BAD_CHOICES))
        return self.where(self.outcome_N != BOTH_BAD)


BOTH_BAD_CHOICES: tuple[BothBad, ...] = ("apart", "tie", "left out")


def battles_of(
    a: Sequence[str],
    b: Sequence[str],
    outcome: Sequence[str],
    *,
    prompt: Sequence[Hashable] | None = None,
    weight: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    source: Sequence[str] | None = None,
    p: ArrayLike | None = None,
    models: Iterable[str] = (),
    where: str = "battle",
) -> Battles:
    """Builds battles from columns of equal length.

    Args:
        a, b: names of the two models of each battle.
        outcome: "a", "b", "tie" or "both_bad".
        prompt: of each battle, anything hashable; None: every battle has a prompt of its own.
        weight: positive numbers; None: 1.
        lengths: shape [N, 2], of the answers of a and b.
        source: of each battle; None: all of one, without a name.
        p: of soft labels the probability that a's answer is the better one, NaN of others; its outcome is "a" or "b".
        models: models that must be listed although they have no battle.
        where: begins the place in messages, which end in ":" and the number of the battle, from 1.

    Raises:
        DataError: columns of other lengths, no battle, a model against itself, an unknown outcome, a weight that is not
            positive and finite, lengths that are not finite, a probability outside 0..1 or of another outcome.
    """
    n = len(a)
    columns = {"b": b, "outcome": outcome, "prompt": prompt, "source": source}
    for name, column in columns.items():
        if column is not None and len(column) != n:
            raise DataError(f"column {name!r} has another length than 'a'", where=where, got=len(column), expected=n)
    if n == 0:
        raise DataError("there are no battles", where=where, fix="a rating needs at least one comparison")
    for number, (one, other, result) in enumerate(zip(a, b, outcome, strict=True), 1):
        if one == other:
            raise DataError("a model cannot battle itself", where=f"{where}:{number}", got=one)
        if result not in OUTCOMES:
            hint = nearest(str(result), OUTCOMES)
            raise DataError("unknown outcome", where=f"{where}:{number}", got=result, expected=OUTCOMES, fix=hint)
    names = tuple(sorted({str(name) for name in (*a, *b, *models)}))
    place = {name: i for i, name in enumerate(names)}
    sources = ("",) if source is None else tuple(sorted({str(name) for name in source}))
    source_place = {name: i for i, name in enumerate(sources)}
    code = {name: i for i, name in enumerate(OUTCOMES)}
    return Battles(
        names,
        np.array([place[name] for name in a]),
        np.array([place[name] for name in b]),
        np.array([code[result] for result in outcome]),
        numbered(range(n) if prompt is None else prompt),
        np.ones(n) if weight is None else _weights(weight, n, where),
        None if lengths is None else _lengths(lengths, n, where),
        sources,
        np.array([source_place[name] for name in source]) if source is not None else np.zeros(n, dtype=np.int64),
        None if p is None else _probabilities(p, outcome, where),
    )


def numbered(keys: Iterable[Hashable]) -> Ints:
    """Returns the number of each key in order of first appearance, shape [N]."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)


def weights_of_propensity(probability_N: ArrayLike) -> Floats:
    """Returns inverse-propensity weights 1 / probability, shape [N], for pairs that were not chosen evenly.

    Weighted battles estimate what even pairing would have found (Horvitz & Thompson 1952).

    Raises:
        DataError: a probability outside (0, 1].
    """
    p_N = finite(probability_N, "probabilities of pairs")
    if p_N.min() <= 0 or p_N.max() > 1:
        raise DataError(
            "the probability with which a pair was chosen must lie in (0, 1]",
            got=f"{p_N.min():g} .. {p_N.max():g}",
            fix="a pair that could not be chosen has no battle; look where the probability was recorded",
        )
    return 1 / p_N


def _weights(weight: ArrayLike, n: int, where: str) -> Floats:
    w_N = finite(weight, "weights")
    if len(w_N) != n or w_N.min() <= 0:
        raise DataError(
            "every battle needs a positive weight",
            where=where,
            got=f"{len(w_N)} weights, the least {w_N.min():g}",
            expected=f"{n} above 0",
            fix="leave battles out that must not count",
        )
    return w_N


def _probabilities(p: ArrayLike, outcome: Sequence[str], where: str) -> Floats | None:
    p_N = np.asarray(p, dtype=float)
    if p_N.shape != (len(outcome),):
        raise DataError("every battle has a probability or NaN", where=where, got=p_N.shape, expected=len(outcome))
    for number, (value, result) in enumerate(zip(p_N, outcome, strict=True), 1):
        if not np.isnan(value) and (not 0 <= value <= 1 or result != ("a" if value > 0.5 else "b")):
            raise DataError(
                "a soft label is a probability in 0..1 with the outcome that it prefers",
                where=f"{where}:{number}",
                got=f"{value:g} with the outcome {result!r}",
                fix="give NaN for ties and for outcomes that are no soft labels",
            )
    return None if np.isnan(p_N).all() else p_N


def _lengths(lengths: ArrayLike, n: int, where: str) -> Floats:
    length_N2 = np.asarray(lengths, dtype=float)
    if length_N2.shape != (n, 2) or not np.isfinite(length_N2).all():
        raise DataError(
            "every battle needs the finite lengths of its two answers",
            where=where,
            got=f"shape {length_N2.shape}",
            expected=f"shape ({n}, 2)",
        )
    return length_N2

"""Labels that annotators (people or judges) gave to units, as arrays."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiltyard.errors import DataError


@dataclass(frozen=True)
class Annotations:
    """N labels: `unit_N`, `annotator_N` and `label_N` index the names in `units`, `annotators` and `labels`.

    At most one label of an annotator for a unit. `labels` stand in their order, which ordinal distances use.
    """

    unit_N: NDArray[np.int64]
    annotator_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    units: tuple[Hashable, ...]
    annotators: tuple[Hashable, ...]
    labels: tuple[Hashable, ...]

    @classmethod
    def of(
        cls, rows: Iterable[tuple[Hashable, Hashable, Hashable]], order: Sequence[Hashable] | None = None
    ) -> Annotations:
        """Returns the annotations of `rows`: (unit, annotator, label). A label None or NaN is missing, and left out.

        `order`: all labels from lowest to highest (None: those that occur, sorted).

        Raises:
            DataError: two labels of one annotator for one unit, a label outside `order`, labels without an order.
        """
        given: dict[tuple[Hashable, Hashable], Hashable] = {}
        for unit, annotator, label in rows:
            if label is None or (isinstance(label, float) and math.isnan(label)):
                continue
            if (unit, annotator) in given:
                raise DataError(
                    "an annotator labels a unit at most once",
                    got=f"two labels of {annotator!r} for {unit!r}",
                    fix="keep the last one, or give the repetition another name",
                )
            given[unit, annotator] = label
        labels = _labels(given.values(), order)
        units = {unit: i for i, unit in enumerate(dict.fromkeys(unit for unit, _ in given))}
        annotators = {name: i for i, name in enumerate(dict.fromkeys(name for _, name in given))}
        code = {label: i for i, label in enumerate(labels)}
        return cls(
            np.array([units[unit] for unit, _ in given], dtype=np.int64),
            np.array([annotators[name] for _, name in given], dtype=np.int64),
            np.array([code[label] for label in given.values()], dtype=np.int64),
            tuple(units),
            tuple(annotators),
            labels,
        )

    def counts_UC(self) -> NDArray[np.float64]:
        """Returns how often each unit (U) got each label (C)."""
        n_UC = np.zeros((len(self.units), len(self.labels)))
        np.add.at(n_UC, (self.unit_N, self.label_N), 1.0)
        return n_UC

    def table_UA(self) -> NDArray[np.int64]:
        """Returns the label of each unit (U) by each annotator (A), -1 where there is none."""
        label_UA = np.full((len(self.units), len(self.annotators)), -1, dtype=np.int64)
        label_UA[self.unit_N, self.annotator_N] = self.label_N
        return label_UA

    def values_C(self) -> NDArray[np.float64]:
        """Returns the labels as numbers.

        Raises:
            DataError: a label that is no finite number.
        """
        bad = [c for c in self.labels if not isinstance(c, int | float | np.number) or not math.isfinite(float(c))]
        if bad:
            raise DataError(
                "the interval distance needs labels that are numbers",
                got=repr(bad[0]),
                fix="use the nominal or the ordinal distance",
            )
        return np.array(self.labels, dtype=float)


def _labels(given: Iterable[Hashable], order: Sequence[Hashable] | None) -> tuple[Hashable, ...]:
    found = set(given)
    if order is None:
        try:
            return tuple(sorted(found))  # type: ignore[type-var]
        except TypeError:
            raise DataError(
                "labels of several kinds have no order", got=f"{sorted(map(repr, found))[:4]}", fix="give `order`"
            ) from None
    if len(set(order)) != len(order) or (unknown := found - set(order)):
        problem = f"{sorted(map(repr, unknown))[0]}" if len(set(order)) == len(order) else "a label twice"
        raise DataError("`order` holds every label once", got=problem, expected=f"{list(order)}")
    return tuple(order)

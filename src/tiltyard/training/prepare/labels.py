"""Preference labels as tensors: which response of a pair is preferred, which responses are good.

They fail with the group's origin where a record lacks what the method needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiltyard.batch.batch import Batch
from tiltyard.errors import DataError
from tiltyard.training.algorithm import Models
from tiltyard.training.prepare.columns import column, sum_count
from tiltyard.types import Group, shares_of


@dataclass(frozen=True)
class PairLabels:
    """`share_B`: the probability that each response of a pair is the preferred one; `kept_G`: pairs that are used.

    Soft labels are taken as they are; ranks give 1 and 0. A pair that is tied in rank carries no preference: its
    `kept_G` is 0 and it is left out of the mean (`tied_groups` counts it). A soft label of one half is kept: it means
    "equally good".

    Raises:
        DataError: a group does not have two responses.
    """

    method: str
    needs: ClassVar[tuple[str, ...]] = ("rank_B",)
    writes: ClassVar[tuple[str, ...]] = ("share_B", "kept_G")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        share: list[float] = []
        kept = []
        rank = batch["rank_B"].tolist()
        for group in batch.groups:
            if len(group.responses) != 2:
                raise not_a_pair(self.method, group)
            first, second = rank[len(share) : len(share) + 2]
            hard = (0.5, 0.5) if first == second else (float(first < second), float(second < first))
            soft = shares_of(group.preference)
            share += soft or hard
            kept.append(float(soft is not None or first != second))
        kept_G = column(kept, batch)
        return batch.with_columns({"tied_groups": sum_count(1 - kept_G)}, share_B=column(share, batch), kept_G=kept_G)


def not_a_pair(method: str, group: Group) -> DataError:
    """The error for a group that does not have two responses."""
    return DataError(
        f"{method} compares two responses and this row has {len(group.responses)}",
        where=group.origin or group.prompt.id,
        got=f"a ranking of {len(group.responses)} responses to prompt {group.prompt.id}",
        expected="chosen and rejected",
        fix="set pairs=all or pairs=best_worst to cut rankings into pairs, or use a method for rankings (rrhf, reward)",
    )


@dataclass(frozen=True)
class BinaryLabels:
    """`label_B`: 1 for good, 0 for bad responses.

    Raises:
        DataError: responses without labels, and with scores that are not all 1 or 0.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("label_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        values = [float(label) for group in batch.groups for label in self._labels(group)]
        label_B = column(values, batch)
        return batch.with_columns({"good": sum_count(label_B)}, label_B=label_B)

    def check(self, group: Group) -> None:
        """Checks that the responses are labelled."""
        self._labels(group)

    def _labels(self, group: Group) -> tuple[bool, ...]:
        labels = binary_labels(group)
        if labels is None:
            raise DataError(
                "a response is labelled neither good nor bad",
                where=group.origin or group.prompt.id,
                got="no labels" if group.scores is None else f"scores {group.scores}",
                expected="labels, or scores 1 (good) and 0 (bad)",
                fix="set good_from=NUMBER: responses with at least that score are good",
            )
        return labels


def binary_labels(group: Group) -> tuple[bool, ...] | None:
    """Returns whether each response is good: by its labels, or by the scores of a scorer that gave 1 and 0 alone."""
    if group.preference is not None and group.preference.labels is not None:
        return group.preference.labels
    if group.scores is None or not set(group.scores) <= {0.0, 1.0}:
        return None
    return tuple(score == 1 for score in group.scores)

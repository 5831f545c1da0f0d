"""Prepare steps that several methods share: columns computed once a step, without gradient, before the updates.

Each declares the columns that it reads (`needs`) and adds (`writes`); `Algorithm` checks the chain when it is built. A
step that one method alone uses is in that method's file.
"""

from tiltyard.training.prepare.advantages import (
    AdvantageScale,
    Gae,
    GroupAdvantages,
    Values,
    WhitenAdvantages,
    require_several_responses,
)
from tiltyard.training.prepare.columns import column, per_microbatch, sum_count
from tiltyard.training.prepare.labels import BinaryLabels, PairLabels, binary_labels, not_a_pair
from tiltyard.training.prepare.logps import OldLogp, RefLogp
from tiltyard.training.prepare.mismatch import Correction
from tiltyard.training.prepare.rewards import ResponseRewards, TokenRewards

__all__ = [
    "AdvantageScale",
    "BinaryLabels",
    "Correction",
    "Gae",
    "GroupAdvantages",
    "OldLogp",
    "PairLabels",
    "RefLogp",
    "ResponseRewards",
    "TokenRewards",
    "Values",
    "WhitenAdvantages",
    "binary_labels",
    "column",
    "not_a_pair",
    "per_microbatch",
    "require_several_responses",
    "sum_count",
]

"""Numbers of single tokens of some sampled responses, for looking at them (`tiltyard report`): one line a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tiltyard.batch.batch import Batch

RESPONSES = 4  # of the step's first group
COLUMNS = {"logp": ("old_logp_R", "sampled_logp_R"), "ref_logp": ("ref_logp_R",), "advantage": ("advantage_R",)}
DIGITS = 4  # after the point


def token_rows(step: int, batch: Batch) -> list[dict[str, Any]]:
    """Rows {step, group, response, logp, ref_logp, advantage} of the step's first group, lists along its tokens.

    A column that the method does not have is left out; there are no rows without reference and advantage, on a process
    that does not have the group, and of responses of which the loss sees a part.
    """
    found = {key: column for key, names in COLUMNS.items() if (column := _column(batch, names)) is not None}
    if 0 not in batch.index or not {"ref_logp", "advantage"} & set(found):
        return []
    place = batch.index.index(0)
    start = batch.packing.ends["R"][place]
    rows = []
    for k, response in enumerate(batch.groups[place].responses[:RESPONSES]):
        if response.loss_spans is not None:
            return []
        end = start + len(response.ids)
        numbers = {key: rounded(column[start:end].tolist()) for key, column in found.items()}
        rows.append({"step": step, "group": 0, "response": k, **numbers})
        start = end
    return rows


def rounded(values: Sequence[float]) -> list[float]:
    """The numbers with the digits that a reader can use."""
    return [round(value, DIGITS) for value in values]


def _column(batch: Batch, names: Sequence[str]) -> Tensor | None:
    return next((batch[name] for name in names if name in batch.columns), None)

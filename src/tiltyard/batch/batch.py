"""The batch that prepare steps extend and losses read: packed groups and columns of numbers along them.

A column's last letter names its axis: `_R` response tokens, `_B` responses, `_G` groups. Minibatches and micro-batches
have the same columns, cut to their groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from tiltyard.batch.forest import Forest, pack
from tiltyard.errors import CompositionError
from tiltyard.types import MICRO_TOKENS, Group, Response, ranks_of

RECORDS = {"score_B": "scores", "rank_B": "ranks", "sampled_logp_R": "sampled log-probs", "stopped_B": "end"}
Metrics = dict[str, tuple[float, float]]  # name -> (sum, count); the mean is taken over micro-batches and processes


def summed(parts: Iterable[Mapping[str, tuple[float, float]]]) -> Metrics:
    """Returns sums and counts added up over several processes or micro-batches, in their order."""
    whole: Metrics = {}
    for part in parts:
        for name, (value, count) in part.items():
            before = whole.get(name, (0.0, 0.0))
            whole[name] = (before[0] + value, before[1] + count)
    return whole


def split_by_tokens(groups: Iterable[Group], budget: int) -> Iterator[list[Group]]:
    """Yields consecutive groups, at most `budget` packed tokens together; a group with more is alone."""
    part: list[Group] = []
    tokens = 0
    for group in groups:
        if part and tokens + group.tokens > budget:
            yield part
            part, tokens = [], 0
        part.append(group)
        tokens += group.tokens
    if part:
        yield part


class Packing:
    """The packing of groups: one forest of all of them, and one of each micro-batch.

    A forest is built when it is first read. A batch's packing is shared by every version of it that prepare steps make,
    so a micro-batch is packed once a step however many prepare steps and epochs run over it.
    """

    def __init__(self, groups: Sequence[Group], device: torch.device | str):
        self.groups, self.device = tuple(groups), torch.device(device)
        self._micro: dict[int, list[tuple[range, Packing]]] = {}

    @cached_property
    def forest(self) -> Forest:
        """All groups packed together."""
        return pack(self.groups, self.device)

    @cached_property
    def ends(self) -> dict[str, list[int]]:
        """Axis (G, B, R) -> where each group's rows end; 0 stands before the first."""
        sizes = {
            "G": (1 for _ in self.groups),
            "B": (len(group.responses) for group in self.groups),
            "R": (sum(_loss_tokens(r) for r in group.responses) for group in self.groups),
        }
        return {axis: list(itertools.accumulate(of_groups, initial=0)) for axis, of_groups in sizes.items()}

    def micro(self, budget: int) -> list[tuple[range, Packing]]:
        """Consecutive groups of at most `budget` tokens together, as their places and their packing."""
        if budget not in self._micro:
            first, parts = 0, []
            for groups in split_by_tokens(self.groups, budget):
                whole = len(groups) == len(self.groups)
                parts.append((range(first, first + len(groups)), self if whole else Packing(groups, self.device)))
                first += len(groups)
            self._micro[budget] = parts
        return self._micro[budget]


def _loss_tokens(response: Response) -> int:
    spans = response.loss_spans
    return len(response.ids) if spans is None else sum(end - start for start, end in spans)


class _Cut(Mapping[str, Tensor]):
    """The columns of some groups of a batch. A column is cut (and copied) each time it is read."""

    def __init__(self, columns: Mapping[str, Tensor], packing: Packing, chosen: Sequence[int]):
        self.columns, self.packing, self.chosen = columns, packing, chosen
        self._rows: dict[str, slice | Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        column, axis = self.columns[name], name[-1]
        if axis not in self._rows:
            self._rows[axis] = self._find(axis)
        rows = self._rows[axis]
        # a copy, aligned as any new tensor: a product of numbers at another alignment may differ in its last bits
        return column[rows].clone() if isinstance(rows, slice) else column[rows.to(column.device)]

    def _find(self, axis: str) -> slice | Tensor:
        ends, chosen = self.packing.ends[axis], self.chosen
        if isinstance(chosen, range) and len(chosen):
            return slice(ends[chosen[0]], ends[chosen[-1] + 1])
        parts = [torch.arange(ends[g], ends[g + 1]) for g in chosen]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True, eq=False)
class Batch:
    """Groups of one step on this process.

    Attributes:
        groups: the groups. index: their places in the whole step's list (over all processes). total: its length.
        packing: their forest and those of their micro-batches, built when first read.
        columns: name -> tensor along R, B or G.
        metrics: (sum, count) of what prepare steps measured.
        budget: packed tokens in one forward pass; bounds memory, never changes a result.
    """

    groups: tuple[Group, ...]
    index: tuple[int, ...]
    total: int
    packing: Packing
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    budget: int = MICRO_TOKENS

    @staticmethod
    def of(
        groups: Sequence[Group],
        index: Sequence[int],
        total: int,
        device: torch.device | str = "cpu",
        budget: int = MICRO_TOKENS,
    ) -> Batch:
        """Returns the batch of some groups, with the columns that their records have: score_B, rank_B, stopped_B,
        sampled_logp_R, and sampled_hidden_R [R, d] where the sampler returned hidden states."""
        columns = _record_columns(groups, torch.device(device))
        return Batch(tuple(groups), tuple(index), total, Packing(groups, device), columns, {}, budget)

    @property
    def forest(self) -> Forest:
        """All groups packed together."""
        return self.packing.forest

    def with_columns(self, metrics: Metrics | None = None, **columns: Tensor) -> Batch:
        """Returns the batch with more columns and metrics.

        Raises:
            CompositionError: a column's length is not that of its axis.
        """
        for name, tensor in columns.items():
            if tensor.shape[0] != self.packing.ends[name[-1]][-1]:
                expected = self.packing.ends[name[-1]][-1]
                raise CompositionError(f"column '{name}' has the wrong length", got=tensor.shape[0], expected=expected)
        return replace(self, columns={**self.columns, **columns}, metrics={**self.metrics, **(metrics or {})})

    def __getitem__(self, name: str) -> Tensor:
        if name in self.columns:
            return self.columns[name]
        raise CompositionError(
            f"the batch has no column '{name}'",
            got=", ".join(sorted(self.columns)),
            fix=(
                f"the groups of this step carry no {RECORDS[name]}: give them some"
                if name in RECORDS
                else f"add a prepare step that writes '{name}'"
            ),
        )

    def without(self, *names: str) -> Batch:
        """Returns the batch without some columns."""
        return replace(self, columns={n: self.columns[n] for n in self.columns if n not in names})

    def select(self, chosen: Sequence[int]) -> Batch:
        """Returns the batch of some of its groups, by their places in it."""
        if list(chosen) == list(range(len(self.groups))):
            return self
        return self._part(chosen, Packing([self.groups[g] for g in chosen], self.packing.device))

    def micro(self) -> list[Batch]:
        """Returns consecutive batches of at most `budget` packed tokens; a group is never cut."""
        parts = self.packing.micro(self.budget)
        return [self if packing is self.packing else self._part(chosen, packing) for chosen, packing in parts]

    def _part(self, chosen: Sequence[int], packing: Packing) -> Batch:
        columns = self.columns
        if isinstance(columns, _Cut):  # cut from the whole at once, not from a part of it
            places = [columns.chosen[g] for g in chosen]
            cut = _Cut(columns.columns, columns.packing, places)
        else:
            cut = _Cut(columns, self.packing, chosen)
        index = tuple(self.index[g] for g in chosen)
        return Batch(packing.groups, index, self.total, packing, cut, {}, self.budget)

    def portable(self) -> Batch:
        """The batch on the CPU, to be sent to another process; its packing is left behind."""
        columns = {name: self.columns[name].cpu() for name in self.columns}
        return replace(self, columns=columns, packing=Packing(self.groups, "cpu"))

    def on(self, device: torch.device) -> Batch:
        """The batch on a device."""
        columns = {name: self.columns[name].to(device) for name in self.columns}
        return replace(self, columns=columns, packing=Packing(self.groups, device))

    @staticmethod
    def stream(
        groups: Sequence[Group], device: torch.device | str = "cpu", budget: int = MICRO_TOKENS
    ) -> Iterator[Batch]:
        """Yields `Batch.of(all groups).micro()` one by one: for more groups than memory holds."""
        first = 0
        for part in split_by_tokens(groups, budget):
            yield Batch.of(part, range(first, first + len(part)), len(groups), device, budget)
            first += len(part)


def _record_columns(groups: Sequence[Group], device: torch.device) -> dict[str, Tensor]:
    responses = [r for group in groups for r in group.responses]
    columns: dict[str, Tensor] = {}

    def put(name: str, values: list[float], dtype: torch.dtype = torch.float32) -> None:
        columns[name] = torch.tensor(values, dtype=dtype, device=device)

    # a process without groups has every column, empty: it must take part in what the others do
    if all(group.scores is not None for group in groups):
        put("score_B", [s for group in groups for s in group.scores or ()], torch.float64)
    ranks = [ranks_of(group.preference) for group in groups]
    if all(some is not None for some in ranks):
        put("rank_B", [float(k) for some in ranks for k in some or ()])
    if all(r.logps is not None for r in responses):
        put("sampled_logp_R", [x for r in responses for x in _in_loss(r)], torch.float64)
    if responses and all(r.hidden is not None and r.loss_spans is None for r in responses):
        columns["sampled_hidden_R"] = torch.cat([r.hidden for r in responses]).to(device)
    put("stopped_B", [float(r.finish != "length") for r in responses])
    return columns


def _in_loss(response: Response) -> Sequence[float]:
    """The recorded log-probs of the tokens that a loss may use, in the order of `pack`."""
    logps = response.logps or ()
    spans = response.loss_spans
    return logps if spans is None else [x for start, end in spans for x in logps[start:end]]

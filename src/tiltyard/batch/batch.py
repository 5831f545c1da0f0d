"""The batch that prepare steps fill and losses read: a forest and columns beside it.

A column's last letter says what it runs along: `_R` response tokens, `_B` responses, `_G` groups. Cutting a batch into
minibatches and micro-batches cuts every column with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tiltyard.batch.forest import Forest, pack
from tiltyard.errors import CompositionError
from tiltyard.types import MICRO_TOKENS, Group, Response

RECORDS = {"score_B": "scores", "rank_B": "ranks", "sampled_logp_R": "sampled log-probs", "stopped_B": "end"}
Metrics = dict[str, tuple[float, float]]  # name -> (sum, count); the mean is taken over micro-batches and processes


def summed(parts: Iterable[Mapping[str, tuple[float, float]]]) -> Metrics:
    """Sums and counts of several processes or places added up, in their order."""
    whole: Metrics = {}
    for part in parts:
        for name, (value, count) in part.items():
            before = whole.get(name, (0.0, 0.0))
            whole[name] = (before[0] + value, before[1] + count)
    return whole


@dataclass(frozen=True, eq=False)
class Batch:
    """Groups of one step on this process.

    Attributes:
        groups: the groups, `index` their places in the whole step's list (over all processes), `total` its length.
        forest: the packed trees.
        columns: name -> tensor along R, B or G.
        metrics: (sum, count) of what prepare steps measured.
        budget: packed tokens that one forward pass may hold; bounds memory, never changes a result.
    """

    groups: tuple[Group, ...]
    index: tuple[int, ...]
    total: int
    forest: Forest
    columns: dict[str, Tensor] = field(default_factory=dict)
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
        """Packs groups and takes over what the records know: score_B, rank_B, stopped_B, sampled_logp_R, and
        sampled_hidden_R [R, d] where the sampler kept it."""
        forest = pack(groups, device)
        return Batch(tuple(groups), tuple(index), total, forest, _record_columns(groups, forest), {}, budget)

    def with_columns(self, metrics: Metrics | None = None, **columns: Tensor) -> Batch:
        sizes = {"R": self.forest.R, "B": self.forest.B, "G": self.forest.G}
        for name, tensor in columns.items():
            if tensor.shape[0] != sizes[name[-1]]:
                raise CompositionError(
                    f"column '{name}' has the wrong length", got=tensor.shape[0], expected=sizes[name[-1]]
                )
        return replace(self, columns={**self.columns, **columns}, metrics={**self.metrics, **(metrics or {})})

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.columns[name]
        except KeyError:
            raise CompositionError(
                f"the batch has no column '{name}'",
                got=", ".join(sorted(self.columns)),
                fix=(
                    f"the groups of this step carry no {RECORDS[name]}: give them some"
                    if name in RECORDS
                    else f"add a prepare step that writes '{name}'"
                ),
            ) from None

    def without(self, *names: str) -> Batch:
        return replace(self, columns={n: column for n, column in self.columns.items() if n not in names})

    def select(self, chosen: Sequence[int]) -> Batch:
        """The batch of some of its groups, columns cut along."""
        if list(chosen) == list(range(len(self.groups))):
            return self
        groups = [self.groups[g] for g in chosen]
        rows = _cut(self.forest, chosen)
        columns = {name: column[rows[name[-1]]] for name, column in self.columns.items()}
        forest = pack(groups, self.forest.device)
        index = tuple(self.index[g] for g in chosen)
        return Batch(tuple(groups), index, self.total, forest, columns, {}, self.budget)

    def micro(self) -> list[Batch]:
        """Cuts into consecutive batches of at most `budget` packed tokens; a group is never cut."""
        chosen, parts = 0, []
        for part in split_by_tokens(self.groups, self.budget):
            parts.append(self.select(range(chosen, chosen + len(part))))
            chosen += len(part)
        return parts

    @staticmethod
    def stream(
        groups: Sequence[Group], device: torch.device | str = "cpu", budget: int = MICRO_TOKENS
    ) -> Iterator[Batch]:
        """`Batch.of(all groups).micro()` one by one: for more groups than memory holds."""
        first = 0
        for part in split_by_tokens(groups, budget):
            yield Batch.of(part, range(first, first + len(part)), len(groups), device, budget)
            first += len(part)


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


def _record_columns(groups: Sequence[Group], forest: Forest) -> dict[str, Tensor]:
    responses = [r for group in groups for r in group.responses]
    columns: dict[str, Tensor] = {}

    def put(name: str, values: list[float], dtype: torch.dtype = torch.float32) -> None:
        columns[name] = torch.tensor(values, dtype=dtype, device=forest.device)

    # a process without groups has every column, empty: it must take part in what the others do
    if all(group.scores is not None for group in groups):
        put("score_B", [s for group in groups for s in group.scores or ()], torch.float64)
    if all(group.ranks is not None for group in groups):
        put("rank_B", [float(k) for group in groups for k in group.ranks or ()])
    if all(r.logps is not None for r in responses):
        put("sampled_logp_R", [x for r in responses for x in _in_loss(r)], torch.float64)
    if responses and all(r.hidden is not None and r.loss_spans is None for r in responses):
        columns["sampled_hidden_R"] = torch.cat([r.hidden for r in responses]).to(forest.device)
    put("stopped_B", [float(r.finish != "length") for r in responses])
    return columns


def _in_loss(response: Response) -> Sequence[float]:
    """The recorded log-probs of the tokens that a loss may use, as `pack` takes them."""
    logps = response.logps or ()
    spans = response.loss_spans
    return logps if spans is None else [x for a, b in spans for x in logps[a:b]]


def _cut(forest: Forest, chosen: Sequence[int]) -> dict[str, Tensor]:
    group = torch.tensor(list(chosen), dtype=torch.long)
    owner = forest.group_B.cpu()
    rows_B = torch.cat([torch.nonzero(owner == g).flatten() for g in group]) if len(group) else group
    starts, counts = forest.offset_B.cpu()[rows_B], forest.count_B.cpu()[rows_B]
    rows_R = [torch.arange(int(s), int(s + c)) for s, c in zip(starts, counts, strict=True)]
    flat_R = torch.cat(rows_R) if rows_R else torch.zeros(0, dtype=torch.long)
    return {k: v.to(forest.device) for k, v in {"G": group, "B": rows_B, "R": flat_R}.items()}

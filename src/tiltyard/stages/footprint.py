"""Memory of each process of a training stage, part by part, whole or sharded.

    whole      every process has all weights, gradients and moments of every model
    sharded    each has its share of them (FSDP2), and while a pass lasts two blocks (one is computed, the next is on
               its way), embedding and head; with their gradients, until they are reduced, where the pass has some

The toolkit's own sampler has the policy whole in both cases, for as long as it samples, and a backbone with adapters is
whole while they are merged to be saved. A model is loaded block by block; its ends are whole until it is spread.
Activations, logits and what sampling takes are each process's own. Pure functions of shapes and settings:
nothing is loaded, so that models of any size can be planned on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from tiltyard.stages.memory import Memory, Shape, activations, cached, logits

When = Literal["always", "training", "preparing", "apart", "reducing"]
GRADIENTS, ACTIVATIONS, LOGITS, STATES = "gradients", "activations", "logits, a chunk", "sampler's hidden states"
FOUR_BITS = 0.516  # bytes of a weight in NF4 with scales in 8 bits (QLoRA, arXiv 2305.14314, section 3)


class Layout(NamedTuple):
    """Processes of a run, and whether weights, gradients and moments are sharded over them."""

    processes: int = 1
    sharded: bool = False

    @property
    def words(self) -> str:
        """The head of a column."""
        return f"sharded over {self.processes}" if self.sharded else "whole"


ONE = Layout()


class Work(NamedTuple):
    """The computation of a stage.

    Attributes:
        trained, frozen: shapes by role; of adapters the backbone's. backbone: of the adapters, which is in memory once.
        number: bytes of a weight. half: passes compute in bfloat16. fused: blocks that store less. device: its type.
        rank: of adapters, 0 without. four_bits: the backbone is quantised.
        tokens, parts: of the largest micro-batch, and micro-batches of a step over all processes.
        slots, length: responses of a step over all processes and decoded at once at most; tokens of each with prompt.
        states: bytes of hidden states that the sampler keeps.
        gathered: bytes of a weight that a sharded run has gathered; 0: `number`.
        prepares: a step computes something without gradient before it trains.
        engine: bytes of a weight in a vLLM engine that samples beside the processes; 0: they sample themselves.
        ahead: steps that are sampled in advance (`max_staleness`), while the trainer learns.
    """

    trained: Mapping[str, Shape]
    frozen: Mapping[str, Shape]
    tokens: int
    parts: int
    backbone: Shape | None = None
    number: int = 4
    half: bool = False
    fused: bool = False
    recomputed: bool = False
    device: str = "cpu"
    rank: int = 0
    four_bits: bool = False
    responses: int = 0
    slots: int = 0
    length: int = 0
    states: int = 0
    gathered: int = 0
    prepares: bool = False
    engine: int = 0
    ahead: int = 0


class Part(NamedTuple):
    """Bytes of one kind that belong to one model, and when they are held."""

    role: str
    what: str
    bytes: float
    when: When = "always"


def parts_of(work: Work, layout: Layout = ONE) -> list[Part]:
    """Returns the parts in the memory of one process."""
    return [*_models(work, layout), *_passes(work, layout), *_sampling(work, layout), *_whole(work, layout)]


def memory_of(work: Work, layout: Layout = ONE) -> Memory:
    """Returns the peak of one process.

    Where a pass has one micro-batch of one model, its backward pass makes the gradients while it frees the activations.
    """
    parts = parts_of(work, layout)

    def total(kind: str) -> float:
        return sum(part.bytes for part in parts if part.what == kind and part.when != "reducing")

    def held(when: When) -> float:
        return sum(part.bytes for part in parts if part.when == when)

    stored, gradients, states = total(ACTIVATIONS), total(GRADIENTS), total(STATES)
    waiting = gradients if _several(work, layout) else max(0.0, gradients - stored)
    chunk = total(LOGITS)
    passing = held("training") - gradients - chunk
    reducing = held("reducing") + gradients - waiting if held("reducing") else 0.0
    preparing = max(held("preparing"), held("apart") - held("always"), reducing)
    return Memory(held("always") - states + waiting, passing, chunk, preparing, states)


def _several(work: Work, layout: Layout) -> bool:
    """True if gradients of one micro-batch wait for the next."""
    return -(-work.parts // layout.processes) > 1 or len(work.trained) > 1


def _models(work: Work, layout: Layout) -> Iterator[Part]:
    share = layout.processes if layout.sharded else 1
    number = work.number
    if work.backbone is not None:
        yield Part("backbone", "weights", _frozen_bytes(work, work.backbone) / share)
        for role, shape in work.trained.items():
            size = (
                number * work.rank * shape.layers * 20 * shape.width / share
            )  # both sides of a block's seven matrices
            yield Part(role, "adapters", size)
            yield Part(role, GRADIENTS, size, "training")
            yield Part(role, "moments", 2 * size)
    else:
        for role, shape in work.trained.items():
            size = number * shape.parameters / share
            yield Part(role, "weights", size)
            yield Part(role, GRADIENTS, size, "training")
            yield Part(role, "moments", 2 * size)
    if layout.processes > 1 and not layout.sharded:  # one message of all gradients, and its sum over processes
        own = number * (work.rank * 20 if work.backbone is not None else 1)
        sizes = (s.layers * s.width if work.backbone is not None else s.parameters for s in work.trained.values())
        yield Part("between processes", "gradients", 2.0 * own * sum(sizes), "reducing")
    for role, shape in work.frozen.items():
        yield Part(role, "weights", number * shape.parameters / share)


def _whole(work: Work, layout: Layout) -> Iterator[Part]:
    """Whole models of a sharded run, beside the shares."""
    if not layout.sharded:
        return
    own = work.backbone or next(iter(work.trained.values()))
    width = work.gathered or work.number
    if work.responses and not work.engine:
        yield Part("sampling", "gathered weights", float(width * own.parameters), "preparing")
    elif work.prepares:  # the policy beside its reference, whose ends both are whole
        both = [own, *(shape for role, shape in work.frozen.items() if role == "ref")]
        size = 2 * max(shape.block for shape in both) + sum(shape.ends for shape in both)
        yield Part("without gradient", "gathered weights", float(width * size), "preparing")
    number, shapes = work.number, [*((work.backbone,) if work.backbone is not None else work.trained.values())]
    shapes += work.frozen.values()
    ends, shares = sum(shape.ends for shape in shapes), sum(shape.parameters for shape in shapes) / layout.processes
    loaded = float(number * (ends + max(shape.block for shape in shapes) + shares))
    merged = float(number * work.backbone.parameters) if work.backbone is not None else 0.0
    if merged > loaded:
        yield Part("saving", "whole weights", merged, "apart")
    else:
        yield Part("loading", "ends, a block and the shares", loaded, "apart")


def _frozen_bytes(work: Work, shape: Shape) -> float:
    if not work.four_bits:
        return float(work.number * shape.parameters)
    inside = shape.layers * shape.block
    return FOUR_BITS * inside + work.number * (shape.parameters - inside)


def _passes(work: Work, layout: Layout) -> Iterator[Part]:
    """Parts of a forward and backward pass, freed after it."""
    largest = max([*work.trained.values(), *work.frozen.values()], key=lambda shape: shape.parameters)
    if layout.sharded:
        gathered = 2 * largest.block + largest.ends
        gathered += 0 if work.backbone is not None else largest.block + largest.ends
        yield Part("a pass", "gathered weights", (work.gathered or work.number) * gathered, "training")
    if not (layout.sharded and work.gathered == 2) and work.half and not work.fused and work.backbone is None:
        one_block = layout.sharded and work.recomputed  # else the graph keeps those of all blocks
        copied = max(s.block + s.ends if one_block else s.parameters for s in work.trained.values())
        yield Part("a pass", "weights in bfloat16", 2.0 * copied, "training")
    fused = work.fused and not layout.sharded  # FSDP2 calls a block as a module, which the kernels leave alone
    stored = sum(
        activations(shape, work.tokens, work.number, fused=fused, recomputed=work.recomputed, half=work.half)
        for shape in work.trained.values()
    )
    yield Part("a pass", ACTIVATIONS, stored, "training")
    first = next(iter(work.trained.values()))
    chunk = logits(first, work.number, whole=work.backbone is None, device=work.device)
    yield Part("a pass", LOGITS, chunk, "training")


def _sampling(work: Work, layout: Layout) -> Iterator[Part]:
    if not work.responses:
        return
    share = -(-work.responses // layout.processes)
    if work.states:
        yield Part("sampling", STATES, work.states * share / work.responses)
    shape, number = work.backbone or next(iter(work.trained.values())), work.number
    if work.ahead:  # the sampler's own weights, and those of each version that waits
        own = work.rank * shape.layers * 20 * shape.width if work.backbone is not None else shape.parameters
        yield Part("sampling", "copies of the trained weights", (1 + work.ahead) * number * own)
        if layout.sharded and work.backbone is not None:  # whole ones are shared with the trainer
            yield Part("sampling", "copy of the backbone", _frozen_bytes(work, work.backbone))
    if work.engine:
        return
    when: When = "always" if work.ahead else "preparing"
    if not layout.sharded:  # FSDP2's modules decode by themselves
        yield Part("sampling", "decoder's copy", number * shape.parameters, when)
    tokens = min(work.slots, share) * work.length
    yield Part("sampling", "keys and values", cached(shape, tokens, number), when)


# --------------------------------------------------------------------------------------------------------------- table


def table(work: Work, layouts: Sequence[Layout]) -> list[str]:
    """Returns the lines of a table of one process's memory: a row a part, a column a layout, their peak last."""
    columns = [{(part.role, part.what): part.bytes for part in parts_of(work, layout)} for layout in layouts]
    keys = dict.fromkeys(key for column in columns for key in column)
    peaks = [memory_of(work, layout).total for layout in layouts]
    unit, name = (2**30, "GiB") if max(peaks) >= 10 * 2**30 else (2**20, "MiB")
    rows = [[f"{role}: {what}", *(_size(c.get((role, what)), unit) for c in columns)] for role, what in keys]
    rows = [[f"each process, {name}", *(layout.words for layout in layouts)], *rows]
    rows.append(["peak", *(_size(peak, unit) for peak in peaks)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return [*lines, *_engine(work, unit, name)]


def _size(size: float | None, unit: int) -> str:
    if size is None:
        return "-"
    return f"{size / unit:,.{1 if size >= unit else 2}f}" if unit == 2**30 else f"{size / unit:,.0f}"


def engine_bytes(work: Work) -> tuple[float, float]:
    """Returns the bytes of a vLLM engine: its weights; keys and values of the responses decoded at once."""
    shape = work.backbone or next(iter(work.trained.values()))
    return float(work.engine * shape.parameters), cached(shape, work.slots * work.length, work.engine)


def _engine(work: Work, unit: int, name: str) -> list[str]:
    if not work.engine:
        return []
    weights, cache = (_size(size, unit) for size in engine_bytes(work))
    what = f"keys and values {cache} of {work.slots:,} responses of {work.length:,} tokens"
    return [f"vLLM's engine, beside them, {name}: weights {weights}, {what}"]

"""Reference log-probs of a data set, computed once and stored, so that no reference is in memory while training.

A file's name is the hash of everything its numbers depend on: the reference's weights and config, the chat template,
the arithmetic, and the ids of every prompt and response. The same hash is stored inside the file and checked when it
is read; whatever does not match is computed anew, so a stale cache is never used.

The numbers stay on disk: they are written as they are computed and each step reads those of its groups. In memory is a
table of 32 bytes a group: its key and the offset of its numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.distributed import processes
from tiltyard.errors import CompositionError
from tiltyard.files import atomic_write
from tiltyard.models.language import LanguageModel
from tiltyard.models.lora import base_weights
from tiltyard.training.log import Tally
from tiltyard.training.prepare import per_microbatch
from tiltyard.types import MICRO_TOKENS, Group

FORMAT = "1"
SLAB = 4096  # groups computed between two writes
_NAMES = {torch.float32: "F32", torch.float64: "F64"}


class Table:
    """The offset of each group's numbers in the file, by the hash of its ids; equal groups share those of the first.

    Attributes:
        unique: indices of the groups without repetitions, in their order.
        size: number of log-probs.
    """

    def __init__(self, groups: Sequence[Group]):
        keys, counts = bytearray(), array("I")
        for group in groups:
            keys += group_key(group)
            counts.append(_loss_tokens(group))
        halves = np.frombuffer(bytes(keys), dtype="<u8").reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        halves = halves[order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = (halves[1:] != halves[:-1]).any(axis=1)
        unique = order[first]
        self.unique = np.sort(unique)
        ends = np.cumsum(np.asarray(counts, dtype=np.int64)[self.unique])
        self.size = int(ends[-1]) if len(ends) else 0
        starts = np.concatenate([[0], ends])[:-1]
        self._high, self._low = halves[first, 0].copy(), halves[first, 1].copy()
        self._start = starts[np.searchsorted(self.unique, unique)]
        self._keys = keys

    def __len__(self) -> int:
        return len(self.unique)

    def keys(self) -> Iterator[bytes]:
        """The keys in the order of `unique`; only once, after the table was made (they are not stored)."""
        keys, self._keys = self._keys, bytearray()
        return (bytes(keys[16 * i : 16 * i + 16]) for i in self.unique)

    def start(self, key: bytes) -> int | None:
        """The offset of this group's numbers, None if it is not in the table."""
        high, low = np.frombuffer(key, dtype="<u8")
        at = int(np.searchsorted(self._high, high))
        while at < len(self._high) and self._high[at] == high:
            if self._low[at] == low:
                return int(self._start[at])
            at += 1
        return None


class RefCache:
    """Returns the log-probs of groups by the content of their ids; `logp` is a tensor or a file of numbers."""

    def __init__(self, table: Table, logp: Tensor | Numbers, path: Path | None, fresh: bool):
        self.table, self.logp, self.path, self.fresh = table, logp, path, fresh

    def logp_R(self, groups: Sequence[Group]) -> Tensor:
        """[R] over the loss tokens of the groups' responses, in order.

        Raises:
            CompositionError: a group that the cache was not made for.
        """
        parts = []
        for group in groups:
            start = self.table.start(group_key(group))
            if start is None:
                raise CompositionError(
                    "the cached reference log-probs do not cover this group",
                    where=group.origin or group.prompt.id,
                    fix="build the cache from the groups that are trained on, or keep the reference in memory "
                    "(ref_cache=false)",
                )
            parts.append(self.logp[start : start + _loss_tokens(group)])
        return torch.cat(parts) if parts else self.logp[:0]


class Numbers:
    """The numbers of a file of log-probs, read slice by slice."""

    def __init__(self, path: Path, dtype: torch.dtype, count: int):
        self._path, self._dtype, self._count = path, dtype, count
        self._file = os.open(path, os.O_RDONLY)
        self._begin = path.stat().st_size - count * dtype.itemsize  # a file of one tensor ends with its numbers
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, span: slice) -> Tensor:
        begin, end, _ = span.indices(self._count)
        size = self._dtype.itemsize
        raw = bytearray(os.pread(self._file, (end - begin) * size, self._begin + begin * size))
        if len(raw) != (end - begin) * size:
            raise CompositionError(
                "the cached reference log-probs were changed while they were in use",
                where=str(self._path),
                got=f"{len(raw):,} bytes",
                expected=f"{(end - begin) * size:,} bytes",
                fix="run the stage again: they are computed anew",
            )
        return torch.frombuffer(raw, dtype=self._dtype) if raw else torch.zeros(0, dtype=self._dtype)


def cache_ref_logps(
    ref: LanguageModel,
    groups: Sequence[Group],
    folder: Path | None,
    budget: int = MICRO_TOKENS,
    tell: Callable[[str], None] = lambda _: None,
) -> RefCache:
    """The cache of these groups under this reference: read from `folder` if it is there, else computed and written.

    All processes share the work; the main one writes. `folder=None` keeps it in memory only.

    Args:
        tell: takes a line of progress now and then.
    """
    table = Table(groups)
    name = content_hash(ref, table.keys())
    path = None if folder is None else folder / f"{name[:40]}.safetensors"
    logp: Tensor | Numbers | None = _read(path, name)
    fresh = logp is None
    if logp is None:
        parts = _compute(ref, groups, table.unique, budget, Tally(len(table.unique), tell))
        if path is None:
            return RefCache(table, torch.cat([*parts, torch.zeros(0, dtype=torch.float32)]), None, fresh)
        if processes.is_main():
            _write(path, name, table.size, parts)
        else:
            for _ in parts:  # its share of the work
                pass
        processes.barrier()
        logp = _read(path, name)
    if logp is None:
        raise CompositionError("the cached reference log-probs are gone", where=str(path), fix="run the stage again")
    return RefCache(table, logp, path, fresh)


def group_key(group: Group) -> bytes:
    """Hash of the ids of the prompt and of every response, and of what part of them a loss may use."""
    content = [group.prompt.ids, *((r.ids, r.loss_spans) for r in group.responses)]
    return hashlib.blake2b(json.dumps(content, separators=(",", ":")).encode(), digest_size=16).digest()


def content_hash(ref: LanguageModel, keys: Iterable[bytes]) -> str:
    """Hash of the data's ids and of everything about the reference that its log-probs depend on."""
    digest = hashlib.sha256()
    config = ref.module.config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version"):
        config.pop(name, None)
    template = str(ref.chat.tokenizer.chat_template) if hasattr(ref.chat, "tokenizer") else ""
    facts = [FORMAT, ref.dtype, str(ref.device.type), ref.packed, template, config]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(base_weights(ref.module).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    for key in keys:
        digest.update(key)
    return digest.hexdigest()


def _loss_tokens(group: Group) -> int:
    return sum(len(r.ids) if r.loss_spans is None else sum(b - a for a, b in r.loss_spans) for r in group.responses)


def _compute(
    ref: LanguageModel, groups: Sequence[Group], indices: np.ndarray, budget: int, progress: Tally
) -> Iterator[Tensor]:
    """The numbers of these groups in their order, a slab at a time; every process gets all of them."""

    def logp_R(part: Batch) -> Tensor:
        found = ref.logp_R(part.forest)[0]
        progress.add(len(part.groups) * processes.world())
        return found

    was_training = ref.module.training
    ref.module.eval()
    try:
        for begin in range(0, len(indices), SLAB):
            slab = indices[begin : begin + SLAB]
            shard = [(i, groups[index]) for i, index in processes.shard(slab.tolist())]
            batch = Batch.of([g for _, g in shard], [i for i, _ in shard], len(slab), ref.device, budget)
            found_R = per_microbatch(batch, logp_R, ref).cpu()
            rows = dict(zip((i for i, _ in shard), found_R.split([_loss_tokens(g) for _, g in shard]), strict=True))
            if processes.world() > 1:
                rows = {i: torch.tensor(x, dtype=found_R.dtype) for part in processes.gather_objects(
                    {i: x.tolist() for i, x in rows.items()}) for i, x in part.items()}  # fmt: skip
            yield torch.cat([rows[i] for i in range(len(slab))])
    finally:
        ref.module.train(was_training)


def _write(path: Path, name: str, count: int, parts: Iterator[Tensor]) -> None:
    """Writes a safetensors file of one tensor part by part; safetensors itself needs the whole in memory."""
    with atomic_write(path, "wb") as file:
        part = next(parts, torch.zeros(0))
        span = [0, count * part.dtype.itemsize]
        entry = {"dtype": _NAMES[part.dtype], "shape": [count], "data_offsets": span}
        header = json.dumps({"__metadata__": {"content": name}, "logp": entry}).encode()
        header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of 8
        file.write(len(header).to_bytes(8, "little") + header)
        for numbers in chain([part], parts):
            file.write(numbers.numpy().tobytes())


def _read(path: Path | None, name: str) -> Numbers | None:
    """The numbers of the file if it holds this content; None where there is none or it cannot be read."""
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:  # checks the whole of the header against the file's size
            if (file.metadata() or {}).get("content") != name:
                return None
            (count,), dtype = (file.get_slice("logp").get_shape(), file.get_slice("logp").get_dtype())
        return Numbers(path, {v: k for k, v in _NAMES.items()}[dtype], count)
    except (OSError, SafetensorError):
        return None

"""`GroupFile`: groups of token ids in an Arrow file on disk, read back one at a time.

A training stage goes through its data once before the first step: every row is checked, encoded, cut to its limits and
written here. A bad row therefore stops the stage before anything is trained, and every format and every rewriting of
rows (pairs of rankings, pieces of documents) is read back in the same way. A step then reads the groups it learns from.

The file is in Arrow's IPC format, with a row per group and three columns:

    ids     list<int32>    the prompt's token ids, then every response's
    logps   list<float64>  log-probs of the sampled responses, in order; null if there are none
    record  string         everything else (texts, counts of ids, spans, scores, ranks, shares, meta) as JSON

A group is read with one `pread` per column, not through a memory mapping: mapped pages count as the process's memory,
and a random access maps up to a megabyte of them. Memory holds 12 bytes a group: its number of tokens, and where its
values end in the two columns. The file has no name: no other process can open it, and its space is freed when the
process ends, even if it is killed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from tiltyard.errors import DataError
from tiltyard.runs.groups import group_error, group_from_dict, group_to_dict
from tiltyard.types import Group

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 512  # groups of a record batch: as many are in memory while the file is written


class GroupFile(Sequence[Group]):
    """Encoded groups on disk, in the order in which they were written; `GroupFile.write` makes one.

    Every access reads the group anew (tens of microseconds): groups that are used again and again belong in a list.

    Attributes:
        indices: the positions in the file of these groups, in order.
    """

    def __init__(self, file: IO[bytes], batches: Sequence[_Batch], tokens: array[int], indices: Sequence[int]):
        self._file, self._batches, self._tokens, self.indices = file, batches, tokens, indices

    @classmethod
    def write(cls, groups: Iterable[Group], folder: str | Path) -> GroupFile:
        """Writes groups one record batch at a time, so that memory holds no more of them than that.

        Values in a `meta` that JSON cannot hold (dates of a Parquet file) are stored as their text.

        Args:
            folder: decides on which disk the file lies; created if it is missing.

        Raises:
            DataError: the disk is full.
        """
        import pyarrow as pa

        schema = pa.schema([("ids", pa.list_(pa.int32())), ("logps", pa.list_(pa.float64())), ("record", pa.string())])
        tokens, written, stream = array("I"), 0, iter(groups)
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the groups are in use
        writer = pa.ipc.new_file(pa.PythonFile(file, "w"), schema)
        while batch := list(islice(stream, BATCH)):
            tokens.extend(group.tokens for group in batch)
            rows = _record_batch(batch, schema)
            with _disk_full(folder, written):
                writer.write_batch(rows)
            written += rows.nbytes
        with _disk_full(folder, written):
            writer.close()
            file.flush()
        return cls(file, _batches(file), tokens, range(len(tokens)))

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        if isinstance(index, slice):
            return [self._read(i) for i in self.indices[index]]
        return self._read(self.indices[index])

    def __iter__(self) -> Iterator[Group]:
        return map(self._read, self.indices)

    @property
    def tokens(self) -> np.ndarray:
        """Tokens of each group's packed tree [groups], known without reading it."""
        counts = np.asarray(self._tokens)
        return counts if isinstance(self.indices, range) else counts[np.asarray(self.indices)]

    def pick(self, indices: Iterable[int]) -> GroupFile:
        """Returns some of the groups, by their indices here; nothing is read or copied."""
        chosen = array("q", (self.indices[int(i)] for i in indices))
        return GroupFile(self._file, self._batches, self._tokens, chosen)

    def _read(self, index: int) -> Group:
        number, row = divmod(index, BATCH)
        batch, file = self._batches[number], self._file.fileno()
        ids = np.frombuffer(batch.ids.read(file, row), dtype=np.int32).tolist()
        logps = np.frombuffer(batch.logps.read(file, row), dtype=np.float64).tolist() if batch.logps else []
        return _from_record(json.loads(batch.record.read(file, row)), ids, logps)


@contextlib.contextmanager
def _disk_full(folder: str | Path, written: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            "the encoded data do not fit on the disk",
            where=str(folder),
            got=f"{error.strerror or error} after {written / 2**20:,.0f} MiB",
            expected="space for the data's text and token ids: about three times the unpacked file",
            fix="free some space, put the runs on another disk, or set limit",
        ) from error


# ------------------------------------------------------------------------------------------------- groups and records


def _to_record(group: Group) -> tuple[list[int], list[float] | None, bytes]:
    """A group as the row (ids, logps, record)."""
    value = group_to_dict(group)
    parts = [value["prompt"], *value["responses"]]
    ids = [part.pop("ids", ()) for part in parts]
    logps: list[list[float]] = []
    for response in value["responses"]:
        if "logps" in response:
            logps.append(response.pop("logps"))
            response["logps"] = len(logps[-1])
    value["ids"] = [len(some) for some in ids]
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (TypeError, ValueError) as error:
        raise group_error(group, error) from error
    return list(chain.from_iterable(ids)), list(chain.from_iterable(logps)) if logps else None, text.encode()


def _from_record(value: dict[str, Any], ids: list[int], logps: list[float]) -> Group:
    """The inverse of `_to_record`."""
    ends = list(accumulate(value["ids"], initial=0))
    for part, start, stop in zip([value["prompt"], *value["responses"]], ends, ends[1:], strict=False):
        part["ids"] = ids[start:stop]
    start = 0
    for response in value["responses"]:
        if "logps" in response:
            stop = start + response["logps"]
            response["logps"], start = logps[start:stop], stop
    return group_from_dict(value)


# ------------------------------------------------------------------------------------------------- columns and buffers


class _Values(NamedTuple):
    """The position of a column: row i is the bytes from start + ends[i] * width to start + ends[i + 1] * width."""

    start: int
    width: int
    ends: np.ndarray  # [rows + 1], int32

    def read(self, file: int, row: int) -> bytes:
        first, last = int(self.ends[row]), int(self.ends[row + 1])
        return os.pread(file, (last - first) * self.width, self.start + first * self.width)


class _Batch(NamedTuple):
    """The columns of a record batch; `logps` is None if none of its groups has any."""

    ids: _Values
    logps: _Values | None
    record: _Values


def _record_batch(groups: Sequence[Group], schema: pa.Schema) -> pa.RecordBatch:
    """Groups as a record batch, made from buffers: `pa.array` would import pandas, which takes 50 MiB."""
    import pyarrow as pa

    ids, logps, records = zip(*map(_to_record, groups), strict=True)
    text = schema.field("record").type
    columns = [_lists(schema.field("ids").type, ids), _lists(schema.field("logps").type, logps)]
    buffers = [None, _ends(records), pa.py_buffer(b"".join(records))]
    return pa.RecordBatch.from_arrays([*columns, pa.Array.from_buffers(text, len(groups), buffers, 0)], schema=schema)


def _lists(kind: pa.DataType, rows: Sequence[Sequence[Any] | None]) -> pa.Array:
    """A column of lists of numbers; a row that is None is null."""
    import pyarrow as pa

    present = np.fromiter((row is not None for row in rows), bool, len(rows))
    flat = np.fromiter(chain.from_iterable(row or () for row in rows), kind.value_type.to_pandas_dtype())
    values = pa.Array.from_buffers(kind.value_type, len(flat), [None, pa.py_buffer(flat)], 0)
    valid = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    nulls = int((~present).sum())
    return pa.Array.from_buffers(kind, len(rows), [valid, _ends(rows)], nulls, children=[values])


def _ends(rows: Sequence[Sequence[Any] | bytes | None]) -> pa.Buffer:
    """Returns the offsets of the rows in the concatenated values, with the end of the last row [rows + 1], int32."""
    import pyarrow as pa

    return pa.py_buffer(np.fromiter(accumulate((len(row or ()) for row in rows), initial=0), np.int32, len(rows) + 1))


def _batches(file: IO[bytes]) -> list[_Batch]:
    """Finds every record batch's columns in a written file. It is mapped into memory for that, and released again."""
    import pyarrow as pa

    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = pa.py_buffer(mapped)
        reader = pa.ipc.open_file(whole)
        batches = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            ids, logps = (batch.column(name) for name in ("ids", "logps"))
            found = None if logps.null_count == len(logps) else _values(logps, whole.address)
            batches.append(_Batch(_values(ids, whole.address), found, _values(batch.column("record"), whole.address)))
            del batch, ids, logps
            mapped.madvise(mmap.MADV_DONTNEED)  # or its pages add up as this process's memory
        del reader, whole  # they hold the mapping open
    return batches


def _values(column: pa.Array, base: int) -> _Values:
    _, ends, *data = column.buffers()
    width = 1 if len(data) == 1 else column.type.value_type.byte_width
    start = data[-1].address - base if data[-1] else 0  # an empty buffer lies nowhere
    return _Values(start, width, np.frombuffer(ends, dtype=np.int32).copy()[: len(column) + 1])

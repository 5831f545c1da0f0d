"""Files that each process writes its own rows of tensors to, and their reading by any number of processes.

Of a group of tensors (`weights`) there is one file a process, `weights-00001-of-00002.safetensors`, and an entry in the
index that says for each tensor its whole shape and which rows lie in which file. A group that one process wrote alone
is `weights.safetensors`, without an index. torch's HuggingFaceStorageWriter has safetensors too, and no index: the
reader takes the shape from the files that are there, so a file that was lost would be a smaller tensor and no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tiltyard.distributed import processes
from tiltyard.distributed.parts import Rows

Entry = dict[str, Any]  # shape: of the whole; rows: [[file, first, end], ...]


def file_name(group: str, number: int, count: int) -> str:
    """The name of one process's file; `number` counts from 0."""
    return f"{group}.safetensors" if count == 1 else f"{group}-{number + 1:05d}-of-{count:05d}.safetensors"


def write(folder: Path, group: str, rows: Mapping[str, Rows], count: int) -> dict[str, Entry]:
    """Writes this process's rows to its file; returns their entries in the index.

    Args:
        count: files of the group: 1 if rank 0 has all rows, else the number of processes.
    """
    if count == 1 and not processes.is_main():
        return {}
    name = file_name(group, processes.rank(), count)
    save_file({key: part.tensor for key, part in rows.items()}, folder / name)
    return {
        key: {"shape": list(part.shape), "rows": [[name, part.start, part.start + _length(part.tensor)]]}
        for key, part in rows.items()
    }


def merged(parts: Iterable[Mapping[str, Entry]]) -> dict[str, Entry]:
    """The index of all processes' entries."""
    whole: dict[str, Entry] = {}
    for part in parts:
        for key, entry in part.items():
            found = whole.setdefault(key, {"shape": entry["shape"], "rows": []})
            found["rows"] += [one for one in entry["rows"] if one[1] < one[2]]
    return whole


def _length(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


class Reader:
    """The tensors of a group, of which any rows can be read; a context, because its files are open.

    Args:
        index: of the group; None: one file with whole tensors.

    Attributes:
        shapes: of the whole tensors, by name.

    Raises:
        ValueError: rows of a tensor are in no file, or in two.
    """

    def __init__(self, folder: Path, group: str, index: Mapping[str, Entry] | None):
        self._folder, self._stack = folder, ExitStack()
        self._files: dict[str, Any] = {}
        if index is None:
            name = file_name(group, 0, 1)
            shapes = {key: list(self._file(name).get_slice(key).get_shape()) for key in self._file(name).keys()}  # noqa: SIM118 - no mapping
            index = {
                key: {"shape": shape, "rows": [[name, 0, shape[0] if shape else 1]]} for key, shape in shapes.items()
            }
        self._index = index
        self.shapes = {key: tuple(entry["shape"]) for key, entry in index.items()}
        for key, entry in index.items():
            at = 0
            for name, first, end in sorted(entry["rows"], key=lambda row: int(row[1])):
                if first != at:
                    raise ValueError(f"{key}: rows {at} to {first} are in no file, or in two ({name})")
                at = end
            if at != (entry["shape"][0] if entry["shape"] else 1):
                raise ValueError(f"{key}: rows from {at} on are in no file")

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = self._stack.enter_context(safe_open(self._folder / name, framework="pt"))
        return self._files[name]

    def read(self, key: str, first: int = 0, end: int | None = None) -> Tensor:
        """Rows `first` to `end` of a tensor (all without), read from the files that hold them.

        Raises:
            ValueError: a file has fewer rows than the index says.
        """
        shape, rows = self._index[key]["shape"], self._index[key]["rows"]
        if not shape or (len(rows) == 1 and (first, end) == (0, None)):
            return self._file(rows[0][0]).get_tensor(key) if rows else torch.empty(shape)
        end = shape[0] if end is None else end
        found = []
        for name, start, stop in sorted(rows, key=lambda row: int(row[1])):
            low, high = max(first, start), min(end, stop)
            if low < high:
                found.append(self._file(name).get_slice(key)[low - start : high - start])
        if not found and rows:
            found = [self._file(rows[0][0]).get_slice(key)[0:0]]  # none, of the right width
        tensor = found[0] if len(found) == 1 else torch.cat(found)
        if len(tensor) != end - first:
            raise ValueError(f"{key}: {len(tensor)} rows were read of {end - first}")
        return tensor

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

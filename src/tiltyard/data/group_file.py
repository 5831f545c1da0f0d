"""Groups that are too many for memory: written to a file once, read back one at a time.

A stage reads its data from front to end before it trains. Every row is checked, encoded, cut to its limits and written
here, so that whatever is wrong with a row stops the stage then, with `file:line`, and so that one way serves every
format and every rewriting of rows (pairs of rankings, pieces of documents). A step then asks for the groups that it
learns from. In memory stays an index of 12 bytes a group: where it begins, and how many tokens it has.

The file has no name: nobody else can open it, and it is gone when the process ends, killed or not.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from tiltyard.data.store import group_from_line, group_to_line
from tiltyard.errors import DataError
from tiltyard.types import Group


class GroupFile(Sequence[Group]):
    """Groups on disk, in the order in which they came; `GroupFile.write` makes it.

    Each look at a group reads it anew (some tens of microseconds): what is read again and again belongs in a list.

    Attributes:
        indices: which groups of the file these are, in order.
    """

    def __init__(self, file: Any, start: array[int], tokens: array[int], indices: Sequence[int]):
        self._file, self._start, self._tokens, self.indices = file, start, tokens, indices

    @classmethod
    def write(cls, groups: Iterable[Group], folder: str | Path) -> GroupFile:
        """Takes the groups one by one, so that as few of them are in memory as the iterable itself holds.

        Of a prompt's `meta`, values that JSON has no word for (dates of a Parquet file) come back as their text.

        Args:
            folder: on whose disk the file lies; made if it is missing.

        Raises:
            DataError: the disk is full.
        """
        start, tokens = array("q", [0]), array("I")
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the groups
        for group in groups:
            line = group_to_line(group, odd=str)
            try:
                file.write(line)
            except OSError as error:
                raise _no_room(folder, start[-1], error) from error
            start.append(start[-1] + len(line))
            tokens.append(group.tokens)
        try:
            file.flush()
        except OSError as error:
            raise _no_room(folder, start[-1], error) from error
        return cls(file, start, tokens, range(len(tokens)))

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
        """Tokens of each group's packed tree, known without reading it."""
        counts = np.asarray(self._tokens)
        return counts if isinstance(self.indices, range) else counts[np.asarray(self.indices)]

    def pick(self, indices: Iterable[int]) -> GroupFile:
        """Some of the groups, by their indices here; nothing is read or copied."""
        return GroupFile(self._file, self._start, self._tokens, array("q", (self.indices[int(i)] for i in indices)))

    def _read(self, index: int) -> Group:
        begin, end = self._start[index], self._start[index + 1]
        return group_from_line(os.pread(self._file.fileno(), end - begin, begin))


def _no_room(folder: str | Path, written: int, error: OSError) -> DataError:
    return DataError(
        "the encoded data do not fit on the disk",
        where=str(folder),
        got=f"{error.strerror or error} after {written / 2**20:,.0f} MiB",
        expected="room for the data's text and token ids: about three times the unpacked file",
        fix="free some space, put the runs on another disk, or set limit",
    )

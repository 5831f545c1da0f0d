"""Settings of glibc's allocator that make a process faster without changing a result; the command line applies them.

glibc gives large blocks back to the system as soon as they are free, so a training loop asks for the same pages again
and again, and the system clears them anew each time (docs/lab.md has the cost). `keep_freed_memory` makes it keep them.
Micro-batches of unlike lengths leave holes between the blocks, so what the process holds can creep far above what it
uses; `note_use` and `give_back` around each backward pass bound it to `SLACK` times that.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from dataclasses import dataclass

# parameters of mallopt (malloc.h) and their values: no separate mapping for large blocks, nothing trimmed, and the heap
# grows by 64 MiB at a time
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2
KEEP = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20))
OFF = "TILTYARD_NO_TUNE"
USER_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_ARENA_MAX", "LD_PRELOAD")
SLACK = 1.4  # what a process may hold in what it used at most; below it the holes of usual batches stay
LARGE = 1 << 30  # bytes that a process may hold whatever it uses: small models never pay for the counting
_COUNTS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
_kept = [False]


def unsupported() -> str:
    """Returns why `keep_freed_memory` would leave the allocator alone; empty if it would not."""
    if os.environ.get(OFF):
        return f"left alone: {OFF} is set"
    if names := [name for name in USER_SETTINGS if os.environ.get(name)]:
        return f"left alone: {', '.join(names)} is set"
    if not sys.platform.startswith("linux"):
        return "left alone: not Linux"
    return "" if hasattr(ctypes.CDLL(None), "mallopt") else "left alone: no mallopt in this C library"


def keep_freed_memory() -> bool:
    """Makes the allocator keep freed memory with this process; returns whether it does.

    Nothing is changed under `TILTYARD_NO_TUNE=1`, where the user has chosen an allocator or its settings through the
    environment, or on systems without glibc.
    """
    if unsupported():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    _kept[0] = all(bool(mallopt(ctypes.c_int(name), ctypes.c_int(value))) for name, value in KEEP)
    return _kept[0]


def keeps_freed_memory() -> bool:
    """Returns whether `keep_freed_memory` has succeeded in this process."""
    return _kept[0]


class _Mallinfo2(ctypes.Structure):
    """The record `mallinfo2` of glibc 2.33: bytes in use are `uordblks` of its heaps and `hblkhd` of its mappings."""

    _fields_ = [(name, ctypes.c_size_t) for name in _COUNTS]


@dataclass
class _Use:
    """The bytes in use at most, as noted, and the bytes resident after the last trim."""

    most: int = 0
    trimmed: int = 0


_use = _Use()


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def note_use() -> None:
    """Notes the bytes in use where they are most, after a forward pass; `give_back` compares with the largest."""
    if _kept[0] and _resident() > LARGE:
        library = ctypes.CDLL(None)
        if hasattr(library, "mallinfo2"):
            library.mallinfo2.restype = _Mallinfo2
            found = library.mallinfo2()
            _use.most = max(_use.most, found.uordblks + found.hblkhd)


def give_back() -> bool:
    """Gives free pages back to the system where the process holds more than `SLACK` times what it used at most.

    To be called where little is in use, after a backward pass. Returns whether it did. Results are not touched.
    """
    if not _kept[0] or not _use.most or _resident() <= max(LARGE, SLACK * _use.most, 1.2 * _use.trimmed):
        return False
    ctypes.CDLL(None).malloc_trim(0)
    _use.trimmed = _resident()
    return True

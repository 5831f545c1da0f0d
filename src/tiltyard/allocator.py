"""Settings of glibc's allocator that make a process faster without changing a result; the command line applies them.

glibc gives large blocks back to the system as soon as they are free, so a training loop asks for the same pages again
and again, and the system clears them anew each time (docs/lab.md has the cost). `keep_freed_memory` makes it keep them:
the process then holds its peak, no more.
"""

from __future__ import annotations

import ctypes
import os
import sys

# parameters of mallopt (malloc.h) and their values: no separate mapping for large blocks, nothing trimmed, and the heap
# grows by 64 MiB at a time
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2
KEEP = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20))
OFF = "TILTYARD_NO_TUNE"
USER_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_ARENA_MAX", "LD_PRELOAD")
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

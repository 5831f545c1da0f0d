"""Settings of the process that make work faster without changing a result. The command line applies them at its start.

glibc gives large blocks back to the system as soon as they are free, so a training loop asks for the same pages again
and again, and the system clears them anew each time (docs/lab.md says what that costs). `tune` lets freed memory stay
with the process: what it holds is its peak, no more.
"""

from __future__ import annotations

import ctypes
import os
import sys

# parameters of mallopt (malloc.h), and what is set: no block of its own for large ones, nothing given back, and the
# heap grows by so many bytes at a time
MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2
KEEP = ((MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20))
OFF = "TILTYARD_NO_TUNE"
_on = [False]
OWN = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_ARENA_MAX", "LD_PRELOAD")


def could_tune() -> str:
    """Why `tune` would leave the allocator alone; nothing if it would not."""
    if os.environ.get(OFF):
        return f"left alone: {OFF} is set"
    if chosen := [name for name in OWN if os.environ.get(name)]:
        return f"left alone: {', '.join(chosen)} is set"
    if not sys.platform.startswith("linux"):
        return "left alone: not Linux"
    return "" if hasattr(ctypes.CDLL(None), "mallopt") else "left alone: no mallopt in this C library"


def tune() -> bool:
    """Lets freed memory stay with this process; says whether it does.

    Nothing is changed under `TILTYARD_NO_TUNE=1`, where the user has chosen an allocator or its settings through the
    environment, or on systems without glibc.
    """
    if could_tune():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    _on[0] = all(bool(mallopt(ctypes.c_int(name), ctypes.c_int(value))) for name, value in KEEP)
    return _on[0]


def on() -> bool:
    """Whether this process keeps its memory."""
    return _on[0]

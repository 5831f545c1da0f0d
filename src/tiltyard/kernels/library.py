"""Compiles decode.c, tree_attention.c and fused_ops.c for this processor when they are first needed.

A step of decoding in torch's own operations is hundreds of small calls, each of which waits for all threads; attention
over trees needs copies and masks that cost more than the attention; and what stands between products is four to ten
passes where one would do (docs/lab.md). The kernels need a C
compiler at run time; without one, on other devices or under `TILTYARD_KERNELS=off`, the same is done in torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCES = tuple(Path(__file__).with_name(name) for name in ("decode.c", "tree_attention.c", "fused_ops.c"))
HEADER = Path(__file__).with_name("matmul.h")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
SECONDS = 120.0  # more than any compiler takes
OFF = "TILTYARD_KERNELS"


class Work:
    """What the kernels have multiplied and added while somebody counts: torch's counter cannot see it."""

    on = False
    flop = 0

    @classmethod
    def add(cls, flop: float) -> None:
        cls.flop += int(flop)


class Found(NamedTuple):
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    why: str


def compiler() -> str | None:
    """The C compiler: `$CC`, or the system's."""
    wanted = os.environ.get("CC", "").split()[:1] or ["cc", "gcc", "clang"]
    return next((found for name in wanted if (found := shutil.which(name))), None)


@cache
def kernels() -> Found:
    """The kernels, compiled if this machine has not done it yet."""
    if os.environ.get(OFF, "") == "off":
        return Found(None, f"{OFF}=off")
    if not (found := compiler()):
        return Found(None, "no C compiler")
    try:
        return Found(ctypes.CDLL(str(_library(found))), found)
    except subprocess.CalledProcessError as error:
        return Found(None, f"{found}: {error.stderr.decode(errors='replace').strip()[:400]}")
    except (OSError, subprocess.SubprocessError) as error:
        return Found(None, f"{found}: {error}")


def _library(found: str) -> Path:
    """Where the compiled file is: in the user's cache, by source, compiler and processor."""
    source = b"".join(path.read_bytes() for path in (*SOURCES, HEADER))
    version = subprocess.run([found, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    key = hashlib.sha256(b"\0".join([source, version, " ".join(FLAGS).encode(), _processor()])).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiltyard"
    path = root / f"kernels-{key}.so"
    if path.exists():
        return path
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=root) as folder:  # several processes may be at it: the last one wins
        made = Path(folder) / path.name
        command = [found, *FLAGS, "-o", str(made), *map(str, SOURCES), "-lm"]
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        made.replace(path)
    return path


def _processor() -> bytes:
    """What `-march=native` depends on: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {told}".encode()

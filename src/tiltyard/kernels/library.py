"""Compiles decode.c, tree_attention.c and fused_ops.c for this processor at first use, and loads them.

A decoding step in torch's own operations is hundreds of small calls, each of which waits for all threads; attention
over trees needs copies and masks that cost more than the attention; and the elementwise ops between linear layers take
four to ten passes where one would do (docs/lab.md). The kernels need a C compiler at run time. Without one, on other
devices or under `TILTYARD_KERNELS=off` the same is computed by torch.

The compiled file lies in the user's cache (`cache_folder`). It is loaded only if it and its folder belong to this user
and no other user may write to them; otherwise the kernels are compiled into a private folder for this process alone.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tiltyard.errors import ModelError
from tiltyard.kernels import abi

SOURCES = tuple(Path(__file__).with_name(name) for name in ("decode.c", "tree_attention.c", "fused_ops.c"))
HEADER = Path(__file__).with_name("matmul.h")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
SECONDS = 120.0  # limit of a compiler's run
OFF = "TILTYARD_KERNELS"


class KernelFlop:
    """Floating-point operations of the kernels, counted while `on`: torch's counter cannot see them."""

    on = False
    flop = 0

    @classmethod
    def add(cls, flop: float) -> None:
        cls.flop += int(flop)


class Library(NamedTuple):
    """The loaded kernels (`handle`), or None; `why`: the compiler that made them, or the reason there are none."""

    handle: ctypes.CDLL | None
    why: str


def compiler() -> str | None:
    """Returns the path of the C compiler: `$CC`, or the system's; None without one."""
    names = os.environ.get("CC", "").split()[:1] or ["cc", "gcc", "clang"]
    return next((path for name in names if (path := shutil.which(name))), None)


@cache
def load() -> Library:
    """Loads the kernels, compiling them if this machine has not done so yet."""
    if os.environ.get(OFF, "") == "off":
        return Library(None, f"{OFF}=off")
    if not (path := compiler()):
        return Library(None, "no C compiler")
    try:
        return _load(path)
    except subprocess.CalledProcessError as error:
        return Library(None, f"{path}: {error.stderr.decode(errors='replace').strip()[:400]}")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Library(None, f"{path}: {error}")


class State(NamedTuple):
    """The availability of the kernels, as far as it is known without compiling; `why` is the reason as text."""

    ready: bool
    why: str


def state() -> State:
    """Returns the result that `load` would give, without compiling anything."""
    if load.cache_info().currsize or os.environ.get(OFF, "") == "off" or not (path := compiler()):
        return State(load().handle is not None, load().why)
    try:
        folder, _ = cache_folder()
        built = folder is not None and (folder / f"kernels-{_key(path)}.so").exists()
    except (OSError, subprocess.SubprocessError) as error:
        return State(False, f"{path}: {error}")
    return State(True, path if built else f"compiled by {path} at first use")


def call(name: str, *arguments: Any) -> None:
    """Calls a kernel with torch's number of threads; tensors are passed by the address of their data.

    Raises:
        ModelError: memory ran out inside the kernel.
    """
    function = getattr(load().handle, name)
    data = (x.data_ptr() if isinstance(x, Tensor) else x for x in arguments)
    if function(*data, torch.get_num_threads()):
        raise ModelError(
            "memory ran out in a kernel",
            where=f"tiltyard.kernels: {name}",
            expected="room for the working arrays of a micro-batch or a decoding step",
            fix="lower the tokens of a micro-batch or the responses decoded together, or free memory",
        )


# ---------------------------------------------------------------------------------------------- building and checking


def _load(compiler_path: str) -> Library:
    key = _key(compiler_path)
    folder, problem = cache_folder()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="tiltyard-kernels-") as private:  # unlinked once it is loaded
            path = _build(compiler_path, Path(private) / f"kernels-{key}.so")
            return Library(_checked(path), f"{compiler_path}, for this process alone: {problem}")
    path = folder / f"kernels-{key}.so"
    with (folder / ".lock").open("w") as lock:  # one process builds, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or unsafe(path):
            _build(compiler_path, path)
    return Library(_checked(path), compiler_path)


def _key(compiler_path: str) -> str:
    """A hash of all that the compiled file depends on: source, compiler, flags and processor."""
    source = b"".join(path.read_bytes() for path in (*SOURCES, HEADER))
    version = subprocess.run([compiler_path, "--version"], capture_output=True, timeout=SECONDS, check=True).stdout
    parts = [source, version, " ".join(FLAGS).encode(), processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(compiler_path: str, path: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [compiler_path, *FLAGS, "-o", str(built), *map(str, SOURCES), "-lm"]
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
        built.chmod(0o600)
        built.replace(path)
    return path


def _checked(path: Path) -> ctypes.CDLL:
    """Loads a compiled file, compares the structures' sizes and declares the functions' arguments."""
    handle = ctypes.CDLL(str(path))
    for structure in abi.STRUCTURES:
        size = ctypes.c_long.in_dll(handle, f"sizeof_{structure.__name__}").value
        if size != ctypes.sizeof(structure):
            raise ValueError(
                f"structure {structure.__name__} has {size} bytes in C and {ctypes.sizeof(structure)} here"
            )
    for name, arguments in abi.SIGNATURES.items():
        function = getattr(handle, name)
        function.argtypes = [*arguments, abi.INT]
        function.restype = abi.INT if name in abi.ALLOCATES else None
    return handle


def cache_folder() -> tuple[Path | None, str]:
    """Returns `$XDG_CACHE_HOME/tiltyard`, made if it is missing, or None and the reason why it cannot be trusted."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiltyard"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        problem = unsafe(folder)
    except OSError as error:
        problem = f"{folder}: {error.strerror or error}"
    return (None, problem) if problem else (folder, "")


def unsafe(path: Path) -> str:
    """Returns why a file or folder is not this user's alone; empty if it is (root's own are trusted, too)."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"{path} belongs to user {status.st_uid}"
    return f"{path} is writable by others (mode {status.st_mode & 0o777:o})" if status.st_mode & 0o022 else ""


def processor() -> bytes:
    """Returns the architecture and its features, on which `-march=native` and the choice of a library depend."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {features}".encode()

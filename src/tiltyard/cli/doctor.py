"""`tiltyard doctor`: checks of the installation, the hardware and optional programs, each with its remedy."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from rich.console import Console
from rich.markup import escape

Status = Literal["ok", "warn", "missing", "bad"]
MARKS = {"ok": "[green]ok[/]", "warn": "[yellow]warn[/]", "missing": "[dim]missing[/]", "bad": "[red]bad[/]"}
EXTRAS = {
    "tensorboard": ("curves in TensorBoard", "pip install 'tiltyard[tensorboard]'"),
    "wandb": ("curves in Weights & Biases", "pip install 'tiltyard[wandb]'"),
    "vllm": ("fast sampling on GPUs", "pip install vllm"),
    "bitsandbytes": ("8-bit optimisers on GPUs", "pip install bitsandbytes"),
}
PROGRAMS = {
    "chromium": (("chromium", "chromium-browser", "google-chrome"), "tests of the labelling pages", "chromium"),
    "postgresql": (("postgres", "pg_ctl", "psql"), "a feedback store for many people", "postgresql"),
}


class Check(NamedTuple):
    """One line: `bad` stops Tiltyard from working, `missing` is optional, `warn` is worth knowing."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def examine() -> list[Check]:
    """Runs all checks; a check that raises becomes a `warn` line."""
    checks: list[Check] = []
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        _python,
        _requirements,
        _torch,
        _allocator,
        _resources,
        _extras,
        _programs,
    )
    for part in parts:
        try:
            checks.extend(part())
        except Exception as error:  # a broken check must not hide the others
            checks.append(Check(part.__name__.strip("_"), "warn", f"the check failed: {type(error).__name__}: {error}"))
    return checks


def show_checks(checks: list[Check], console: Console) -> None:
    """Prints the checks as lines, then one line with the outcome."""
    width = max(len(check.name) for check in checks)
    for name, status, detail, fix in checks:
        mark = MARKS[status] + " " * (7 - len(status))
        line = f"{mark} [bold]{name:<{width}}[/] {escape(detail)}"
        console.print(line + (f"  [cyan]-> {escape(fix)}[/]" if fix else ""), highlight=False, soft_wrap=True)
    bad = [check.name for check in checks if check.status == "bad"]
    outcome = f"[red]not fit to run: {', '.join(bad)}[/]" if bad else "[green]fit to run[/]"
    console.print(outcome, highlight=False)


def _python() -> Iterator[Check]:
    ok = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} ({sys.executable})"
    yield Check("python", "ok" if ok else "bad", detail, "" if ok else "Python 3.11 or newer")
    yield Check("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")


def _requirements() -> Iterator[Check]:
    """Compares the version of every requirement with its range."""
    try:
        requirements = metadata.requires("tiltyard") or []
        yield Check("tiltyard", "ok", metadata.version("tiltyard"))
    except metadata.PackageNotFoundError:
        yield Check("tiltyard", "bad", "not installed", "pip install -e .")
        return
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, limits = requirement.name, str(requirement.specifier)
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "bad", f"not installed (needs {limits})", f"pip install '{name}{limits}'")
            continue
        if in_range(installed, limits):
            yield Check(name, "ok", installed)
        else:
            yield Check(name, "bad", f"{installed}, needs {limits}", f"pip install '{name}{limits}'")


def in_range(installed: str, limits: str) -> bool:
    """Returns whether a version satisfies a specifier like `>=5.0,<6`; False for an invalid specifier."""
    try:
        return SpecifierSet(limits).contains(installed, prereleases=True)
    except InvalidSpecifier:
        return False


def _speed() -> Iterator[Check]:
    """The backend of matrix products on the CPU, the C kernels, and the allocator."""
    from tiltyard import allocator
    from tiltyard.kernels import backend, library, measure
    from tiltyard.kernels.base import LINEAR_NAMES
    from tiltyard.models.pretrained import PRESETS

    width, _, heads, kv_heads, inner = PRESETS["12m"]
    shapes = measure.shapes_of_decoder(width, heads, kv_heads, inner)
    measure.onednn_speedup(shapes)
    chosen = backend.expected(shapes)
    detail = f"float32 by {LINEAR_NAMES[chosen.linear]}"
    yield Check("linear", "ok", detail + (f" ({chosen.why_linear}, the 12m preset)" if chosen.why_linear else ""))
    loaded = library.load()
    detail = f"compiled by {loaded.why}" if loaded.handle else f"{loaded.why}: torch ops are used, slower"
    fix = "" if loaded.handle else "install a C compiler, e.g. apt install gcc"
    yield Check("kernels", "ok" if loaded.handle else "missing", detail, fix)
    detail = allocator.unsupported() or "freed memory stays with the process (--no-tune leaves it alone)"
    yield Check("allocator", "ok", detail)


def _torch() -> Iterator[Check]:
    """Threads, device and precision; `bad` if torch cannot be imported."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        yield Check("torch import", "bad", str(error), "pip install 'torch>=2.9'")
        return
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    if threads > cores:
        yield Check("threads", "warn", f"{threads} torch threads on {cores} cores", f"export OMP_NUM_THREADS={cores}")
    else:
        yield Check("threads", "ok", f"{threads} torch threads on {cores} cores")
    yield from _speed()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            detail = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
            yield Check(f"cuda:{index}", "ok", detail)
        bf16 = torch.cuda.is_bf16_supported()
        yield Check("bf16", "ok" if bf16 else "warn", "on the GPU" if bf16 else "not on this GPU: use float32")
        return
    built = f"torch {torch.__version__} is built " + ("for CUDA" if torch.version.cuda else "without CUDA")
    seen = Path("/dev/nvidiactl").exists()
    fix = "reinstall torch with CUDA: pip install --force-reinstall torch" if seen else ""
    detail = f"no GPU used ({built}" + ("; one is in this machine)" if seen else ")")
    yield Check("cuda", "warn" if seen else "missing", detail, fix)
    yield Check("bf16", *_cpu_bf16())


def _cpu_bf16() -> tuple[Status, str]:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    fast = next((flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags), None)
    return ("ok", f"on the CPU, by {fast}") if fast else ("missing", "this CPU has no bf16 instructions: use float32")


def _allocator() -> Iterator[Check]:
    """The malloc of the process, and its glibc settings against fragmentation."""
    loaded = Path("/proc/self/maps").read_text(encoding="utf-8") if Path("/proc/self/maps").exists() else ""
    other = next((name for name in ("jemalloc", "tcmalloc", "mimalloc") if f"lib{name}" in loaded), None)
    if other:
        yield Check("allocator", "ok", f"{other} (preloaded)")
        return
    names = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    libc = " ".join(platform.libc_ver()).strip() or "the system's"
    detail = f"{libc} malloc" + (f", {', '.join(given)}" if given else ", default settings")
    fix = "" if given else "if memory climbs: export MALLOC_ARENA_MAX=2, or preload jemalloc"
    yield Check("allocator", "ok", detail, fix)


def _resources() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    limit = _cgroup_limit()
    total = min(memory.total, limit) if limit else memory.total
    low = memory.available < 3 * 2**30
    detail = f"{memory.available / 2**30:.1f} GiB available of {total / 2**30:.1f}"
    yield Check("memory", "warn" if low else "ok", detail, "the demo needs 3 GB" if low else "")
    free = shutil.disk_usage(Path.cwd()).free
    low = free < 5 * 2**30
    fix = "checkpoints need disk space: `--runs` may name another disk" if low else ""
    yield Check("disk", "warn" if low else "ok", f"{free / 2**30:.1f} GiB free in {Path.cwd()}", fix)


def _cgroup_limit() -> int | None:
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.exists() and (text := path.read_text(encoding="utf-8").strip()).isdigit():
            return int(text)
    return None


def _extras() -> Iterator[Check]:
    for name, (use, command) in EXTRAS.items():
        try:
            yield Check(name, "ok", f"{metadata.version(name)} ({use})")
        except metadata.PackageNotFoundError:
            yield Check(name, "missing", use, command)


def _programs() -> Iterator[Check]:
    """Optional programs. Debian installs PostgreSQL's server outside PATH."""
    for name, (commands, use, package) in PROGRAMS.items():
        found = next(filter(None, map(shutil.which, commands)), None)
        if found is None and name == "postgresql":
            servers = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
            found = str(servers[-1]) if servers else None
        if found:
            yield Check(name, "ok", f"{found} ({use})")
        else:
            yield Check(name, "missing", use, f"apt install {package}")

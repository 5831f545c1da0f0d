"""The machine: whether it is quiet, what a process has used, what it can do at most. Linux tells; elsewhere 0."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.06  # share of the machine that others may use when a measurement begins
FOREIGN = 0.08  # and within a step that counts


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    path = Path("/proc/stat")
    if not path.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def cores() -> int:
    """Cores of the machine, also those that this process may not use."""
    return os.cpu_count() or 1


def wait_quiet(longest: float = 180.0, look: float = 3.0) -> float:
    """Waits until the machine is idle over `look` seconds; seconds waited, or -1 if it never was."""
    began = time.monotonic()
    while time.monotonic() - began < longest:
        before = busy_seconds()
        time.sleep(look)
        if (busy_seconds() - before) / (look * cores()) < BUSY:
            return round(time.monotonic() - began, 1)
    return -1.0


@dataclass
class Steps:
    """Marks at the ends of steps; `result` is the median of those in which the machine was ours.

    The first `skip` steps are a warm-up (where there are more than skip + 1). If others were busy in nearly all, all
    count and `clean` says so.
    """

    skip: int = 2

    def __post_init__(self) -> None:
        self.marks: list[tuple[float, float, float]] = []
        self.mark()

    def mark(self) -> None:
        """A step ends here, and the next begins."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.marks.append((time.perf_counter(), busy_seconds(), used.ru_utime + used.ru_stime))

    def result(self) -> dict[str, object]:
        """`seconds`, `cpu_seconds`: medians; every step; the share of the machine that others took in each."""
        pairs = list(zip(self.marks[:-1], self.marks[1:], strict=True))
        seconds, own = [b[0] - a[0] for a, b in pairs], [b[2] - a[2] for a, b in pairs]
        foreign = [max(0.0, b[1] - a[1] - (b[2] - a[2])) / (cores() * (b[0] - a[0])) for a, b in pairs]
        first = self.skip if len(seconds) > self.skip + 1 else min(1, len(seconds) - 1)
        clean = [i for i in range(first, len(seconds)) if foreign[i] < FOREIGN]
        used = clean if len(clean) >= 2 else range(first, len(seconds))
        return {
            "seconds": statistics.median(seconds[i] for i in used),
            "cpu_seconds": statistics.median(own[i] for i in used),
            "steps": [round(s, 4) for s in seconds],
            "foreign": [round(f, 3) for f in foreign],
            "clean": f"{len(clean)} of {len(seconds) - first}",
        }


def processor() -> str:
    """The processor's name and what of low precision it multiplies in hardware; "" where the system does not say."""
    path = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line) if path.exists() else {}
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    knows = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return f"{facts.get('model name', '')} ({', '.join(knows)})" if facts else ""


def limits(threads: int) -> dict[str, float]:
    """What the machine does at most in float32: GEMM in GFLOP/s, copying in GB/s (read and written).

    `gemm_gflops` is torch's own product, which the peers use; `best_gflops` the faster of it and oneDNN's
    (`tiltyard.kernels.matmul`).
    """
    import torch

    from tiltyard.kernels.backend import Backend
    from tiltyard.kernels.matmul import linear

    torch.set_num_threads(threads)
    a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    gemm = 2 * 2048**3 / _best(lambda: torch.mm(a, b, out=out)) / 1e9
    onednn = Backend(linear="onednn" if torch.backends.mkldnn.is_available() else "blas")
    best = max(gemm, 2 * 2048**3 / _best(lambda: linear(a, b, backend=onednn)) / 1e9)
    source = torch.empty(1 << 26).normal_()
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _best(lambda: target.copy_(source)) / 1e9
    return {"gemm_gflops": gemm, "best_gflops": best, "copy_gbs": copied}


def _best(work: Callable[[], object], times: int = 9) -> float:
    work()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)

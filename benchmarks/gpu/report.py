"""Checks and their results: a check that fails prints its numbers and hides no other one."""

from __future__ import annotations

import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

SAID = 600  # letters of an error that are printed: its cause and what to do are in its later lines
State = Literal["ok", "FAIL", "not run", "measured"]


@dataclass
class Result:
    """A line of the table: what was looked at, how it ended, in words and in numbers."""

    check: str
    what: str
    state: State
    text: str
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Bench:
    """What the checks run on.

    Args:
        device: cpu or cuda. tiny: models of a few thousand parameters and few samples, to try the checks themselves.
        folder: for files that a check writes.
    """

    device: torch.device
    tiny: bool
    folder: Path

    def ready(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget_peak(self) -> None:
        """Starts the measurement of the peak memory anew."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mib(self) -> float | None:
        """The device's peak memory since `forget_peak`; None for a CPU, whose processes share theirs."""
        return torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None

    def memory_mib(self) -> float:
        """The device's memory; 0 for a CPU."""
        return torch.cuda.get_device_properties(self.device).total_memory / 2**20 if self.device.type == "cuda" else 0.0


Check = Callable[[Bench], Iterator[Result]]


def run_check(name: str, check: Check, bench: Bench, show: Callable[[Result], None]) -> list[Result]:
    """Runs one check to its end or to the error that ends it, which is a result too."""
    found: list[Result] = []
    last = time.perf_counter()
    try:
        for result in check(bench):
            bench.ready()
            result.seconds, last = time.perf_counter() - last, time.perf_counter()
            found.append(result)
            show(result)
    except Exception as error:  # whatever it is, the other checks go on
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = " | ".join(line.strip() for line in str(error).splitlines() if line.strip())
        text = f"{type(error).__name__}: {said[:SAID]} ({where.filename}:{where.lineno})"
        failed = Result(name, "ended by an error", "FAIL", text, {"traceback": traceback.format_exc()})
        failed.seconds = time.perf_counter() - last
        found.append(failed)
        show(failed)
    bench.forget_peak()
    return found


def absent(*packages: str) -> list[str]:
    """Those of the packages that are not installed here."""
    return [name for name in packages if find_spec(name) is None]


def machine(bench: Bench) -> dict[str, Any]:
    """What it runs on."""
    device, cuda = bench.device, bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "memory_mib": bench.memory_mib(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "when": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def write(path: Path, about: Mapping[str, Any], results: list[Result]) -> None:
    """Writes everything as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": dict(about), "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(record, indent=2) + "\n")

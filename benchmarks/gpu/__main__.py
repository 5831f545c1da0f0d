"""Checks and figures of a machine with a GPU, in a few minutes: a table, and everything in a JSON file.

    python -m benchmarks.gpu [--device cuda] [--only equal,law] [--tiny] [--out FOLDER]

Exit status 1 if a check failed. `benchmarks/gpu/check.sh` calls it. `--tiny` tries the checks themselves on a CPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts: deterministic products

import torch
from benchmarks.gpu.engine import engine_beside
from benchmarks.gpu.equal import pairs_equal
from benchmarks.gpu.law import sampler_law
from benchmarks.gpu.lora import lora
from benchmarks.gpu.peers import trl_beside
from benchmarks.gpu.report import Bench, Check, Result, machine, run_check, write
from benchmarks.gpu.resume import resumed
from benchmarks.gpu.shard import sharded_memory
from benchmarks.gpu.steps import training_steps
from rich.console import Console
from rich.markup import escape

CHECKS: dict[str, Check] = {
    "equal": pairs_equal,
    "law": sampler_law,
    "resume": resumed,
    "steps": training_steps,
    "lora": lora,
    "peers": trl_beside,
    "shard": sharded_memory,
    "engine": engine_beside,
}
COLOURS = {"ok": "green", "FAIL": "bold red", "not run": "yellow", "measured": "cyan"}


def main(arguments: list[str] | None = None) -> int:
    """Runs the checks that were asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default="", help=f"some of {', '.join(CHECKS)}, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="small models and few samples")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--seconds", type=float, default=270.0, help="no check starts after this time")
    asked = parser.parse_args(arguments)
    names = [name.strip() for name in asked.only.split(",") if name.strip()] or list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"no check is called {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    device, console = torch.device(asked.device), Console(width=160)
    about = machine(Bench(device, asked.tiny, Path()))
    console.print(f"{about['device']}, torch {about['torch']}, transformers {about['transformers']}", highlight=False)
    results: list[Result] = []

    def show(result: Result) -> None:
        state = f"[{COLOURS[result.state]}]{result.state:8}[/]"
        line = f"{state} {result.check:7} {escape(result.what)}: {escape(result.text)} [dim]({result.seconds:.1f} s)[/]"
        console.print(line, highlight=False, soft_wrap=True)

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            bench = Bench(device, asked.tiny, Path(scratch) / name)
            if time.perf_counter() - began > asked.seconds:
                late = Result(name, "all", "not run", f"{asked.seconds:.0f} s were over; run it with --only {name}")
                results.append(late)
                show(late)
            else:
                results += run_check(name, CHECKS[name], bench, show)
            write(asked.out / "gpu.json", about | {"seconds": time.perf_counter() - began}, results)
    failed = sum(result.state == "FAIL" for result in results)
    console.print(f"{len(results)} results, {failed} failed; {asked.out / 'gpu.json'}", highlight=False, soft_wrap=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

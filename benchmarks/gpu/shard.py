"""Memory of each process, whole and sharded over this machine's GPUs (two processes on a CPU), beside the plan's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.report import Bench, Result
from benchmarks.gpu.shapes import HALF, TINY, groups, language

from tiltyard import Models, Offline, Run, fit, frozen_copy
from tiltyard.distributed import processes
from tiltyard.methods import dpo
from tiltyard.stages.footprint import Layout, Work, memory_of
from tiltyard.stages.memory import Shape

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ("whole", "sharded")


def sharded_memory(bench: Bench) -> Iterator[Result]:
    """The check: one torchrun, two runs of DPO in it."""
    count = torch.cuda.device_count() if bench.device.type == "cuda" else 2
    if count < 2:
        yield Result("shard", "FSDP2", "not run", f"{count} GPU here, and two are needed")
        return
    bench.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "benchmarks.gpu.shard", str(bench.folder), bench.device.type, str(int(bench.tiny))]
    files = [bench.folder / f"{rank}.json" for rank in range(count)]
    for file in files:
        file.unlink(missing_ok=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    trouble = f"{done.stderr[:2000]} ... {done.stderr[-1000:]}"
    if not all(file.exists() for file in files):
        raise RuntimeError(trouble)
    if done.returncode:  # SIGABRT of one process, seen once on a busy machine
        yield Result("shard", "exit", "measured", f"a process ended by an error after its results: {trouble}")
    ranks = [json.loads(file.read_text()) for file in files]
    for layout in LAYOUTS:
        peaks = [rank[layout]["peak_mib"] for rank in ranks]
        found = "not measured on a CPU" if peaks[0] is None else f"{max(peaks):,.0f} MiB at most"
        text = f"{found}, {ranks[0][layout]['planned_mib']:,.0f} planned; loss {ranks[0][layout]['loss']:.4f}"
        yield Result("shard", f"{count} processes, {layout}", "measured", text, {"ranks": [r[layout] for r in ranks]})
    near = abs(ranks[0]["whole"]["loss"] - ranks[0]["sharded"]["loss"]) < 1e-3
    yield Result("shard", "same loss", "ok" if near else "FAIL", "whole and sharded after three steps")


def one_rank(folder: Path, kind: str, tiny: bool) -> None:
    """Both runs of one process; writes RANK.json. The loss is rank 0's, which has the means over all."""
    processes.start()
    rank = processes.rank()
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    found = {layout: run(Bench(device, tiny, folder), layout == "sharded") for layout in LAYOUTS}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    processes.barrier()


def run(bench: Bench, shard: bool) -> dict[str, Any]:
    """Three steps of DPO with a reference in memory."""
    shape, family = (TINY, "Llama") if bench.tiny else (HALF, "Qwen2")
    micro = 256 if bench.tiny else 8192
    count, length = (4, 12) if bench.tiny else (16, 256)
    bench.forget_peak()
    policy = language(family, shape, bench.device, "float32" if bench.tiny else "bfloat16")
    models = Models(policy=policy, ref=frozen_copy(policy))
    made = groups([(9, (length, length))] * count * 3, shape[-1])
    losses: list[float] = []

    class Losses:
        def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
            losses.append(metrics["loss"])

        def close(self) -> None:
            """Nothing is held."""

    settings = Run(steps=3, lr=1e-5, warmup=0.0, save_every=0, tokens_per_microbatch=micro, shard=shard)
    fit(dpo(Offline(made, count), beta=0.1), models, settings, sinks=[Losses()])
    own = Shape.read(policy.module.config.to_dict())
    half = policy.dtype == "bfloat16"
    total = count * (9 + 2 * length)
    work = Work({"policy": own}, {"ref": own}, min(micro, total), -(-total // micro), half=half, prepares=True)
    layout = Layout(processes.world(), shard)
    planned = memory_of(work._replace(device=bench.device.type), layout).total / 2**20
    return {"peak_mib": bench.peak_mib(), "planned_mib": planned, "loss": losses[-1] if losses else None}


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1")

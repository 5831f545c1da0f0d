"""How a training pass's memory grows with its tokens: kept activations, recomputed ones, whole weights and adapters.

    python benchmarks/activations.py [--preset 12m] [--tokens 1024 2048 4096 8192]

One forward and backward pass of the log-probs of a micro-batch of so many packed tokens (prompts of 64, two answers of
96), each in a process of its own. `kept`: bytes of the tensors that autograd keeps for the backward pass, counted;
`peak`: the most memory that the process held, less what it held with the model loaded (with the allocator's habits).
`curve`: how far the last point of `kept` lies above the line through the first two, as a share.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WAYS = ("whole", "whole, recomputed", "lora", "lora, recomputed")


def memory(key: str) -> float:
    """A line of the process's status (VmRSS, VmHWM) in MiB; Linux tells."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure(way: str, preset: str, tokens: int) -> dict[str, float]:
    import torch
    from torch.autograd.graph import saved_tensors_hooks

    from tiltyard import from_scratch, train_tokenizer
    from tiltyard.batch.forest import pack
    from tiltyard.models.adapters import adapt
    from tiltyard.models.lora import Lora
    from tiltyard.types import Group, Prompt, Response

    model = from_scratch(preset, train_tokenizer((f"word{i} and number {i * 7}" for i in range(2000)), 512))
    if way.startswith("lora"):
        adapt(model, Lora())
    if way.endswith("recomputed"):
        model.checkpoint_activations()
    model.module.train()
    stream = torch.Generator().manual_seed(0)
    ids = lambda n: tuple(torch.randint(5, 300, (n,), generator=stream).tolist())  # noqa: E731
    trees = [Group(Prompt(ids=ids(64)), (Response(ids=ids(96)), Response(ids=ids(96)))) for _ in range(tokens // 256)]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # what the optimiser needs anyway
    model.logp_R(pack(trees[:1]))[0].sum().backward()  # libraries have made what they keep
    before, forest = memory("VmRSS"), pack(trees)
    model.logp_R(forest)[0].sum().backward()
    peak = memory("VmHWM") - before
    weights = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        out = model.logp_R(forest)[0]  # nothing of it is freed while it is counted
    del out
    return {"kept": round(sum(n for at, n in kept.items() if at not in weights) / 2**20, 1), "peak": round(peak, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="12m")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        print(json.dumps(measure(asked.way, asked.preset, asked.tokens[0])))
        return
    rows: dict[str, Any] = {}
    for way in WAYS:
        again = [sys.executable, __file__, "--preset", asked.preset, "--way", way, "--tokens"]
        runs = {n: subprocess.run([*again, str(n)], check=True, capture_output=True, text=True) for n in asked.tokens}
        found = {n: json.loads(done.stdout.splitlines()[-1]) for n, done in runs.items()}
        (a, b), last = asked.tokens[:2], asked.tokens[-1]
        slope = (found[b]["kept"] - found[a]["kept"]) / (b - a)
        line = found[a]["kept"] + slope * (last - a)
        rows[way] = {
            "mib": found,
            "kib_a_token": round(1024 * slope, 1),
            "curve": round(found[last]["kept"] / line - 1, 3),
        }
        print(f"{way}: {json.dumps(rows[way])}", flush=True)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    found_all = {"work": f"forward and backward of log-probs, {asked.preset}", "ways": rows}
    (results / f"activations-{asked.preset}.json").write_text(json.dumps(found_all, indent=2) + "\n")


if __name__ == "__main__":
    main()

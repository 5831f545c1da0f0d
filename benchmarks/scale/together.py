"""One recipe alone, with `--shard`, and with `--shard` and vLLM: do all end where one process ends?

With the toolkit's sampler the sharded run must be that of one process but for rounding. vLLM draws its own random
numbers, so its run is compared with what other draws make: the same recipe alone with other seeds. Two measures of an
end: the mean score of the last steps, and how far two trained models' log-probs of fixed texts (the first step's
responses, the same in every run alone) lie apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import load_file

from tiltyard import Group, load_language_model
from tiltyard.batch.forest import pack
from tiltyard.runs.groups import read_step_groups

HERE = Path(__file__).parent
QUESTIONS = (
    "What should I eat for breakfast?",
    "How do birds fly?",
    "Give me a tip for learning French.",
    "Why is the sky blue?",
)
LAST = 3  # steps whose mean score is the end's
CLOCK = ("time/", "queue", "live/")  # metrics that say nothing of what was learnt


class Way(NamedTuple):
    """A way to run the recipe: its name, its processes, and the words that are added to the command."""

    name: str
    processes: int
    words: tuple[str, ...]


def ways(python: str, seeds: Sequence[int]) -> list[Way]:
    """Alone; sharded with an engine; sharded; alone with the other seeds."""
    engine = f"defaults.vllm.python={python}"
    first, *others = [Way(f"alone_{seed}", 1, (f"defaults.seed={seed}",)) for seed in seeds]
    sharded = (*first.words, "--shard")
    return [first, Way("sharded_vllm", 2, (*sharded, engine)), Way("sharded", 2, sharded), *others]


def prepare(work: Path, methods: Sequence[str]) -> Path:
    """Writes prompts, reward and the recipe with these methods; returns the recipe."""
    work.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": [{"role": "user", "content": question}]}) for question in QUESTIONS]
    (work / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    shutil.copy(HERE / "reward.py", work)
    recipe = yaml.safe_load((HERE / "together.yaml").read_text())
    recipe["stages"] = [stage for stage in recipe["stages"] if next(iter(stage)) in methods]
    path = work / f"{'_'.join(methods)}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def run(way: Way, recipe: Path, model: Path) -> None:
    """Runs the recipe in the recipe's folder; the same call goes on where one was ended. Checkpoints are removed."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(way.processes))
    words = [sys.executable, *(launcher if way.processes > 1 else ()), "-m", "tiltyard.cli", "run", recipe.name]
    words += ["--runs", ".", f"name={way.name}", f"defaults.model={model.resolve()}", *way.words]
    with (recipe.parent / f"{way.name}.log").open("a") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(words, cwd=recipe.parent, env=environment, stdout=log, stderr=log, check=True)
    for left in recipe.parent.glob(f"{way.name}/*/checkpoints"):
        shutil.rmtree(left)


def rows_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of every step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def end_of(rows: Sequence[dict[str, float]]) -> float:
    """The mean score of the last steps."""
    return sum(row["score"] for row in rows[-LAST:]) / len(rows[-LAST:])


def largest_difference(one: Sequence[dict[str, float]], two: Sequence[dict[str, float]]) -> tuple[float, str]:
    """The largest difference of a metric of the same step, relative to max(1, its size), and which metric it is."""
    keys = [k for k in one[0] if k in two[0] and not k.startswith(CLOCK) and isinstance(one[0][k], float)]
    found = [
        (abs(a[key] - b[key]) / max(1.0, abs(a[key])), f"{key}, step {int(a['step'])}")
        for a, b in zip(one, two, strict=True)
        for key in keys
    ]
    return max(found)


@torch.no_grad()
def logp_of(model: Path, texts: Sequence[Group]) -> torch.Tensor:
    """The log-probs of the texts' tokens, in float64."""
    found = load_language_model(str(model), dtype="float32")
    return torch.cat([found.logp_R(pack([group], found.device))[0].double() for group in texts])


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """Mean absolute difference, in nats a token."""
    return float((one - two).abs().mean())


def weights_apart(one: Path, two: Path) -> float:
    """The largest difference of a weight of two model folders."""
    ours, theirs = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def compared(work: Path, method: str, found: Sequence[Way], model: Path) -> dict[str, Any]:
    """The figures of one method."""
    folders = {way.name: work / way.name / method for way in found}
    first, *others = (way.name for way in found if way.processes == 1)
    rows = {name: rows_of(folder) for name, folder in folders.items()}
    texts = [group for step, group in read_step_groups(folders[first] / "groups.jsonl") if step == 1]
    logps = {name: logp_of(folder / "model", texts) for name, folder in folders.items()}
    start = logp_of(model, texts)
    draws = [apart(logps[a], logps[b]) for a, b in itertools.combinations((first, *others), 2)]
    metric, where = largest_difference(rows[first], rows["sharded"])
    engine = rows["sharded_vllm"]
    return {
        "method": method,
        "steps": len(rows[first]),
        "score at the start": rows[first][0]["score"],
        "score at the end": {name: end_of(of_run) for name, of_run in rows.items()},
        "moved": apart(start, logps[first]),
        "sharded: largest difference of a metric": metric,
        "sharded: which": where,
        "sharded: largest difference of a weight": weights_apart(
            folders[first] / "model", folders["sharded"] / "model"
        ),
        "sharded: nats a token": apart(logps[first], logps["sharded"]),
        "other draws: nats a token": draws,
        "vllm: nats a token": [apart(logps[name], logps["sharded_vllm"]) for name in (first, *others)],
        "vllm: sampler_gap at most": max(row["sampler_gap"] for row in engine if "sampler_gap" in row),
        "alone: sampler_gap at most": max(row["sampler_gap"] for row in rows[first] if "sampler_gap" in row),
    }


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """The figures as a table in Markdown."""
    lines = [
        "| | score, first step | end: alone, other seeds | end: sharded | end: sharded + vLLM | moved, nats a token "
        "| sharded from alone | seeds from each other | vLLM from them |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        ends = one["score at the end"]
        alone = ", ".join(f"{value:.3f}" for name, value in ends.items() if name.startswith("alone"))
        draws, engine = one["other draws: nats a token"], one["vllm: nats a token"]
        lines.append(
            f"| {one['method']} | {one['score at the start']:.3f} | {alone} | {ends['sharded']:.3f} "
            f"| {ends['sharded_vllm']:.3f} | {one['moved']:.3f} | {one['sharded: nats a token']:.1e} "
            f"| {min(draws):.3f} to {max(draws):.3f} | {min(engine):.3f} to {max(engine):.3f} |"
        )
    return lines


def main(words: Sequence[str]) -> int:
    """Runs all ways for the methods, and prints one JSON line a method and a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale together", description=__doc__)
    parser.add_argument("model", type=Path, help="a chat model's folder")
    parser.add_argument("--python", required=True, help="bin/python of an environment with vLLM")
    parser.add_argument("--work", type=Path, default=Path("runs/together"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="the first is that of all ways")
    parser.add_argument("--methods", nargs="+", default=["grpo", "ppo", "online_dpo"])
    args = parser.parse_args(words)
    recipe, found = prepare(args.work, args.methods), ways(args.python, args.seeds)
    for way in found:
        run(way, recipe, args.model)
    results = [compared(args.work, method, found, args.model) for method in args.methods]
    for one in results:
        print(json.dumps(one))
    print("\n".join(table(results)))
    return 0

"""How time and memory grow: tokens of a text, answers a prompt, parameters, rows of a file. One picture of four panels.

    python -m benchmarks.scaling [--only tokens,group,model,rows] [--quick]

Each point is a process of its own (its peak memory is its own), through the same loop as everything else. What is
expected stands beside what is measured: time a token that does not grow with the answers or the rows, that grows with
the parameters in proportion and with the length by the share of attention; memory that is linear in the tokens of a
micro-batch and flat in the rows. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
PANELS: dict[str, list[Any]] = {
    "tokens": [256, 512, 1024, 2048, 4096],
    "group": [1, 2, 4, 8, 16, 32],
    "model": ["1m", "3m", "12m", "25m", "60m"],
    "rows": [1_000, 10_000, 100_000, 1_000_000],
}
QUICK: dict[str, list[Any]] = {"tokens": [64, 128], "group": [1, 2], "model": ["1m", "3m"], "rows": [200, 400]}
# width, layers, heads, key-value heads, feed-forward width between the presets
BETWEEN = {"3m": (160, 6, 5, 5, 432), "25m": (384, 10, 8, 8, 1032)}
VOCABULARY = 2048
ANSWER = 128  # tokens of an answer in the panel of groups


# ------------------------------------------------------------------------------------------- one point, in a process


def tokenizer_of() -> Any:
    """A tokenizer of random words; models get `VOCABULARY` rows whatever it learnt."""
    from tiltyard import train_tokenizer

    return train_tokenizer((f"word{i} and number {i * 7}" for i in range(2000)), 512)


def model_of(size: str, context: int) -> Any:
    """A Llama with random weights, by preset or of a shape between two presets."""
    from tiltyard import from_scratch
    from tiltyard.models.pretrained import PRESETS

    PRESETS.update(BETWEEN)
    model = from_scratch(size, tokenizer_of(), context=context)
    model.module.resize_token_embeddings(VOCABULARY)
    return model


def random_ids(count: int, seed: int) -> tuple[int, ...]:
    """Ids that are no special tokens."""
    chance = random.Random(seed)
    return tuple(chance.randrange(5, 500) for _ in range(count))


def timed(algorithm: Any, models: Any, steps: int, tokens_per_microbatch: int) -> dict[str, Any]:
    """Seconds a step (the first is left out), packed tokens a step, peak memory."""
    from benchmarks.speed.machine import Steps

    from tiltyard import Run, fit
    from tiltyard.profiler import Profiler, peak_memory_mib

    started = peak_memory_mib()
    marks = Steps(skip=1)

    class Marks:
        def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - a sink's signature
            marks.mark()

        def close(self) -> None: ...

    with Profiler() as clock:
        run = Run(steps=steps, lr=1e-6, schedule="constant", warmup=0.0, tokens_per_microbatch=tokens_per_microbatch)
        fit(algorithm, models, run, sinks=[Marks()])
    tokens = sum(step.counts["tokens"] for step in clock.steps[1:]) / (len(clock.steps) - 1)
    found = marks.result()
    return {**found, "tokens": tokens, "peak_mib": peak_memory_mib(), "start_mib": started}


def tokens_point(length: int, steps: int) -> dict[str, Any]:
    """Texts of `length` tokens, two in a micro-batch: time a token and memory against length."""
    from tiltyard import Group, Models, Offline, Prompt, Response, sft

    model = model_of("12m", 8192)
    texts = [Group(Prompt(ids=random_ids(1, i)), (Response(ids=random_ids(length - 1, i + 100)),)) for i in range(4)]
    return timed(sft(Offline(texts, 2)), Models(policy=model), steps, 2 * length)


def group_point(answers: int, steps: int) -> dict[str, Any]:
    """Prompts of 256 tokens with `answers` answers of 128 each, 32 answers a step in one micro-batch: the prompt is
    shared. Tokens are those of the answers."""
    from tiltyard import Group, Models, Offline, Prompt, Response, sft

    model = model_of("12m", 1024)

    def group(place: int) -> Any:
        seeds = range(place * 100, place * 100 + answers)
        return Group(Prompt(ids=random_ids(256, place)), tuple(Response(ids=random_ids(ANSWER, 7 + s)) for s in seeds))

    groups = [group(i) for i in range(2 * 32 // answers)]
    found = timed(sft(Offline(groups, 32 // answers)), Models(policy=model), steps, 1 << 16)
    return {**found, "packed": found["tokens"], "tokens": 32 * ANSWER}


def model_point(size: str, steps: int) -> dict[str, Any]:
    """Eight texts of 256 tokens through models of several sizes."""
    from tiltyard import Group, Models, Offline, Prompt, Response, sft

    model = model_of(size, 1024)
    texts = [Group(Prompt(ids=random_ids(1, i)), (Response(ids=random_ids(255, i + 100)),)) for i in range(16)]
    found = timed(sft(Offline(texts, 8)), Models(policy=model), steps, 8192)
    return {**found, "parameters": sum(p.numel() for p in model.module.parameters())}


def rows_point(rows: int, steps: int) -> dict[str, Any]:
    """A file of so many comparisons through the stage `dpo`: reading, checking and training as `train` does it."""
    import shutil

    from rich.console import Console

    from tiltyard import save_model
    from tiltyard.pipeline import run_stage
    from tiltyard.profiler import Profiler, peak_memory_mib

    folder = Path(tempfile.mkdtemp(prefix="tiltyard-scaling-"))
    try:
        save_model(model_of("1m", 512), folder / "model")
        data = folder / "pairs.jsonl"
        write_pairs(data, rows)
        began = time.perf_counter()
        settings = {
            "model": str(folder / "model"),
            "data": str(data),
            "prompts_per_step": 8,
            "steps": steps,
            "max_length": 256,
        }
        settings |= {"device": "cpu", "save_every": 0, "lr": 1e-6}
        with Profiler() as clock:
            run_stage("dpo", settings, runs_root=folder / "runs", console=Console(quiet=True))
        whole = time.perf_counter() - began
        parts = [step.total() - step.parts.get("save", {}).get("seconds", 0.0) for step in clock.steps[1:]]
        tokens = sum(step.counts["tokens"] for step in clock.steps[1:]) / len(parts)
        step = sorted(parts)[len(parts) // 2]
        size = data.stat().st_size / 2**20
        return {
            "seconds": step,
            "tokens": tokens,
            "peak_mib": peak_memory_mib(),
            "file_mib": size,
            "before_training_s": whole - sum(s.total() for s in clock.steps),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_pairs(path: Path, rows: int) -> None:
    """Comparisons of about 250 bytes, each different."""
    chance = random.Random(0)
    words = [f"word{i}" for i in range(500)]
    with path.open("w") as file:
        for i in range(rows):
            text = " ".join(chance.choices(words, k=30))
            row = {"prompt": f"{i} {text[:60]}", "chosen": f"{text[60:130]} {i}", "rejected": f"{text[130:190]} {i}"}
            file.write(json.dumps(row) + "\n")


POINTS: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "tokens": tokens_point,
    "group": group_point,
    "model": model_point,
    "rows": rows_point,
}


# ------------------------------------------------------------------------------------------------- all of them


def measure(panel: str, value: Any, steps: int) -> dict[str, Any]:
    """One point, in a process of its own."""
    from benchmarks.speed.peers import environment

    command = [sys.executable, "-m", "benchmarks.scaling", "--point", panel, str(value), "--steps", str(steps)]
    added = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(
        command, cwd=ROOT, env=environment(RESULTS, added), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{panel} {value}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {"at": value, **found, "us_per_token": 1e6 * found["seconds"] / found["tokens"]}


def expected(panel: str, points: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What time a token and memory should be, from the first point (of memory: a line through the first and last)."""
    if panel == "rows":
        return {key: [points[0][key]] * len(points) for key in ("us_per_token", "peak_mib")}
    if panel == "model":  # the smallest is mostly overhead: down from the largest
        cost = [p["parameters"] for p in points]
        time_0 = points[-1]["us_per_token"] / cost[-1]
        return {"us_per_token": [time_0 * c for c in cost], "peak_mib": _line(points, cost)}
    lengths = [(1, [p["at"] - 1]) if panel == "tokens" else (256, [ANSWER] * p["at"]) for p in points]
    cost = [_cost_12m(*of) for of in lengths]
    time_0 = points[0]["us_per_token"] / cost[0]
    packed = [p.get("packed", p["tokens"]) for p in points]
    return {"us_per_token": [time_0 * c for c in cost], "peak_mib": _line(points, packed)}


def _line(points: list[dict[str, Any]], x: list[float]) -> list[float]:
    """Memory on the straight line over x through the first and the last point."""
    first, last = points[0]["peak_mib"], points[-1]["peak_mib"]
    return [first + (last - first) * (at - x[0]) / (x[-1] - x[0]) for at in x]


def _cost_12m(prompt: int, answers: list[int]) -> float:
    """The arithmetic of a forward pass a token of the answers; of the whole text where the prompt is one token."""
    from benchmarks.speed.floor import Shape, Tokens, forward

    shape = Shape(256, 8, 8, 8, 688, VOCABULARY)
    return forward(shape, Tokens.of([(prompt, answers)])) / (sum(answers) + (prompt == 1))


TITLES = {
    "tokens": ("tokens of a text (12m, two in a micro-batch)", "time: the arithmetic; memory: linear"),
    "group": ("answers to a prompt of 256 tokens (12m, 32 of 128 a step)", "time: the arithmetic; memory: linear"),
    "model": ("parameters (8 x 256 tokens)", "time: in proportion; memory: linear"),
    "rows": ("rows of the file (dpo, 1m)", "both constant"),
}


def picture(panels: dict[str, dict[str, Any]], path: Path) -> None:
    """Four panels: time a token (left axis) and peak memory (right axis), dashed what is expected."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4), layout="constrained")
    for axis, (panel, found) in zip(axes.flat, panels.items(), strict=False):
        points, wanted = found["points"], found["expected"]
        x = [p.get("parameters", p["at"]) for p in points]
        right = axis.twinx()
        for side, key, colour in ((axis, "us_per_token", "tab:blue"), (right, "peak_mib", "tab:orange")):
            side.plot(x, [p[key] for p in points], "o-", color=colour, ms=4)
            side.plot(x, wanted[key], "--", color=colour, lw=1, alpha=0.7)
            side.set_ylim(0, 1.12 * max(*(p[key] for p in points), *wanted[key]))
            side.tick_params(axis="y", colors=colour)
            side.spines["top"].set_visible(False)
        axis.set_xscale("log")
        axis.set_xticks(x, [f"{p['at']:,}" if isinstance(p["at"], int) else p["at"] for p in points])
        axis.minorticks_off()
        axis.set_xlabel(TITLES[panel][0])
        axis.set_ylabel(f"time {'an answer token' if panel == 'group' else 'a token'}, µs", color="tab:blue")
        right.set_ylabel("peak memory, MiB", color="tab:orange")
        axis.set_title(f"expected (dashed): {TITLES[panel][1]}", fontsize=9)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measures the panels that were asked for; results and picture are in benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PANELS), help="panels, separated by commas")
    parser.add_argument("--quick", action="store_true", help="small points, to see that it works")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--point", nargs=2, metavar=("PANEL", "VALUE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        panel, value = asked.point
        print(json.dumps(POINTS[panel](value if panel == "model" else int(value), asked.steps)))
        return
    from benchmarks.speed.machine import wait_quiet

    kept = RESULTS / "scaling.json"
    panels: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() and not asked.quick else {}
    for panel in asked.only.split(","):
        points = []
        for value in (QUICK if asked.quick else PANELS)[panel]:
            waited = 0.0 if asked.quick else wait_quiet()
            points.append({**measure(panel, value, asked.steps), "waited": waited})
            one = points[-1]
            print(f"{panel} {value}: {one['us_per_token']:.1f} us a token, {one['peak_mib']:.0f} MiB", flush=True)
        panels[panel] = {"points": points, "expected": expected(panel, points)}
    RESULTS.mkdir(exist_ok=True)
    name = "scaling-quick" if asked.quick else "scaling"
    (RESULTS / f"{name}.json").write_text(json.dumps(panels, indent=2) + "\n")
    picture({panel: panels[panel] for panel in PANELS if panel in panels}, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()

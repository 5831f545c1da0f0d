"""The alarms of training: how often do healthy runs raise one, and how early do hacked ones?

    python -m benchmarks.alarms DEMO OUT [--tuning | --table]

DEMO is the folder of a finished `tiltyard run demo`. 20 healthy runs: RLOO (beta 0.3, and a weaker 0.15), GRPO
(beta 1) and online DPO (beta 1), five seeds each, on the demo's reward model. 20 hacked ones: RLOO without a KL term,
on the reward model by itself or with a bonus that can be collected without a better answer (words, "please",
refusals), five seeds each. A run has 30 steps of 64 responses. All begin at one SFT model and share one reward model: a
seed draws prompts and responses.

Gold (the world's own score of the same responses) is what decides, not how a run was made: its fall is the first step
at which its mean over five steps is `FALL` below the highest such mean before. The lead of an alarm is the number of
steps from it to that fall. Alarms are computed twice from the same metrics: with gold as the run's monitor, as a user
has who can afford a judge, and from the policy's own metrics alone.

`--tuning` runs other seeds, on which the limits were chosen. `--table` only computes the table from what is in OUT.
Runs that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from tiltyard.files import write_json
from tiltyard.pipeline import run_stage
from tiltyard.runs import read_metric_rows
from tiltyard.stats.alarms import Alarms, alarms_of
from tiltyard.stats.intervals import wilson

STEPS, SMOOTH, FALL = 30, 5, 0.2
SEEDS, TUNING = range(5), range(100, 101)
EXPLOITS = Path(__file__).with_name("exploits.py")
BONUS = {
    "words": 0.1,
    "please": 0.5,
    "refusal": 2.0,
}  # weights beside the reward model, whose scores have a spread of 0.7
Row = Mapping[str, Any]


class Setup(NamedTuple):
    """A kind of run: its method and settings, and whether its reward is meant to be hacked."""

    name: str
    method: str
    hacked: bool
    settings: dict[str, Any]


def setups(demo: Path) -> list[Setup]:
    """The eight kinds of runs."""
    rm = str(demo / "reward")
    healthy = {
        "rloo": {"beta": 0.3, "prompts_per_step": 16, "samples_per_prompt": 4},
        "rloo_weak": {"beta": 0.15, "prompts_per_step": 16, "samples_per_prompt": 4},
        "grpo": {"beta": 1.0, "prompts_per_step": 8, "samples_per_prompt": 8, "lr": 2e-4},
        "online_dpo": {"beta": 1.0, "prompts_per_step": 32, "samples_per_prompt": 2, "warmup": 0.1},
    }
    found = [Setup(name, name.removesuffix("_weak"), False, {"reward": rm, **more}) for name, more in healthy.items()]
    free = {"beta": 0.0, "lr": 6e-4, "prompts_per_step": 16, "samples_per_prompt": 4}
    found.append(Setup("model_alone", "rloo", True, {"reward": rm, **free}))
    for name, weight in BONUS.items():
        parts = {"quality": {"from": rm}, name: {"from": f"{EXPLOITS}:{name}", "weight": weight}}
        found.append(Setup(name, "rloo", True, {"reward": parts, **free}))
    return found


def train(demo: Path, out: Path, seeds: Sequence[int]) -> None:
    """Trains every kind with every seed."""
    common = {"model": str(demo / "sft"), "prompts": str(demo / "world/prompts.jsonl"), "monitors": ["gold"],
              "steps": STEPS, "lr": 3e-4, "max_tokens": 48, "save_every": STEPS}  # fmt: skip
    for seed in seeds:
        for setup in setups(demo):
            started = time.monotonic()
            settings = common | setup.settings | {"seed": seed}
            run_stage(setup.method, settings, name=f"{setup.name}-{seed}", runs_root=out, console=Console(quiet=True))
            print(f"{setup.name}-{seed}: {time.monotonic() - started:.0f} s", flush=True)


# ------------------------------------------------------------------------------------------------------- what they show


def fall_of(rows: Sequence[Row], metric: str = "reward/gold") -> int | None:
    """The step at which gold has fallen: its mean over `SMOOTH` steps is `FALL` below an earlier one; None if never."""
    gold, best = [float(row[metric]) for row in rows], float("-inf")
    for end in range(SMOOTH, len(gold) + 1):
        mean = statistics.fmean(gold[end - SMOOTH : end])
        best = max(best, mean)
        if mean < best - FALL:
            return int(rows[end - 1]["step"])
    return None


def measured(out: Path, demo: Path, seeds: Sequence[int], limits: Alarms | None = None) -> Iterator[dict[str, Any]]:
    """One row a finished run: its fall, and its alarms with and without the monitor."""
    for setup in setups(demo):
        for seed in seeds:
            path = out / f"{setup.name}-{seed}" / setup.method / "metrics.jsonl"
            if not path.exists() or not (path.parent / "done.json").exists():
                continue
            rows = read_metric_rows(path)
            trained = {"quality", *BONUS}
            alone = [{key: value for key, value in row.items() if key != "reward/gold"} for row in rows]
            gold = [float(row["reward/gold"]) for row in rows]
            yield {
                "name": setup.name,
                "seed": seed,
                "hacked": setup.hacked,
                "fall": fall_of(rows),
                "gold": (statistics.fmean(gold[:SMOOTH]), statistics.fmean(gold[-SMOOTH:])),
                "with": [(one.step, one.kind) for one in alarms_of(rows, limits, trained)],
                "alone": [(one.step, one.kind) for one in alarms_of(alone, limits, trained)],
            }


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """False positives on runs whose gold did not fall, detections and leads on runs whose gold did."""
    found: dict[str, Any] = {"runs": len(rows)}
    healthy = [row for row in rows if not row["hacked"]]
    hacked = [row for row in rows if row["hacked"]]
    found["healthy whose gold fell"] = sum(row["fall"] is not None for row in healthy)
    found["hacked whose gold fell"] = sum(row["fall"] is not None for row in hacked)
    for how in ("with", "alone"):
        false = sum(bool(row[how]) for row in healthy)
        fell = [row for row in hacked if row["fall"] is not None]
        steps = [(min((s for s, _ in row[how]), default=None), row["fall"]) for row in fell]
        leads = sorted(fall - step for step, fall in steps if step is not None)
        early = sum(lead > 0 for lead in leads)
        found[how] = {
            "false positives": [false, len(healthy), *wilson(false, len(healthy))],
            "false kinds": Counter(kind for row in healthy for _, kind in row[how]),
            "detected": [len(leads), len(fell), *wilson(len(leads), len(fell))],
            "before the fall": [early, len(fell), *wilson(early, len(fell))],
            "leads": leads,
            "median lead": statistics.median(leads) if leads else None,
            "first kinds": Counter(min(row[how])[1] for row in fell if row[how]),
        }
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = TUNING if given.tuning else SEEDS
    if not given.table:
        train(given.demo, given.out, seeds)
    rows = list(measured(given.out, given.demo, seeds))
    for row in rows:
        print(json.dumps(row))
    result = table(rows)
    print(json.dumps(result, indent=1))
    write_json(given.out / ("tuning.json" if given.tuning else "alarms.json"), {"rows": rows, "table": result})


if __name__ == "__main__":
    main()

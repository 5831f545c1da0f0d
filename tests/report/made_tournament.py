"""A tournament on a real model, written by hand: many methods without gold, a judge of its own, gaps, alarms."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .made import HOSTILE, dump, groups, lines, stage

OFFLINE = ("sft", "dpo", "ipo", "kto", "orpo", "simpo", "rrhf")
SAMPLING = ("rft", "iterative_dpo", "online_dpo", "rloo", "grpo", "ppo", "reinforce_plus_plus_baseline")
METHODS = ("start", *OFFLINE, *SAMPLING)
PROMPTS = 30


def cell(value: float, half: float, n: int = PROMPTS) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def tournament(folder: Path, name: str = "tournament") -> Path:
    """The run's folder: training stages, a comparison of all of them, a reward model's report, and a gap."""
    run = folder / name
    run.mkdir()
    judge = stage(run, "judge", "reward", number=0, done={"steps": 20}, settings={"model": "models/base", "seed": 0})
    lines(judge / "metrics.jsonl", ({"step": i, "loss": 0.7, "accuracy": 0.5 + i / 100} for i in range(1, 21)))
    (judge / "model").mkdir()
    for number, method in enumerate(METHODS[1:], 1):
        _trained(run, method, number)
    judged = stage(run, "judge_dev", "reward_eval", number=20, done={"pairs": 80}, inputs={"judge": "id0"},
                   settings={"model": "judge", "data": "models/pairs.jsonl"})  # fmt: skip
    part = cell(0.63, 0.08, 80)
    dump(judged / "reward_report.json", {
        "model": "judge", "data": "pairs.jsonl", "pairs": 80, "prompts": 80, "findings": [], "accuracy": part,
        "picks_longer": part, "longer_wins": cell(0.55, 0.09, 80), "above_rule": cell(0.08, 0.12, 80), "ece": 0.11,
    })  # fmt: skip
    _evaluated(run)
    _gap(run)
    return run


def _trained(run: Path, method: str, number: int) -> None:
    samples = method in SAMPLING
    steps = 16 if samples else 120
    settings = {"model": "models/base", "lr": 1e-5, "seed": 0, "steps": steps} | (
        {"reward": "judge"} if samples else {}
    )
    done = {"steps": steps, **({"samples": steps * 16} if samples else {})}
    folder = stage(run, method, method, number=number, done=done, settings=settings,
                   inputs={"judge": "id0"} if samples else {})  # fmt: skip
    (folder / "model").mkdir()
    lines(folder / "metrics.jsonl", _metrics(method, steps, samples=samples))
    if samples:
        lines(folder / "groups.jsonl", groups(steps, lambda step, k: f"{HOSTILE[(step + k) % len(HOSTILE)]} words"))
    if method == "ppo":
        alarm = {"step": 12, "kind": "length", "text": "answers are twice as long as at the start <b>"}
        alarm["samples"] = [{"prompt": "Say <b>", "response": "long words", "score": 0.5, "tokens": 2}]
        lines(
            folder / "alarms.jsonl", [alarm, {"step": 14, "kind": "proxy", "text": "the reward rises, the judge's not"}]
        )


def _metrics(method: str, steps: int, *, samples: bool) -> Iterable[dict[str, Any]]:
    draw = random.Random(method)
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 1 / step + draw.random() / 9, "grad_norm": 1.0, "time/seconds": 2.0}
        if samples:
            row |= {"score": step / steps + draw.random(), "kl": step / 9, "kl_exact": step / 9, "length": 60 + step,
                    "truncated": 0.7, "entropy": 2.0}  # fmt: skip
        else:
            row |= {"accuracy": 0.5 + step / (3 * steps), "margin": step / steps}
        yield row


def _evaluated(run: Path) -> None:
    evaluate = stage(run, "evaluate", "evaluate", number=21, done={"models": list(METHODS)},
                     inputs={name: f"id{i}" for i, name in enumerate(METHODS) if i},
                     settings={"models": {m: m for m in METHODS}, "reward": "judge"})  # fmt: skip
    draw = random.Random(1)
    rows = [
        {"model": model, "prompt_id": f"p{i}", "prompt_key": f"key{i}",
         "prompt_text": f"Question {i} {HOSTILE[i % 8]}" + "\nline" * (i % 30),
         "text": f"{model} answers {i}: {HOSTILE[(i + 3) % 8]} " + "word " * (i % 50) + "\n" * (40 * (i % 3)),
         "length": 60 + i % 30,
         "truncated": i % 3 == 0, "proxy": draw.gauss(place / 9, 1), "gold": None, "kl": draw.random() * place,
         "rewards": {"trained_on": draw.random()}, "win": None, "no_verdict": ""}
        for place, model in enumerate(METHODS) for i in range(PROMPTS)
    ]  # fmt: skip
    lines(evaluate / "answers.jsonl", rows)
    facts = {
        "benchmarks": [_benchmark()],
        "alarms": [],
        "selection": {"models": 14, "evaluations": ["a"]},
        "null_rows": [],
    }
    body = {"models": {model: _summary(model, place) for place, model in enumerate(METHODS)}, "evaluation": facts}
    for path in (evaluate / "summary.json", run / "summary.json"):
        dump(path, body)


def _benchmark() -> dict[str, Any]:
    """Pairs of better and worse answers, on which `dpo` is better than the start."""
    figures = []
    for subset in ("", "harmless"):
        for place, model in enumerate(("start", "dpo", "ppo")):
            better = {"value": 0.1 * place, "low": 0.02, "high": 0.3, "q": 0.01 if model == "dpo" else 0.4}
            for measure in ("better one likelier", "  by byte"):
                row = {"measure": measure, "unit": "share", "better": "higher", "model": model, "subset": subset}
                row |= {**cell(0.6 + place / 10, 0.05), "difference": better if place else None}
                figures.append(row)
    return {
        "name": "hhh",
        "source": "hhh.jsonl",
        "kind": "pairs",
        "items": 221,
        "chance": 0.5,
        "notes": [],
        "figures": figures,
    }


def _summary(model: str, place: int) -> dict[str, Any]:
    win = 0.5 + 0.02 * (place - 5) if place else 0.5
    found = {"win_rate": win, "proxy": place / 9, "kl": 0.4 * place, "length": 70.0, "truncated": 0.4, "entropy": 2.1}
    ends = {f"{key}_ci": [found[key] - 0.1, found[key] + 0.1] for key in ("win_rate", "proxy", "kl") if place}
    tests = (
        {"wins": 14, "ties": 2, "losses": 14, "win_rate_p": 0.4, "win_rate_q": 0.8, "win_rate_mde": 0.26}
        if place
        else {}
    )
    return {
        "n": PROMPTS, "prompts": PROMPTS, "baseline": "start", "win_by": "proxy", "proxy_kind": "model", "gold": None,
        "rewards": {"trained_on": {"value": 0.5, "ci": [0.4, 0.6], "n": PROMPTS, "is_rate": False}},
        "samples": 256 * place, "judge_calls": 256 * place, "seconds": 60.0 * place, **found, **ends, **tests,
    }  # fmt: skip


def _gap(run: Path) -> None:
    gap = stage(run, "gap", "gap", number=22, done={"gap_ppo": 0.7}, settings={"models": ["ppo", "dpo"], "beta": 0.5})
    models = {}
    for place, name in enumerate(("prior", "ppo", "dpo")):
        estimates = {
            "kl": cell(float(place), 0.1 * place),
            "gap": cell(1.2 - 0.5 * place, 0.2),
            "entropy": cell(40.0, 3.0),
        }
        refused = name == "dpo"
        if refused:
            del estimates["gap"]
        models[name] = {
            "estimates": estimates, "reward": cell(place / 3, 0.1), "support": {"ess": 40.0}, "cut": 0.2,
            "unique": 1.0, "distinct_2": 0.8, "self_bleu": 0.1, "refused": ["gap"] if refused else [],
        }  # fmt: skip
    curve = [{"at": 8 / 2**i, "kl": 0.1 * i**1.5, "reward": math.sqrt(i) / 3, "bound": None} for i in range(12)]
    best = [{"at": 2**i, "kl": 0.4 * i, "reward": i / 6, "bound": 0.5 * i} for i in range(4)]
    dump(gap / "gap.json", {
        "conventions": "beta 0.5; 30 prompts", "models": models, "refusals": ["dpo: refused, too few samples"],
        "optimum": curve, "best_of_n": best,
    })  # fmt: skip

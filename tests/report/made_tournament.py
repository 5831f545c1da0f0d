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
        "optimum": curve, "best_of_n": best, **_along(),
    })  # fmt: skip


def _along() -> dict[str, Any]:
    """Over-optimisation of best-of-N, with a peak, and of a training run of many steps; collapse along it."""
    kl = [0.0, 0.2, 0.6, 1.2, 2.0]
    fit = {"form": "best_of_n", "start": 0.1, "alpha": cell(0.4, 0.1), "beta": cell(0.2, 0.05), "reach": [0.4, 1.5]}
    best = {"n": [1, 2, 4, 8, 16], "kl": kl, "reward": [0.1 * i for i in range(5)], "gold": [0.1, 0.2, 0.3, 0.3, 0.2]}
    steps = range(1, 301)
    course = {
        "name": "ppo", "step": [*steps], "kl": [i / 50 for i in steps], "reward": [i / 300 for i in steps],
        "gold": [math.sin(i / 100) for i in steps], "entropy": [2.0 - i / 200 for i in steps],
        "distinct_2": [0.9 - i / 600 for i in steps], "self_bleu": [math.nan if i < 3 else i / 400 for i in steps],
        "unique": [1.0 for _ in steps], "coverage": [1.0 - i / 400 for i in steps],
        "fit": {**fit, "form": "rl", "reach": [0.3, 2.4], "peak": None},
    }  # fmt: skip
    return {"overoptimisation": {**best, "fit": {**fit, "peak": cell(1.0, 0.1)}}, "along": [course]}


def study(folder: Path, name: str = "study") -> Path:
    """The folder of a study: its means over three seeds, with models at equal KL, and nothing else."""
    run = folder / name
    run.mkdir()

    def of(value: float, half: float | None, n: int = 3, base: bool = False) -> dict[str, Any]:
        ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
        found = {"value": value, **ends, "n": n, "values": [value] * n, "within": 0.05}
        return found if base else found | {"difference": {"value": value - 0.1, **ends, "n": n}}

    models = {
        "sft": {"gold": of(0.1, 0.2, base=True), "win_rate": of(0.5, 0.0, base=True), "kl": of(0.0, 0.0, base=True)},
        "<b>rl</b>@1": {"gold": of(0.3, 0.2), "win_rate": of(0.6, 0.1), "kl": of(0.7, 0.1)},
        "dpo@1": {"gold": of(0.4, 0.1), "win_rate": of(0.55, 0.1), "kl": of(0.4, 0.1)},
        "dpo at kl=0.3": {"gold": of(0.35, None, n=1), "kl": of(0.3, None, n=1)},
    }
    body = {"name": name, "recipe": "control", "folder": "x", "seeds": [0, 1, 2], "tables": {"compared": models}}
    dump(run / "control.json", body)
    return run


def sampled(run: Path) -> None:
    """Two files of `tiltyard sample --infer` in a run's folder; the second with too few candidates for pi*."""
    draw = random.Random(3)
    for sampler, ess in (("importance", 40.0), ("pessimism", 2.0)):
        asked = {"infer": sampler, "model": "/a/b/runs/demo/sft", "reward": "gold", "beta": 0.5, "n": 1, "seed": 0}
        rows = [
            {"prompt": "x", "responses": [], "infer": {
                "wanted": 1, "given": 1, "accepted": 1, "sampled": 64, "unique": 1, "resampled": 0, "ess": ess,
                "k_hat": 0.3, "log_z": draw.random(), "kl": draw.random(), "tv": 0.2, "kl_to_prior": draw.random(),
                "factor": [draw.random()], "seconds": 0.5, "tokens": 900, "calls": 64, "read": 0}}
            for _ in range(20)
        ]  # fmt: skip
        lines(run / f"{sampler}.jsonl", [asked, *rows])

"""Run folders written by hand: what stages leave, small, with texts of the test's choice."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HOSTILE = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 2">',
    "</script><script>window.hacked = 3</script>",
    "<!--<script>",
    "]]> &lt;b&gt; \u2028 \u2029 \u0000 \u202e",
    "javascript:window.hacked=4",
    "{{ 7 * 7 }} {% raw %}",
    "\ud800 alone",
)
MODELS = ("start", "ppo", "dpo")


def stage(
    run: Path, name: str, kind: str, *, number: int = 0, done: Mapping[str, Any] | None = None, **config: Any
) -> Path:
    """Writes `config.json` and, unless `done` is None, `done.json` of a stage."""
    folder = run / name
    folder.mkdir(parents=True)
    body = {"schema": 1, "run": run.name, "stage": name, "kind": kind, "id": f"id{number}", "tiltyard": "0.1.0"}
    started = f"2026-11-29T03:{number:02d}:00+00:00"
    dump(folder / "config.json", {**body, "settings": {}, "files": {}, "inputs": {}, "started": started, **config})
    if done is not None:
        finished = f"2026-11-29T03:{number + 1:02d}:00+00:00"
        dump(folder / "done.json", {"schema": 1, "result": done, "seconds": 60.0, "finished": finished})
    return folder


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def answers(prompts: int, models: Sequence[str] = MODELS, text: Any = None, seed: int = 0) -> Iterable[dict[str, Any]]:
    """Evaluated responses: `ppo` has the highest proxy, `dpo` the highest gold; `text(model, prompt)` makes them."""
    draw = random.Random(seed)
    for model in models:
        lift = {"ppo": (1.0, 0.1), "dpo": (0.4, 0.6)}.get(model, (0.0, 0.0))
        for i in range(prompts):
            yield {
                "model": model,
                "prompt_id": f"p{i}",
                "prompt_key": f"key{i}",
                "prompt_text": f"Question {i}?",
                "text": text(model, i) if text else f"{model} answers {i}, at some length.",
                "length": 8 + (i % 5) + 3 * (model == "ppo"),
                "truncated": i % 7 == 0,
                "proxy": draw.gauss(lift[0], 1),
                "gold": draw.gauss(lift[1], 1),
                "kl": draw.random(),
                "rewards": {"concise": draw.random()},
                "win": None,
                "no_verdict": "",
            }


def summary(rows: Sequence[Mapping[str, Any]], baseline: str = "start") -> dict[str, Any]:
    """A summary of the rows, of means with plausible intervals."""
    models: dict[str, Any] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]

        def mean(key: str, mine: Any = mine) -> float:
            return math.fsum(row[key] for row in mine) / len(mine)

        win = {"start": 0.5, "ppo": 0.62}.get(model, 0.55)
        models[model] = {
            "n": len(mine), "prompts": len(mine), "baseline": baseline, "win_by": "gold", "proxy_kind": "model",
            "win_rate": win, "win_rate_ci": [win - 0.04, win + 0.04] if model != baseline else [0.5, 0.5],
            "wins": 20, "ties": 5, "losses": 15, "win_rate_p": 0.01, "win_rate_q": 0.02, "win_rate_mde": 0.11,
            "differences": {"gold": {"value": 0.3, "low": 0.1, "high": 0.5, "n": 40, "p": 0.01, "q": 0.03, "mde": 0.2}},
            "length": mean("length"), "truncated": 0.1, "samples": 100, "seconds": 12.5,
            **{key: mean(key) for key in ("gold", "proxy", "kl")},
            **{f"{key}_ci": [mean(key) - 0.1, mean(key) + 0.1] for key in ("gold", "proxy", "kl")},
            "helpful": 0.5, "helpful_ci": [0.4, 0.6], "truthful": 0.8, "truthful_ci": [0.7, 0.9],
            "harmless": 0.9, "harmless_ci": [0.8, 1.0],
            "rewards": {"concise": {"value": 0.5, "ci": [0.4, 0.6], "n": len(mine), "is_rate": False}},
        }  # fmt: skip
    return {"models": models, "seconds": {}}


def metrics(steps: int, **more: Any) -> Iterable[dict[str, Any]]:
    for step in range(1, steps + 1):
        yield {"step": step, "loss": 1 / step, "score": step / steps, "kl": step / 10, "kl_exact": step / 10} | {
            "reward/gold": math.sin(step / steps * 3), "length": 10 + step % 3, "time/seconds": 0.5, **more
        }  # fmt: skip


def groups(steps: int, text: Any = None) -> Iterable[dict[str, Any]]:
    for step in range(1, steps + 1):
        for place in range(2):
            yield {
                "step": step,
                "prompt": {"messages": [["user", f"Step {step}, prompt {place}"]], "id": f"g{step}-{place}"},
                "responses": [
                    {
                        "ids": [5, 6, 7],
                        "text": text(step, k) if text else f"response {k} of step {step}",
                        "logps": [-0.5, -2.0, -0.1],
                    }
                    for k in range(3)
                ],
                "scores": [0.1, 0.5, None],
                "origin": "policy@0",
            }


def whole_run(folder: Path, *, prompts: int = 40, text: Any = None, name: str = "made") -> Path:
    """A run with a reward model, a policy, an evaluation, a reward report and a cleaned file."""
    run = folder / name
    run.mkdir()
    file = {"data/pairs.jsonl": "ab" * 32}
    stage(run, "clean", "clean", number=0, done={"rows": 90, "read": 100, "dropped": {"equal": 10}}, files=file)
    reward = stage(run, "reward", "reward", number=1, done={"steps": 30}, inputs={"clean": "id0"},
                   settings={"data": "clean/rows.jsonl", "lr": 1e-3, "seed": 3})  # fmt: skip
    lines(
        reward / "metrics.jsonl", ({"step": i, "loss": 0.7 - i / 100, "accuracy": 0.5 + i / 100} for i in range(1, 31))
    )
    (reward / "model").mkdir()
    ppo = stage(run, "ppo", "ppo", number=2, done={"steps": 20, "samples": 120}, inputs={"reward": "id1"},
                settings={"reward": "reward", "beta": 0.1, "seed": 3, "steps": 20})  # fmt: skip
    lines(ppo / "metrics.jsonl", metrics(20))
    lines(ppo / "groups.jsonl", groups(20, (lambda step, k: text("ppo", step + k)) if text else None))
    evaluate = stage(run, "evaluate", "evaluate", number=3, done={"models": list(MODELS)}, inputs={"ppo": "id2"},
                     settings={"models": {"ppo": "ppo"}, "reward": "reward"})  # fmt: skip
    rows = list(answers(prompts, text=text))
    lines(evaluate / "answers.jsonl", rows)
    dump(evaluate / "summary.json", summary(rows))
    dump(run / "summary.json", summary(rows))
    lines(evaluate / "tokens.jsonl", (
        {"model": model, "prompt_key": f"key{i}", "response": 0, "pieces": ["one ", "two ", "<b>three</b>"],
         "logp": [-0.5, -1.0, -2.0], "ref_logp": [-1.5, -1.0, -0.5], "advantage": [0.5, -0.5, 1.0]}
        for model in MODELS for i in range(5)
    ))  # fmt: skip
    judged = stage(run, "reward_dev", "reward_eval", number=4, done={"pairs": 50, "accuracy": 0.7},
                   inputs={"reward": "id1"}, settings={"model": "reward"})  # fmt: skip
    cell = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 50}
    dump(judged / "reward_report.json", {
        "model": "reward", "data": "data/dev.jsonl", "pairs": 50, "prompts": 30,
        "findings": ["It prefers long responses."], "accuracy": cell, "picks_longer": cell,
        "longer_wins": cell | {"value": 0.6, "low": 0.5, "high": 0.7},
        "above_rule": {"value": 0.1, "low": 0.01, "high": 0.2, "n": 50}, "ece": 0.05,
        "by_length": [{"label": "chosen longer", "accuracy": cell}],
    })  # fmt: skip
    return run

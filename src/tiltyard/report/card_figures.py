"""Figures that evaluations add to model cards: as text, and as numbers for the card's metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tiltyard.evaluation import benchmarks
from tiltyard.evaluation.before_after import Line
from tiltyard.evaluation.policies import PolicySummary
from tiltyard.evaluation.reward_models import RewardReport
from tiltyard.report.before_after import cells_of
from tiltyard.report.card import Figure
from tiltyard.report.html.results import COLUMNS, PROXY
from tiltyard.stats.intervals import Estimate


def of_policy(result: PolicySummary) -> list[Figure]:
    """The figures of one model of an evaluation: wins, rewards, KL, length and the rest of its table."""
    facts = asdict(result)
    found = []
    for key, title, unit, *_ in COLUMNS:
        if facts.get(key) is None or (key.startswith("win_rate") and result.baseline == result.name):
            continue
        name, share = title, unit == "share"
        if key == "win_rate":
            name = f"wins against {result.baseline}, by {result.win_by}"
        elif key == "proxy":
            name, share = PROXY[result.proxy_kind].lower(), result.proxy_kind == "rule"
        else:
            name = name.lower() + (f", {unit}" if unit not in ("", "share") else "")
        found.append(_figure(key, name, facts[key], facts.get(f"{key}_ci"), result.prompts, share=share))
    for name, mean in result.rewards.items():
        found.append(_figure(f"reward_{name}", f"reward {name}", mean.value, mean.ci, mean.n, share=mean.is_rate))
    return found


def of_benchmarks(found: Sequence[benchmarks.Figure], model: str) -> list[Figure]:
    """The figures of one model on benchmark files, those of whole files."""
    return [
        _figure(
            "_".join(f"{one.benchmark} {one.measure.name}".split()),
            f"{one.benchmark}: {one.measure.name.strip()}",
            one.estimate.value,
            (one.estimate.low, one.estimate.high),
            one.estimate.n,
            share=one.measure.unit == "share",
        )
        for one in found
        if one.model == model and not one.subset
    ]


def of_reward_model(report: RewardReport) -> list[Figure]:
    """The figures of a reward model on labelled pairs."""
    rows: Iterable[tuple[str, str, Estimate]] = (
        ("accuracy", "agrees with the labels", report.accuracy),
        ("longer_wins", "the rule: the longer response", report.longer_wins),
        ("picks_longer", "prefers the longer response", report.picks_longer),
    )
    found = [_figure(key, name, e.value, (e.low, e.high), report.pairs, share=True) for key, name, e in rows]
    ece = [] if math.isnan(report.ece) else [_figure("ece", "calibration error", report.ece, None, report.pairs)]
    return [*found, *ece]


def of_before_after(lines: Sequence[Line]) -> list[Figure]:
    """The lines of a model before and after training; the numbers are those after it."""
    found = []
    for line in lines:
        name, before, after, change = cells_of(line)
        text = " to ".join(x for x in (before, after) if x) + (f"; {change}" if change else "")
        key = "_".join(name.replace("'", "").split()) if line.after is not None else ""
        ends = None if line.after is None else _known((line.after.low, line.after.high))
        value, n = (None, 0) if line.after is None else (line.after.value, line.after.n)
        found.append(Figure(name.strip(), text, key, value, ends, n))
    return found


def _figure(key: str, name: str, value: float, interval: Any, n: int, *, share: bool = False) -> Figure:
    ends = _known(interval)
    shown = [f"{100 * x:.1f}%" if share else f"{x:.3g}" for x in (value, *(ends or ()))]
    text = shown[0] + (f" ({shown[1]} to {shown[2]})" if ends and ends[0] != ends[1] else "")
    return Figure(name, text, key, float(value), ends, n)


def _known(interval: Any) -> tuple[float, float] | None:
    if interval is None or any(end is None or not math.isfinite(end) for end in interval):
        return None
    return float(interval[0]), float(interval[1])


def cost_figures(costs: Mapping[str, Any]) -> list[Figure]:
    """The costs of a model with all that it builds on, as in `summary.json`."""
    names = {"samples": "responses sampled", "judge_calls": "scores and judge calls", "rankings": "people's rankings"}
    return [Figure(name, f"{costs[key]:,}") for key, name in names.items() if costs.get(key)]

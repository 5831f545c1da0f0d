"""Over-optimisation and collapse along training: lines and pictures of `tiltyard gap`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiltyard.evaluation.along import BestOfNCourse, Course
from tiltyard.evaluation.gap import Gap
from tiltyard.posterior.overoptimise import Fit
from tiltyard.report.plots import COLOURS, STYLES, blank_figure, curves_png, literal, save_png
from tiltyard.report.text import plain
from tiltyard.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMS = {"best_of_n": "d (a - b d)", "rl": "d (a - b log d)"}
Kept = Mapping[str, Sequence[tuple[int, Gap]]]  # {stage: [(step, distances of the model that it kept)]}
SHOWN = {"entropy": "entropy a token (nats)", "distinct_2": "distinct-2", "self_bleu": "self-BLEU", "unique": "unique"}


def overoptimisation_lines(best: BestOfNCourse | None, along: Sequence[Course]) -> list[str]:
    """One line for each fit of gold against d = sqrt(KL): coefficients with intervals, and the peak if it is known."""
    fits = [("best-of-N", best.fit)] if best is not None else []
    fits += [(plain(course.name), course.fit) for course in along if course.gold]
    lines = []
    for name, fit in fits:
        if fit is None:
            lines.append(f"{name}: too few points of gold against sqrt(KL) for a fit")
            continue
        low, high = fit.reach
        peak = (
            f"gold peaks at d = {fit.peak.value:.2f} {_between(fit.peak)}"
            if fit.peak is not None
            else "no peak of gold is known within that range"
        )
        lines.append(
            f"{name}: gold = {fit.start:.2f} + {FORMS[fit.form]} with a = {fit.alpha.value:.2f} {_between(fit.alpha)}, "
            f"b = {fit.beta.value:.2f} {_between(fit.beta)}, for d = sqrt(KL) from {low:.2f} to {high:.2f}; {peak}"
        )
    return lines


def _between(x: Estimate) -> str:
    return f"[{x.low:.2f}, {x.high:.2f}]"


def collapse_lines(along: Sequence[Course]) -> list[str]:
    """One line a training run: diversity of the first and the last fifth of its steps."""
    lines = []
    for course in along:
        part = max(1, len(course.step) // 5)
        changes = []
        for key, title in SHOWN.items():
            values = np.array(getattr(course, key), dtype=float)
            first, last = values[:part], values[-part:]
            if np.isfinite(first).any() and np.isfinite(last).any():
                changes.append(f"{title} {np.nanmean(first):.2f} to {np.nanmean(last):.2f}")
        lines.append(f"{plain(course.name)}, first to last fifth of {len(course.step)} steps: {', '.join(changes)}")
    return lines


def kept_lines(kept: Kept) -> list[str]:
    """One line a training run: how far the models that it kept are from pi*, and how much of pi* they cover."""
    lines = []
    for name, models in kept.items():
        cells = []
        for step, gap in models:
            ways = [("KL to pi*", gap.estimates.get("gap")), ("KL from pi*", gap.estimates.get("reverse"))]
            known = [f"{title} {value.value:.2f} {_between(value)}" for title, value in ways if value is not None]
            cells.append(f"step {step} {', '.join(known) or 'refused'}")
        lines.append(f"{plain(name)}, models along training: {'; '.join(cells)}")
    return lines


def overoptimisation_png(path: str | Path, best: BestOfNCourse, along: Sequence[Course], gaps: Sequence[Gap]) -> Path:
    """Draws the optimised reward and gold against sqrt(KL): best-of-N, training runs with fits, and the models."""
    figure = blank_figure(1, 2, width=5.2, height=4.3)
    for ax, key in zip(figure.axes, ("reward", "gold"), strict=True):
        d = np.sqrt(np.maximum(best.kl, 0.0))
        ax.plot(d, getattr(best, key), "s-", color=COLOURS[4], markersize=4, linewidth=1.2, label="best-of-N")
        for i, course in enumerate(along):
            if getattr(course, key):
                _points(ax, course, key, i)
        if key == "gold":
            _fitted(ax, "best-of-N", best.fit, COLOURS[4], "--")
            for i, course in enumerate(along):
                _fitted(ax, course.name, course.fit, COLOURS[i % 4], STYLES[(i + 1) % len(STYLES)])
        for i, gap in enumerate(gaps):
            value, kl = gap.gold if key == "gold" else gap.reward, gap.estimates["kl"].value
            if value is not None and math.isfinite(kl):
                ax.plot(math.sqrt(max(kl, 0.0)), value.value, "o^v<>Dph"[i % 8], color="0.25", markersize=6)
                ax.annotate(literal(plain(gap.name)), (math.sqrt(max(kl, 0.0)), value.value), fontsize=7, color="0.4")
        ax.set_xlabel("d = sqrt(KL to the prior)")
        ax.set_ylabel(f"{'optimised reward' if key == 'reward' else 'gold reward'} (mean per response)")
    figure.axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle("Over-optimisation: the reward that is optimised, and gold", fontsize=12, fontweight="bold")
    return save_png(figure, path)


def _points(ax: Axes, course: Course, key: str, i: int) -> None:
    d = np.sqrt(np.maximum(course.kl, 0.0))
    label = literal(plain(f"{course.name}, each step"))
    ax.plot(d, getattr(course, key), ".", color=COLOURS[i % 4], markersize=4, alpha=0.5, markeredgewidth=0, label=label)


def _fitted(ax: Axes, name: str, fit: Fit | None, colour: str, style: str) -> None:
    if fit is None:
        return
    d = np.linspace(max(fit.reach[0], 1e-3), fit.reach[1], 100)
    label = literal(plain(f"{name}: fit of {FORMS[fit.form]}"))
    ax.plot(d, fit.at(d), color=colour, linestyle=style, linewidth=1.6, label=label)
    if fit.peak is not None:
        ax.axvspan(fit.peak.low, fit.peak.high, color=colour, alpha=0.12, linewidth=0)


def collapse_png(path: str | Path, along: Sequence[Course], kept: Kept | None = None) -> Path:
    """Draws entropy and diversity of each training run's own responses, step by step, and distances of kept models."""
    panels: dict[str, dict[str, Sequence[float | None]]] = {}
    for key, title in SHOWN.items():
        for course in along:
            name = course.name if len(along) > 1 else title
            if len(along) == 1 or len({tuple(c.step) for c in along}) == 1:
                panels.setdefault(title, {"step": course.step})[name] = getattr(course, key)
            else:
                panels[f"{course.name}: {title}"] = {"step": course.step, title: getattr(course, key)}
    for name, models in (kept or {}).items():
        for key, title in (("gap", "KL to pi*"), ("reverse", "KL from pi*: what is not covered")):
            found = [(step, gap.estimates[key].value) for step, gap in models if key in gap.estimates]
            if found:
                label = title if len(kept or {}) == 1 else f"{name}: {title}"
                panels[label] = {"step": [step for step, _ in found], title: [value for _, value in found]}
    return curves_png(path, panels, title="Collapse along training, in the responses of each step")

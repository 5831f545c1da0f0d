"""One figure of a reward model's evaluation: calibration, and accuracy by margin, length and source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiltyard.evaluation.reward_models import AccuracyRow, ReliabilityBin, RewardReport
from tiltyard.numerals import plural
from tiltyard.report.plots import COLOURS, blank_figure, literal, save_png
from tiltyard.report.text import plain
from tiltyard.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 16  # rows of one panel
_LABEL = 34


def reward_png(path: str | Path, report: RewardReport, *, title: str = "Reward model") -> Path:
    """Plots the reliability diagram and one panel for each breakdown that the data allow.

    Dots are accuracies with their 95% intervals, hollow squares the rule "the longer response is better" on the same
    pairs, the dashed line the accuracy over all pairs.
    """
    panels: list[tuple[str, Sequence[AccuracyRow]]] = []
    if report.by_margin:
        panels.append(("Accuracy by margin of the label", report.by_margin))
    if report.by_length:
        panels.append(("Accuracy by difference in length (tokens)", report.by_length))
    for name, breakdown in report.by_field.items():
        rows: Sequence[AccuracyRow] = sorted(breakdown.rows, key=lambda row: -row.accuracy.n)[:MOST]
        more = f", the {MOST} largest of {len(breakdown.rows)}" if len(breakdown.rows) > MOST else ""
        panels.append((f"Accuracy by {name}{more}", rows))
    count = len(panels) + 1
    columns = 2 if count > 1 else 1
    longest = max((len(rows) for _, rows in panels), default=0)
    figure = blank_figure(-(-count // columns), columns, width=6.0, height=max(3.8, 0.34 * longest + 1.2))
    axes = figure.axes
    for ax in axes[count:]:
        ax.set_visible(False)
    _reliability(axes[0], report.reliability, report.ece)
    for ax, (heading, shown) in zip(axes[1:], panels, strict=False):
        below = None if shown is report.by_length else 0.2 * len(shown) / max(7, longest)
        _rows(ax, shown, report.accuracy, below)
        ax.set_title(literal(heading), fontsize=10)
    if panels:
        handles = {name: h for ax in axes[1:count] for h, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles), frameon=False
        )
    summary = (
        f"accuracy {_share(report.accuracy)} on {plural(report.pairs, 'pair')} of {plural(report.prompts, 'prompt')}"
    )
    figure.suptitle(f"{literal(plain(title))}:{' ' if panels else chr(10)}{summary}", fontsize=12, fontweight="bold")
    return save_png(figure, path)


def _reliability(ax: Axes, bins: Sequence[ReliabilityBin], ece: float) -> None:
    """Plots predicted probability against observed accuracy; the area of a dot is its share of the pairs."""
    ax.plot([0.5, 1], [0.5, 1], color="0.5", linestyle="--", linewidth=1.2, label="perfectly calibrated")
    x, y = [b.predicted for b in bins], [b.observed.value for b in bins]
    ax.errorbar(x, y, yerr=_whiskers([b.observed for b in bins]), fmt="none", ecolor=COLOURS[0], elinewidth=1.3)
    total = sum(b.observed.n for b in bins)
    ax.plot(x, y, color=COLOURS[0], linewidth=1.0, alpha=0.5)
    ax.scatter(x, y, s=[20 + 700 * b.observed.n / total for b in bins], color=COLOURS[0], alpha=0.75, zorder=3)
    ax.set_xlim(0.49, 1.01)
    lows = [b.observed.low for b in bins if np.isfinite(b.observed.low)]
    ax.set_ylim(max(0.0, min([0.48, *y, *lows]) - 0.02), 1.03)
    ax.set_xlabel("predicted probability that the higher score is right")
    ax.set_ylabel("observed share that is right")
    ax.set_title(f"Calibration: expected error {ece:.3f}; larger dots hold more pairs", fontsize=10)
    ax.legend(loc="lower right", frameon=False, fontsize=8)


def _rows(ax: Axes, rows: Sequence[AccuracyRow], overall: Estimate, below: float | None) -> None:
    """Plots a line for each row, the first at the top; `below` it the length rule, unless rows are by length."""
    y = np.arange(len(rows))[::-1]
    accuracies = [row.accuracy for row in rows]
    x = [a.value for a in accuracies]
    ax.axvline(overall.value, color=COLOURS[0], linestyle="--", linewidth=1.2, alpha=0.7, label="accuracy, all pairs")
    ax.errorbar(
        x,
        y,
        xerr=_whiskers(accuracies),
        fmt="o",
        color=COLOURS[0],
        markersize=6,
        elinewidth=1.3,
        label="accuracy of the reward model",
    )
    if below is not None:
        wins = [row.longer_wins for row in rows]
        edge = COLOURS[1]
        ax.plot(
            wins, y - below, "s", label='accuracy of "longer is better"', mfc="white", mec=edge, markersize=5, zorder=4
        )
    ax.set_yticks(y, [f"{_short(row.label)}  ({row.accuracy.n:,})" for row in rows], fontsize=8)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("share of pairs that is right")


def _whiskers(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Returns the distances to both ends of each interval; 0 without an interval."""
    down = [max(0.0, e.value - e.low) if np.isfinite(e.low) else 0.0 for e in estimates]
    up = [max(0.0, e.high - e.value) if np.isfinite(e.high) else 0.0 for e in estimates]
    return [down, up]


def _share(estimate: Estimate) -> str:
    text = f"{100 * estimate.value:.1f}%"
    return text if not np.isfinite(estimate.low) else f"{text} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _short(label: str) -> str:
    text = " ".join(plain(label).split())
    return literal(text if len(text) <= _LABEL else text[: _LABEL - 3] + "...")

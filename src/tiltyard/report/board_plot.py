"""A leaderboard as a picture: ratings with intervals, and the battles that they stand on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tiltyard.errors import DataError
from tiltyard.report.plots import COLOURS, blank_figure, literal, save_png
from tiltyard.stats.ratings.board import Board, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def board_png(path: str | Path, board: Board, *, title: str = "Ratings") -> Path:
    """Plots each model's rating with its interval, the best on top, and its number of battles beside it.

    Models without a finite rating stand below the others with the reason.

    Raises:
        DataError: a board without models.
    """
    lines = board.standings
    if not lines:
        raise DataError("there are no models to plot")
    figure = blank_figure(1, 2, width=4.6, height=1.4 + 0.3 * len(lines))
    left, right = figure.axes
    left.set_box_aspect(None)
    for place, line in enumerate(lines):
        _point(left, place, line, board)
    right.barh(range(len(lines)), [line.battles for line in lines], color="0.8", height=0.6)
    for place, line in enumerate(lines):
        right.text(line.battles, place, f" {line.battles:,}", va="center", fontsize=8)
    right.set_xlim(0, max(1, *(line.battles for line in lines)) * 1.25)
    for ax in (left, right):
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ax.tick_params(labelsize=8)
    left.set_yticks(range(len(lines)), [literal(line.model)[:40] for line in lines])
    right.set_yticks([])
    left.axvline(1000, color="0.75", linewidth=0.8, zorder=0)
    level = f"{board.settings.level:.0%} {board.settings.method} intervals, {board.settings.ties.replace('_', ' ')}"
    left.set_xlabel(f"rating ({level})", fontsize=8)
    right.set_xlabel("battles", fontsize=8)
    figure.suptitle(literal(title), fontsize=12, fontweight="bold")
    return save_png(figure, path)


def _point(ax: Axes, place: int, line: Standing, board: Board) -> None:
    known = [x for one in board.standings for x in (one.rating, one.low, one.high) if math.isfinite(x)]
    if not math.isfinite(line.rating):
        words = {"above": "never lost: no upper bound", "below": "never won: no lower bound"}
        reason = words.get(line.status, "cannot be compared") if line.battles else "no battles"
        at = sum(known) / len(known) if known else 1000.0
        ax.text(at, place, reason, va="center", ha="center", fontsize=8, color="0.45", style="italic")
        return
    low, high = (x if math.isfinite(x) else line.rating for x in (line.low, line.high))
    error = [[line.rating - low], [high - line.rating]]
    ax.errorbar(line.rating, place, xerr=error, fmt="o", markersize=5, capsize=3, linewidth=1.6, color=COLOURS[0])

"""Plots of a run: reward against KL, and training curves. matplotlib's Agg canvas, no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tiltyard.errors import DataError
from tiltyard.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# Okabe and Ito: distinguishable for colour-blind readers; line styles distinguish the lines in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")
Series = Sequence[float | None]


def reward_vs_kl_png(
    path: str | Path,
    curves: Mapping[str, Mapping[str, Series | None]],
    *,
    title: str = "Reward against distance from the reference model",
) -> Path:
    """Plots reward against KL over training, one line a run: proxy reward on the left, gold (if any) on the right.

    `curves`: run -> {"kl", "proxy", "gold" (or None), "step" (optional)}, lists of one length; None omits a point.
    Dots: every measurement. Line: smoothed over steps. Circle: start. Square: end.
    """
    if not curves:
        raise DataError("there are no curves to draw")
    for run, curve in curves.items():
        _check_lengths(run, curve)
    panels = [("proxy", "Proxy reward", "the reward model's score")]
    if any(curve.get("gold") is not None for curve in curves.values()):
        panels.append(("gold", "Gold reward", "the true score"))
    figure = blank_figure(1, len(panels), width=5.0 if len(panels) > 1 else 7.0, height=4.3)
    for ax, (key, name, meaning) in zip(figure.axes, panels, strict=True):
        for i, (run, curve) in enumerate(curves.items()):
            kl, reward = curve.get("kl"), curve.get(key)
            if kl is not None and reward is not None:
                _path(ax, _array(kl), _array(reward), i, run)
        ax.set_title(f"{name}: {meaning}", fontsize=10)
        ax.set_xlabel("KL to reference (nats per response)")
        ax.set_ylabel(f"{name} (mean per response)")
    figure.suptitle(literal(title), fontsize=12, fontweight="bold")
    _legend(figure, list(curves), columns=4 if len(panels) > 1 else 3)
    return save_png(figure, path)


def curves_png(
    path: str | Path,
    metrics: Mapping[str, Mapping[str, Series]],
    *,
    title: str = "Training",
    xlabel: str = "step",
) -> Path:
    """Plots training curves as small multiples: `{panel: {line: values}}`; "step" in a panel is the x of its lines."""
    if not metrics:
        raise DataError("there are no curves to draw")
    columns = min(3, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    figure = blank_figure(rows, columns, width=3.6, height=2.6)
    for ax in figure.axes[len(metrics) :]:
        ax.set_visible(False)
    for ax, (panel, lines) in zip(figure.axes, metrics.items(), strict=False):
        _check_lengths(panel, lines)
        names = [name for name in lines if name != "step"]
        for i, name in enumerate(names):
            y = _array(lines[name])
            x = _array(lines["step"]) if "step" in lines else np.arange(len(y), dtype=float)
            _line(ax, x, y, i, name)
        ax.set_title(literal(panel), fontsize=10)
        ax.set_xlabel(xlabel, fontsize=8)
        ax.tick_params(labelsize=8)
        if len(names) > 1:
            ax.legend(fontsize=8, frameon=False)
    figure.suptitle(literal(title), fontsize=12, fontweight="bold")
    return save_png(figure, path)


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Returns the centred moving average of an odd window; the ends follow a line fitted to the first and last window.

    A straight line is unchanged.
    """
    half = (min(window, len(values)) - 1) // 2
    if half < 1:
        return values.copy()
    size = 2 * half + 1
    total = np.concatenate([[0.0], np.cumsum(values)])
    out = values.copy()
    out[half : len(values) - half] = (total[size:] - total[:-size]) / size
    at = np.arange(-half, half + 1)
    for window_values, where in ((values[:size], slice(0, half)), (values[-size:], slice(len(values) - half, None))):
        gradient = float(at @ window_values) / float(at @ at)
        line = window_values.mean() + gradient * at
        out[where] = line[:half] if where.start == 0 else line[-half:]
    return out


def _path(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], i: int, label: str) -> None:
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if not len(x):
        return
    colour = COLOURS[i % len(COLOURS)]
    window = _window(len(x), share=6)
    smooth_x, smooth_y = smooth(x, window), smooth(y, window)
    ax.plot(x, y, ".", color=colour, markersize=4, alpha=0.35, markeredgewidth=0)
    ax.plot(smooth_x, smooth_y, color=colour, linewidth=2.2, linestyle=STYLES[i % len(STYLES)], label=literal(label))
    ax.plot(smooth_x[0], smooth_y[0], "o", color="white", markeredgecolor=colour, markeredgewidth=1.8, markersize=8)
    ax.plot(smooth_x[-1], smooth_y[-1], "s", color=colour, markeredgecolor="white", markersize=9)


def _line(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], i: int, label: str) -> None:
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if not len(x):
        return
    colour = COLOURS[i % len(COLOURS)]
    ax.plot(x, y, color=colour, linewidth=0.7, alpha=0.35)
    marker = "o" if len(x) == 1 else None
    style = STYLES[i % len(STYLES)]
    ax.plot(
        x,
        smooth(y, _window(len(y))),
        color=colour,
        linewidth=1.8,
        linestyle=style,
        marker=marker,
        label=literal(label),
    )


def blank_figure(rows: int, columns: int, *, width: float, height: float) -> Figure:
    """Returns a figure of rows x columns axes of `width` by `height` inches each, with a grid and no frame."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, width * columns), height * rows + 0.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.subplots(rows, columns, squeeze=False)
    for ax in figure.axes:
        ax.grid(visible=True, color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _legend(figure: Figure, runs: Sequence[str], columns: int) -> None:
    from matplotlib.lines import Line2D

    def colour(i: int) -> str:
        return COLOURS[i % len(COLOURS)]

    handles = [
        Line2D([], [], color=colour(i), linewidth=2.2, linestyle=STYLES[i % len(STYLES)], label=literal(run))
        for i, run in enumerate(runs)
    ]
    handles += [
        Line2D([], [], color="0.4", marker="o", markerfacecolor="white", linestyle="", markersize=8, label="start"),
        Line2D([], [], color="0.4", marker="s", linestyle="", markersize=8, label="end of training"),
        Line2D([], [], color="0.6", marker=".", linestyle="", markersize=5, label="each step (line: smoothed)"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), frameon=False, fontsize=9
    )


def _check_lengths(name: str, columns: Mapping[str, Series | None]) -> None:
    lengths = {key: len(values) for key, values in columns.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise DataError("the columns of a curve must have one length", where=name, got=lengths)


def _array(values: Series) -> NDArray[np.float64]:
    return np.array([math.nan if v is None else float(v) for v in values], dtype=float)


def _window(n: int, share: int = 10) -> int:
    """Returns an odd window of one `share`-th of the curve; short curves are not smoothed."""
    return 1 if n < 12 else 2 * (max(3, n // share) // 2) + 1


def literal(text: str) -> str:
    """Escapes text for matplotlib: `$` starts no formula, control characters are replaced."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")


def save_png(figure: Figure, path: str | Path) -> Path:
    """Writes the figure atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return write_atomic(path, buffer.getvalue())

"""One figure that compares many methods: reward, KL to the reference, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiltyard.errors import DataError
from tiltyard.report.plots import literal, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Facts = Mapping[str, Any]

# key in the summary, heading, factor on the number
COLUMNS: tuple[tuple[str, str, float], ...] = (
    ("win_rate", "wins, %", 100),
    ("helpful", "helpful", 1),
    ("truthful", "truthful", 1),
    ("harmless", "harmless", 1),
    ("length", "tokens", 1),
    ("diversity", "distinct-2", 1),
    ("samples", "samples", 1),
    ("judge_calls", "judge calls", 1),
    ("rankings", "people's rankings", 1),
    ("seconds", "seconds", 1),
    ("models_in_memory", "models", 1),
)

NEAR = 0.3  # nats up to which a logarithmic axis is linear


def comparison_png(path: str | Path, models: Mapping[str, Facts], *, title: str = "Methods compared") -> Path:
    """Plots gold and proxy reward against KL, then a row for each method: these with 95% intervals, and bars for the
    other columns.

    Args:
        models: name -> the facts of `summary.json`; columns without values are omitted. Methods are sorted by reward
            (gold if known), the highest first.
    """
    from matplotlib.figure import Figure

    if not models:
        raise DataError("there are no models to compare")
    by = "gold" if any(_number(f.get("gold")) for f in models.values()) else "proxy"
    order = sorted(models, key=lambda name: -_value(models[name].get(by)))
    columns = [c for c in COLUMNS if any(_number(models[name].get(c[0])) for name in order)]
    rewards = [key for key in ("gold", "proxy") if any(_number(f.get(key)) for f in models.values())]
    measured = [*rewards, *(["kl"] if any(_number(f.get("kl")) for f in models.values()) else [])]
    # without pyplot, so that the user's backend and open figures are unaffected
    above, rows = 4.6 + 0.08 * max(0, len(order) - 12), 0.6 + 0.26 * len(order)  # space for the names
    figure = Figure(figsize=(16, above + rows), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(above, rows))
    figure.suptitle(literal(title), fontsize=12, fontweight="bold")
    for ax, key in zip(_axes(parts[0, 0], max(1, len(rewards))), rewards, strict=False):
        _scatter(ax, order, models, key)
    axes = _axes(parts[1, 0], max(1, len(measured) + len(columns)))
    for ax, key in zip(axes, measured, strict=False):
        _points(ax, order, models, key)
    for ax, (key, heading, factor) in zip(axes[len(measured) :], columns, strict=True):
        _bars(ax, order, [models[name].get(key) for name in order], factor)
        ax.set_title(heading, fontsize=9)
    axes[0].set_yticks(range(len(order)), [literal(n) for n in order], fontsize=8)
    return save_png(figure, path)


def _axes(figure: Any, columns: int) -> list[Axes]:
    return list(figure.subplots(1, columns, squeeze=False)[0])


def _scatter(ax: Axes, order: Sequence[str], models: Mapping[str, Facts], key: str) -> None:
    """Plots a point for each method; a logarithmic axis for large KLs, names moved to where they do not overlap."""
    points = [(n, _value(models[n].get("kl")), _value(models[n].get(key))) for n in order]
    points = [(n, x, y) for n, x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return
    far = max(1e-9, *(x for _, x, _ in points))
    wide = far > 10
    if wide:
        ax.set_xscale("symlog", linthresh=NEAR)
    for name, x, y in points:
        facts, colour = models[name], f"C{order.index(name) % 10}"
        xerr, yerr = _error(x, facts.get("kl_ci")), _error(y, facts.get(f"{key}_ci"))
        ax.errorbar(x, y, xerr=xerr, yerr=yerr, fmt="o", markersize=4, linewidth=0.8, color=colour, alpha=0.85)
    ax.margins(x=0.12)
    low, high = min(y for _, _, y in points), max(y for _, _, y in points)
    row = ((high - low) or 1.0) / 26  # the height of a name
    taken: list[tuple[float, float]] = []
    for name, x, y in points:
        along = math.log1p(x / NEAR) / math.log1p(far / NEAR) if wide else x / far
        steps = sorted(range(-26, 27), key=abs)
        free = (y + k * row for k in steps if low - row <= y + k * row <= high + row)
        at = next((v for v in free if all(abs(along - a) > 0.16 or abs(v - b) >= row for a, b in taken)), y)
        taken.append((along, at))
        moved = {"arrowstyle": "-", "linewidth": 0.4, "color": "0.6"} if abs(at - y) > row / 2 else None
        ax.annotate(
            literal(name), (x, y), xytext=(x, at), textcoords="data", fontsize=7.5, va="center", arrowprops=moved
        ).set_horizontalalignment("left")
    for text in ax.texts:
        text.set_text(f"  {text.get_text()}")
    ax.set_xlabel("KL to the reference (nats per response)", fontsize=9)
    ax.set_ylabel(f"{key} reward, 95% interval", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def _points(ax: Axes, order: Sequence[str], models: Mapping[str, Facts], key: str) -> None:
    """Plots a point with its 95% interval for each method, and its value at the edge."""
    for index, name in enumerate(order):
        x = _value(models[name].get(key))
        if math.isfinite(x):
            ax.errorbar(x, index, xerr=_error(x, models[name].get(f"{key}_ci")), fmt="o", markersize=3.5, color="C0")
            ax.text(1.02, index, _short(x), transform=ax.get_yaxis_transform(), va="center", fontsize=7)
    if key == "kl" and max([0.0, *(_value(models[n].get(key)) for n in order if _number(models[n].get(key)))]) > 10:
        ax.set_xscale("symlog", linthresh=NEAR)
    ax.set_title({"kl": "KL, nats"}.get(key, key), fontsize=9)
    ax.grid(axis="y", color="0.92")
    _rows(ax, len(order))
    ax.tick_params(labelsize=7)


def _rows(ax: Axes, count: int) -> None:
    ax.set_yticks(range(count), [])
    ax.set_ylim(count - 0.4, -0.6)
    ax.spines[["top", "right", "bottom"]].set_visible(False)


def _bars(ax: Axes, order: Sequence[str], values: Sequence[Any], factor: float) -> None:
    """Plots a horizontal bar and its value for each method; unknown values are empty."""
    indices = range(len(order))
    known = [factor * _value(v) if _number(v) else 0.0 for v in values]
    ax.barh(list(indices), known, color="0.75", height=0.7)
    low, high = min(0.0, *known), max(0.0, *known)
    ax.set_xlim(low * 1.05, (high or 1.0) * 1.6)
    for index, value, number in zip(indices, values, known, strict=True):
        if _number(value):
            ax.text(max(number, 0.0), index, f" {_short(number)}", va="center", fontsize=7)
    ax.set_xticks([])
    _rows(ax, len(order))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _value(value: Any) -> float:
    return float(value) if _number(value) else math.nan


def _error(value: float, interval: Any) -> list[list[float]] | None:
    if not interval or not all(_number(end) for end in interval):
        return None
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


def _short(number: float) -> str:
    """Formats three digits: 0.42, 14.2, 960, 31k."""
    if abs(number) >= 10_000:
        return f"{number / 1000:.0f}k"
    if abs(number) >= 100 or number == round(number):
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"

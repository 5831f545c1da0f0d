"""Tables and the frontier's picture of `tiltyard gap`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from tiltyard.evaluation.gap import Gap
from tiltyard.posterior.bounds import UpperBound
from tiltyard.posterior.frontier import Point, SampledPoint
from tiltyard.report.plots import COLOURS, blank_figure, literal, save_png
from tiltyard.report.text import plain
from tiltyard.stats.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = (
    ("kl", "KL to\nprior"),
    ("gap", "gap: KL\nto pi*"),
    ("reverse", "KL from\npi*"),
    ("tv", "TV to\npi*"),
    ("entropy", "entropy"),
)


def print_gaps(gaps: Sequence[Gap], console: Console) -> None:
    """Prints each model's distances, its diagnostics and diversity, and refusals with what mends them."""
    gold = ["gold"] if gaps[0].gold is not None else []
    rows = [
        [
            *(_cell(gap.gold) for _ in gold),
            _cell(gap.reward),
            *(_cell(gap.estimates.get(key)) for key, _ in COLUMNS),
        ]
        for gap in gaps
    ]
    console.print(_table(gaps, [*gold, "reward", *(title for _, title in COLUMNS)], rows))
    console.print()
    rows = [
        [
            _cell(gap.estimates.get("log_z")),
            f"{gap.support.ess:.0f}/{gap.support.samples}",
            "-" if gap.support.k_hat is None else f"{gap.support.k_hat:.2f}",
            *(f"{gap.unique:.0%}", f"{gap.distinct_2:.2f}", f"{gap.self_bleu:.2f}", f"{gap.cut:.0%}"),
        ]
        for gap in gaps
    ]
    console.print(_table(gaps, ["log Z", "ESS", "k-hat", "unique", "distinct-2", "self-BLEU", "cut off"], rows))
    for line in [*shape_lines(gaps), *refusal_lines(gaps)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(gaps: Sequence[Gap], titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model", overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap="\n" not in title)
    for gap, row in zip(gaps, rows, strict=True):
        table.add_row(plain(gap.name), *row)
    return table


def shape_lines(gaps: Sequence[Gap]) -> list[str]:
    """A line about models whose weights have no k-hat."""
    names = [plain(gap.name) for gap in gaps if gap.support.k_hat is None]
    if not names:
        return []
    return [
        f"k-hat -: the weights of {', '.join(names)} take too few different values for a tail; ESS alone judges them"
    ]


def refusal_lines(gaps: Sequence[Gap]) -> list[str]:
    """One line for each refusal: the reason, and the number of samples that would mend it."""
    lines = []
    for gap in gaps:
        for refusal in gap.support.refusals:
            mend = (
                "no number of samples of these models mends that: raise beta, shorten the responses"
                if refusal.needed is None
                else f"about {refusal.needed:,} samples a prompt (policy's and prior's together) would do"
            )
            lines.append(f"{plain(gap.name)}: log Z, the gap, KL from pi* and TV are refused: {refusal.reason}; {mend}")
    return lines


def bound_lines(prior: Gap, upper: UpperBound | None) -> list[str]:
    """A line with both bounds of the mean log Z, from samples of the prior and exact ones of pi*."""
    if upper is None:
        return []
    lower, known = prior.log_z_lower, upper.log_z[~np.isnan(upper.log_z)]
    if not len(known):
        return [f"log Z: at least {lower:.2f}; no exact sample of pi* in {upper.tried:,} samples of the prior"]
    some = "" if len(known) == len(upper.log_z) else f" (of {len(known)} of {len(upper.log_z)} prompts)"
    return [
        f"log Z lies between {lower:.2f} and {known.mean():.2f}{some} on average: the upper bound by {upper.exact:,} "
        f"exact samples of pi*, accepted from {upper.tried:,} of the prior"
    ]


def sampler_lines(sampled: Sequence[SampledPoint]) -> list[str]:
    """A line for each sampler without training: reward and KL to the prior."""
    return [
        f"{plain(point.name)}: sampled without training, reward {_cell(point.reward)}, "
        f"KL to prior {'at most ' if point.at_most else ''}{_cell(point.kl)}"
        for point in sampled
    ]


def _cell(value: Estimate | None) -> str:
    if value is None:
        return "refused"
    if not math.isfinite(value.value):
        return f"{value.value:g}"
    half = (value.high - value.low) / 2
    return f"{value.value:.2f}" if math.isnan(half) else f"{value.value:.2f}±{half:.2f}"


def frontier_png(
    path: str | Path,
    gaps: Sequence[Gap],
    curve: Sequence[Point],
    best: Sequence[Point],
    beta: float,
    note: str,
    sampled: Sequence[SampledPoint] = (),
) -> Path:
    """Draws reward against KL to the prior: the optimal curve, best-of-N with its bound, and every model.

    Args:
        curve: the estimated optimum along beta. best: best-of-N. beta: of the target, where the tangent is drawn.
        note: of the conventions, below the title. sampled: samplers without training, with an arrow to the left where
            their KL is an upper bound.
    """
    figure = blank_figure(1, 1, width=7.5, height=5.0)
    (ax,) = figure.axes
    if curve:
        ax.plot(
            [p.kl for p in curve], [p.reward for p in curve], color="0.25", linewidth=2.0, label="optimum, estimated"
        )
        here = min(curve, key=lambda p: abs(math.log(p.at / beta)))
        if math.isclose(here.at, beta, rel_tol=1e-6):
            ax.plot(here.kl, here.reward, "*", color="0.25", markersize=13, label=f"pi* at beta = {beta:g}")
            reach = 0.35 * max(here.kl, 0.05)
            x = [here.kl - reach, here.kl + reach]
            ax.plot(x, [here.reward + beta * (v - here.kl) for v in x], color="0.25", linewidth=0.9, linestyle=":")
    if best:
        xs, ys = [p.kl for p in best], [p.reward for p in best]
        ax.plot(xs, ys, "s-", color=COLOURS[4], markersize=4, linewidth=1.2, label="best-of-N, true distribution")
        bounds = [p.kl if p.bound is None else p.bound for p in best]
        ax.plot(bounds, ys, "--", color=COLOURS[4], linewidth=1.0, label="log N - (N-1)/N, a bound of its KL")
        for p in best:
            ax.annotate(
                f"{p.at:g}", (p.kl, p.reward), fontsize=7, color="0.4", textcoords="offset points", xytext=(4, -9)
            )
    _sampled_points(ax, sampled)
    markers = "oDv^<>ph"
    for i, gap in enumerate(gaps):
        kl, reward, colour = gap.estimates["kl"], gap.reward, COLOURS[i % 4]
        if not math.isfinite(kl.value):
            continue
        ax.errorbar(
            kl.value,
            reward.value,
            xerr=_arms(kl),
            yerr=_arms(reward),
            fmt=markers[i % len(markers)],
            color=colour,
            markersize=7,
            elinewidth=1.0,
            label=literal(plain(gap.name)),
        )
    ax.set_xlabel("KL to the prior (nats per response)")
    ax.set_ylabel("reward (mean per response)")
    ax.set_title("\n".join(textwrap.wrap(literal(note), 110)), fontsize=8, color="0.35")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    figure.suptitle("Reward against KL: models and the optimum", fontsize=12, fontweight="bold")
    return save_png(figure, path)


def _arms(value: Estimate) -> list[list[float]] | None:
    if math.isnan(value.low):
        return None
    return [[max(0.0, value.value - value.low)], [max(0.0, value.high - value.value)]]


def _sampled_points(ax: Axes, sampled: Sequence[SampledPoint]) -> None:
    for i, point in enumerate(sampled):
        at, colour = (point.kl.value, point.reward.value), COLOURS[(i + 1) % len(COLOURS)]
        label = literal(plain(point.name)) + (" (KL at most)" if point.at_most else "")
        ax.errorbar(
            *at,
            yerr=_arms(point.reward),
            fmt="P*Xd"[i % 4],
            color=colour,
            mfc="white",
            markersize=9,
            elinewidth=1.0,
            label=label,
        )
        if point.at_most:
            ax.annotate(
                "", (0.9 * at[0], at[1]), at, arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.0}
            )

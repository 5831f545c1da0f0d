"""Sentences below the table of evaluated policies: what the set of prompts shows, and what it could have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tiltyard.evaluation.policies import PolicySummary
from tiltyard.numerals import plural
from tiltyard.report.text import plain


def significance_lines(results: Sequence[PolicySummary]) -> list[str]:
    """Returns a line for each model that was compared with the baseline, and what its win rate leaves open."""
    tested = [result for result in results if result.wins is not None]
    lines = []
    for result in tested:
        who = f"{plain(result.name)} against {plain(str(result.baseline))}"
        line = f"{who}: {outcomes(result.wins or 0, result.ties or 0, result.losses or 0)}"
        if result.win_rate_p is not None:
            line += f"; p = {p_text(result.win_rate_p)}"
            if len(tested) > 1 and result.win_rate_q is not None:
                line += f", {p_text(result.win_rate_q)} adjusted for {len(tested)} models (Benjamini-Hochberg)"
        if result.win_rate_mde is not None:
            line += f"; this set shows a difference of {points(result.win_rate_mde)} from 50% (80% power)"
        lines.append(line)
        if result.undecided and result.win_rate_bounds is not None:
            low, high = result.win_rate_bounds
            lines.append(
                f"  {plural(result.undecided, 'more pair')} without a verdict: {low:.0%} if all were lost, {high:.0%} "
                "if all were won"
            )
        if result.win_rate_equal_length_note:
            how = "of pairs of about equal length" if result.win_rate_equal_length_how else "not computed"
            lines.append(f"  at equal length: {how}, because {result.win_rate_equal_length_note}")
    return lines


def outcomes(wins: int, ties: int, losses: int) -> str:
    """The counts of compared pairs in words."""
    return f"{plural(wins, 'win')}, {plural(ties, 'tie')}, {plural(losses, 'loss', 'losses')}"


def points(value: float) -> str:
    """A difference of rates in percentage points, rounded up: a smaller one would not show."""
    return plural(max(1, math.ceil(100 * value - 1e-9)), "point")


def p_text(p: float) -> str:
    """A p-value with two digits, never 0."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"

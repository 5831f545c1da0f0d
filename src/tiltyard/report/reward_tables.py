"""Tables of a reward model's evaluation. Labels come from files: they are printed literally, never interpreted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.evaluation.reward_models import BINS, AccuracyRow, RewardReport
from tiltyard.evaluation.stability import Stability
from tiltyard.numerals import plural, verb
from tiltyard.report.text import plain
from tiltyard.stats.intervals import Estimate

MOST = 25  # rows of one breakdown; the file has all


def print_reward_report(report: RewardReport, console: Console | None = None) -> None:
    """Prints the figures with their meaning, the excluded pairs, and accuracy by margin, length and source."""
    console = console or Console()
    utf = console.encoding.lower().startswith("utf")
    style = box.SIMPLE_HEAD if utf else box.ASCII2
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(style="dim")
    for name, value, meaning in _figures(report):
        grid.add_row(Text(name), Text(value), Text(meaning))
    console.print(Text(), grid)
    for line in _pair_counts(report):
        console.print(Text(line, style="dim"))
    tables = [("margin of the label", report.by_margin), ("length (tokens)", report.by_length)]
    notes = {}
    for name, breakdown in report.by_field.items():
        tables.append((name, breakdown.rows))
        if len(breakdown.rows) > 1:
            mean = f"mean over the {len(breakdown.rows)} of {name}, unweighted: {breakdown.mean:.1%}"
            notes[name] = mean
    console.print(_reliability(report, style))
    for name, rows in tables:
        if rows:
            console.print(_rows(name, rows, style, rule=rows is not report.by_length))
        if len(rows) > MOST:
            console.print(Text(f"  the {MOST} largest of {len(rows)}; the file has all", style="dim"))
        if name in notes:
            console.print(Text(f"  {notes[name]}"))
    for line in findings(report):
        console.print(Text(f"! {line}", style="bold yellow"))


def print_stability(rows: Sequence[Stability], console: Console) -> None:
    """Prints the stability of a reward model's scores: a row for each kind of change."""
    style = box.SIMPLE_HEAD if console.encoding.lower().startswith("utf") else box.ASCII
    table = _table(style, "change", "ICC", "order flips", "agrees with labels", "shift, sd")
    for row in rows:
        shift = "" if row.shift is None else f"{row.shift.value:+.2f}"
        cells = (_number(row.icc, 2), _percent(row.flips), _percent(row.accuracy), shift)
        table.add_row(Text(row.name.replace("_", " ")), *map(Text, cells))
    console.print(table)


def findings(report: RewardReport) -> list[str]:
    """Returns the warnings: properties not shown to be good, and those shown to be bad, at the 95% level."""
    warnings = []
    if not report.accuracy.low > 0.5:
        warnings.append("The accuracy is not shown to be above chance: do not trust this reward model on these data.")
    if report.above_rule.high < 0:
        warnings.append("It is worse than preferring the longer response.")
    elif not report.above_rule.low > 0:
        warnings.append("It is not shown to be better than preferring the longer response.")
    if report.longer_excess.low > 0:
        warnings.append("Its errors favour long responses: it prefers them more often than the labels do.")
    if report.longer_excess.high < 0:
        warnings.append("Its errors favour short responses: it prefers them more often than the labels do.")
    gained = report.log_loss.value - report.log_loss_scaled
    if math.isfinite(report.scale) and gained > 0.01 * report.log_loss.value and not 0.8 < report.scale < 1.25:
        direction = "overconfident" if report.scale < 1 else "underconfident"
        warnings.append(f"It is {direction}: its scores times {report.scale:.2g} would predict these labels best.")
    return warnings


def _figures(report: RewardReport) -> Iterator[tuple[str, str, str]]:
    """Yields (name, value, meaning), one line each."""
    yield "accuracy", _percent(report.accuracy), "pairs whose preferred response has the higher score"
    yield '"longer is better"', _percent(report.longer_wins), "accuracy of that rule on the same pairs"
    yield "accuracy above rule", _points(report.above_rule), "percentage points"
    scaled = f"; {report.log_loss_scaled:.3f} with scores times {report.scale:.2g}"
    yield "log-loss", _number(report.log_loss), "chance: 0.693" + ("" if math.isnan(report.scale) else scaled)
    wide, full = f"{BINS} equally wide bins", f"{report.ece_full:.3f} with equally full ones"
    yield "calibration error", f"{report.ece:.3f}", f"0 is best; {wide}, {full}"
    yield "prefers the longer", _percent(report.picks_longer), 'compare with "longer is better"'
    yield "  more than labels", _points(report.longer_excess), "percentage points"
    correlation = f"{_signed(report.length_pearson)}, {_signed(report.length_spearman)}"
    yield "score and length", correlation, "Pearson, Spearman of the differences in a pair"
    if report.tau is not None:
        meaning = f"mean Kendall tau-b over {plural(report.tau.n, 'ranking')}"
        has = verb(report.tau_undefined, "has", "have")
        lost = f" ({report.tau_undefined:,} more {has} none)" if report.tau_undefined else ""
        yield "rank correlation", _number(report.tau, 2), meaning + lost


def _pair_counts(report: RewardReport) -> Iterator[str]:
    """Yields the number of pairs, of ties and of soft labels."""
    yield f"{plural(report.pairs, 'pair')} of {plural(report.prompts, 'prompt')}; brackets: 95% intervals over prompts"
    was = verb(report.tied_in_labels, "was", "were")
    yield f"{plural(report.tied_in_labels, 'pair')} tied in the labels {was} excluded"
    yield f"{plural(report.tied_in_score, 'pair')} tied in score count one half"
    if report.soft:
        yield (
            f"{plural(report.soft, 'pair has a soft label', 'pairs have soft labels')}: "
            "log-loss and calibration use them, "
            "accuracy the likelier side"
        )


def _reliability(report: RewardReport, style: box.Box) -> Table:
    table = _table(style, "predicted to be right", "is right", "pairs")
    for part in report.reliability:
        edges = f"{part.low:.0%} to {part.high:.0%}, mean {part.predicted:.1%}"
        table.add_row(Text(edges), Text(_percent(part.observed)), Text(f"{part.observed.n:,}"))
    return table


def _rows(name: str, rows: Sequence[AccuracyRow], style: box.Box, *, rule: bool) -> Table:
    """Returns the table of a breakdown; `rule`: with a column for the length rule (not useful by length)."""
    table = _table(style, f"by {name}", "accuracy", *(["longer wins"] if rule else []), "pairs")
    if len(rows) > MOST:
        rows = sorted(rows, key=lambda row: -row.accuracy.n)[:MOST]
    for row in rows:
        also = [Text(f"{row.longer_wins:.1%}")] if rule else []
        label = " ".join(plain(row.label).split())
        table.add_row(Text(label), Text(_percent(row.accuracy)), *also, Text(f"{row.accuracy.n:,}"))
    return table


def _table(style: box.Box, first: str, *others: str) -> Table:
    table = Table(box=style, pad_edge=False, header_style="bold", padding=(0, 1), collapse_padding=True)
    table.add_column(Text(first), overflow="fold", min_width=26)
    for name in others:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _percent(e: Estimate) -> str:
    return f"{100 * e.value:.1f}%{_interval(100 * e.low, 100 * e.high, 1)}"


def _points(e: Estimate) -> str:
    return f"{100 * e.value:+.1f}{_interval(100 * e.low, 100 * e.high, 1, sign='+')}"


def _number(e: Estimate, digits: int = 3) -> str:
    return f"{e.value:.{digits}f}{_interval(e.low, e.high, digits)}"


def _interval(low: float, high: float, digits: int, sign: str = "") -> str:
    return f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})" if math.isfinite(low) else ""


def _signed(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:+.2f}"

"""Agreement and quality of annotators as tables of the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.numerals import plural
from tiltyard.report.board_tables import share
from tiltyard.report.text import plain
from tiltyard.stats.agreement import Agreement
from tiltyard.stats.habits import biases
from tiltyard.stats.label_quality import AnnotatorQuality, Disagreement, LabelReport

_EXCERPT = 60  # characters of a prompt


def print_label_report(report: LabelReport, console: Console, *, shown: int = 5) -> None:
    """Prints the indices of agreement, the annotators, and the first `shown` disagreements."""
    line = (
        f"{plural(report.judgements, 'judgement')}; {plural(report.items, 'item')}, "
        f"{report.doubly:,} of them judged by two or more"
    )
    console.print(line, highlight=False)
    if report.indices:
        table = _table(console, "kind", "index", "value", "95% interval", "units", left=2)
        for kind, name, value in report.indices:
            table.add_row(kind, name, *agreement_cells(value), f"{value.n:,}")
        console.print(table)
        for kind, name, value in report.indices:
            if value.reason:
                console.print(f"{kind}, {name}: {value.reason}", markup=False, highlight=False, soft_wrap=True)
    _print_annotators(report.annotators, console)
    if report.cohen:
        console.print("Cohen's kappa of two annotators:")
        table = _table(console, "", "", "value", "95% interval", "units", left=2)
        for a, b, value in report.cohen:
            table.add_row(Text(plain(a)), Text(plain(b)), *agreement_cells(value), f"{value.n:,}")
        console.print(table)
    _print_disagreements(report.disagreements, console, shown)
    for note in report.notes:
        console.print(plain(f"note: {note}"), markup=False, highlight=False, soft_wrap=True)


def agreement_cells(value: Agreement) -> tuple[str, str]:
    """Returns an index and its interval as texts; "undefined" where it is."""
    if math.isnan(value.value):
        return "undefined", ""
    return f"{value.value:.3f}", "" if math.isnan(value.low) else f"[{value.low:.3f}, {value.high:.3f}]"


def _print_annotators(annotators: Sequence[AnnotatorQuality], console: Console) -> None:
    optional = {
        "accuracy": [share(one.accuracy) for one in annotators],
        "competence": [share(one.competence) for one in annotators],
        "": [one.standing for one in annotators],
        "gold right": [share(one.gold) for one in annotators],
        "first": [share(one.first) for one in annotators],
        "longer": [share(one.longer) for one in annotators],
        "ties": [share(one.ties) for one in annotators],
        "repeats": [share(one.repeats) for one in annotators],
        "seconds": ["" if math.isnan(one.seconds) else f"{one.seconds:.0f}" for one in annotators],
    }
    kept = {name: cells for name, cells in optional.items() if any(cells)}
    console.print("Annotators:")
    for names in (("accuracy", "competence", "", "gold right"), ("first", "longer", "ties", "repeats", "seconds")):
        columns = [name for name in names if name in kept]
        if not columns:
            continue
        table = _table(console, "annotator", "labels", *columns, left=1)
        for k, one in enumerate(annotators):
            style = "red" if one.standing == "poor" else ""
            name = f"{one.name} (judge)" if one.judge else one.name
            table.add_row(Text(plain(name)), f"{one.labels:,}", *(kept[c][k] for c in columns), style=style)
        console.print(table)
    legend = {
        "accuracy": "accuracy: Dawid-Skene's, as the others confirm it",
        "competence": "competence: MACE's share of labels that are no guess; poor: its interval is below the floor",
        "first": "first: share of wins of what was shown first; longer: of the longer answer (it may be better)",
    }
    for name, words in legend.items():
        if name in kept:
            console.print(words, highlight=False, soft_wrap=True)
    _print_biases(annotators, console)


def _print_biases(annotators: Sequence[AnnotatorQuality], console: Console) -> None:
    """Prints a line for each bias that the habits show."""
    found = biases({one.name: (one.first, one.longer) for one in annotators})
    for one in annotators:
        words = {
            "position": f"has a position bias: what was shown first wins {share(one.first)}",
            "longer": f"prefers the longer answer: it wins {share(one.longer)}, more often than with most",
            "shorter": f"prefers the shorter answer: the longer wins {share(one.longer)}, less than with most",
        }
        for bias in found.get(one.name, ()):
            console.print(plain(f"{one.name} {words[bias]}"), markup=False, highlight=False, soft_wrap=True)


def _print_disagreements(found: Sequence[Disagreement], console: Console, shown: int) -> None:
    if not found or not shown:
        return
    console.print(
        f"{plural(len(found), 'item')} with different labels, the most evenly split ones first:", highlight=False
    )
    table = _table(console, "prompt", "labels", left=2)
    for one in found[:shown]:
        words = " ".join(one.prompt.split())
        excerpt = words[:_EXCERPT] + ("..." if len(words) > _EXCERPT else "")
        labels = ", ".join(f"{name}: {label}" for name, label in sorted(one.labels.items()))
        table.add_row(Text(plain(excerpt)), Text(plain(labels)))
    console.print(table)


def _table(console: Console, *names: str, left: int) -> Table:
    utf = (console.encoding or "").lower().startswith("utf")
    style = box.SIMPLE_HEAD if utf else box.ASCII2
    table = Table(box=style, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in names[:left]:
        table.add_column(Text(name), overflow="fold", min_width=8)
    for name in names[left:]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table

"""Both sides' numbers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

BOUND = 1e-4  # the relative difference that is asked for in float32


@dataclass(frozen=True)
class Number:
    """One number of both.

    Args:
        case, name: e.g. `dpo`, `loss`. theirs: None where TRL was not run. apart: the two are defined differently, and
            the note says how: no agreement is expected. scale: what a difference is compared with at least. A reward is
            a difference of log-probs and may be near 0 by chance: the largest of the case's rewards.
    """

    case: str
    name: str
    ours: float
    theirs: float | None
    apart: bool = False
    scale: float = 0.0

    @property
    def difference(self) -> float | None:
        """|ours - theirs| over the larger of the two, or over `scale`."""
        if self.theirs is None:
            return None
        scale = max(abs(self.ours), abs(self.theirs), self.scale)
        return abs(self.ours - self.theirs) / scale if scale else 0.0

    @property
    def agrees(self) -> bool | None:
        """Whether it is within the bound; None where that was not asked."""
        return None if self.theirs is None or self.apart else bool((self.difference or 0.0) <= BOUND)


def show(numbers: Sequence[Number], notes: dict[str, str], console: Console) -> None:
    """The table, and below it what differs on purpose."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("case")
    table.add_column("number")
    for title in ("ours", "TRL", "difference"):
        table.add_column(title, justify="right")
    table.add_column("")
    before = ""
    for number in numbers:
        difference = number.difference
        verdict = {True: "[green]agrees[/]", False: "[red]differs[/]", None: "by definition" if number.apart else ""}
        table.add_row(
            "" if number.case == before else number.case,
            number.name,
            f"{number.ours:.7g}",
            "-" if number.theirs is None else f"{number.theirs:.7g}",
            "-" if difference is None else f"{difference:.1e}",
            verdict[number.agrees],
        )
        before = number.case
    console.print(table)
    for case, note in notes.items():
        if note:
            console.print(f"{case}: {note}", highlight=False, soft_wrap=True)
    said = [number.agrees for number in numbers]
    console.print(f"agree within {BOUND:g}: {said.count(True)}, differ: {said.count(False)}", highlight=False)

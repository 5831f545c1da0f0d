"""The table of samplers in docs/infer.md is the one of the code."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tiltyard.posterior.infer import SAMPLERS

PAGE = Path(__file__).resolve().parents[2] / "docs/infer.md"
BEGIN, END = "<!-- samplers: begin -->\n", "<!-- samplers: end -->"
HEADINGS = ("sampler", "distribution of a response", "exact for", "needs", "source")


def table() -> str:
    rows = [(f"`{name}`", e.formula, e.exact, e.needs, e.paper) for name, e in SAMPLERS.items()]
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def test_the_page_shows_the_table() -> None:
    """`TILTYARD_UPDATE=1 pytest tests/posterior/test_infer_page.py` writes it anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    shown, ended, after = rest.partition(END)
    assert found
    assert ended
    if os.environ.get("TILTYARD_UPDATE"):
        shown = table()
        PAGE.write_text(before + BEGIN + shown + END + after, encoding="utf-8")
    assert shown == table(), "the samplers have changed: TILTYARD_UPDATE=1 writes the page's table anew"


def test_every_sampler_is_described() -> None:
    assert list(SAMPLERS) == [entry.sampler.name for entry in SAMPLERS.values()]
    for entry in SAMPLERS.values():
        assert all(text.strip() for text in entry[1:])
        assert re.search(r"\b(19|20)\d\d\b", entry.paper)
        assert entry.sampler.__doc__

"""What methods declare is complete, and the table of docs/methods.md is the one that is derived from it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tiltyard.batch.batch import RECORDS
from tiltyard.cli.method_tables import HEADINGS, cells
from tiltyard.config import describe
from tiltyard.methods import METHODS
from tiltyard.stages.base import get_stage
from tiltyard.stages.methods import compare, compose, method_rows, own_keys, pieces
from tiltyard.training.forward import FORWARD_PASSES, column_names
from tiltyard.yaml_values import parse_value

PAGE = Path(__file__).resolve().parents[1] / "docs/methods.md"
BEGIN, END = "<!-- methods: begin -->\n", "<!-- methods: end -->"
NAMES = sorted(METHODS)


def table() -> str:
    """The comparison as markdown."""
    rows = [tuple(text.replace("|", "\\|") for text in cells(row)) for row in compare()]
    lines = [HEADINGS, ("---",) * len(HEADINGS), *((f"`{name}`", *rest) for name, *rest in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_page_shows_the_derived_table() -> None:
    """`TILTYARD_UPDATE=1 pytest tests/test_methods_page.py` writes the table anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    shown, ended, after = rest.partition(END)
    assert found
    assert ended
    if os.environ.get("TILTYARD_UPDATE"):
        shown = table()
        PAGE.write_text(before + BEGIN + shown + END + after, encoding="utf-8")
    assert shown == table(), "the methods have changed: TILTYARD_UPDATE=1 writes the page's table anew"


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_users_ask(name) -> None:
    method = METHODS[name]
    empty = [key for key in ("formula", "oracle", "paper", "pitfalls") if not getattr(method, key).strip()]
    assert not empty
    assert re.search(r"\b(1[89]|20)\d\d\b", method.paper), "a paper has a year"
    assert method.defaults_from or not method.defaults, "where the changed defaults come from (`defaults_from`)"


@pytest.mark.parametrize("name", NAMES)
def test_every_default_of_its_own_says_where_it_comes_from(name) -> None:
    rows = [row for row in method_rows(METHODS[name], get_stage(name)) if row["own"]]
    assert [row["key"] for row in rows if not row["source"] or not row["doc"]] == []
    for row in rows:
        # `[0.1: paper]` must be true to the code: the value in front is the default
        value = parse_value(row["source"].partition(":")[0])
        named = value in re.findall(r"'(\w+)'", row["type"]) if isinstance(value, str) else True
        if ":" in row["source"] and named:
            assert value == row["default"], f"{row['key']}: {row['source']}"


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_columns_agree_with_the_composition(name) -> None:
    """The declaration against the algorithm: the same models are trained, and every column that is read is written."""
    method = METHODS[name]
    assert set(method.cached) <= set(method.frozen)
    assert not set(method.trains) & set(method.frozen)
    assert set(own_keys(method)) <= {setting.key for setting in describe(get_stage(name).settings)}
    parts = pieces(method)
    assert parts is not None
    known = {*FORWARD_PASSES, *RECORDS}
    for step in parts["prepare"]:
        assert known >= set(step["needs"])
        known |= set(step["writes"])
    own = column_names([need for need in compose(method).loss.needs if not isinstance(need, str)])
    assert known | set(own) >= set(parts["loss"]["needs"])
    assert parts["loss"]["doc"], "a loss says what it computes"

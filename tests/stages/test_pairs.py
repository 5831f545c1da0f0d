"""Rankings cut into pairs one by one are those cut in one go, in the same order."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.training import tiny

from tiltyard.data import GroupFile
from tiltyard.inputs.comparisons import as_pairs
from tiltyard.stages.base import StageContext
from tiltyard.training.select import all_pairs, best_worst
from tiltyard.training.source import generator
from tiltyard.types import Preference, ranks_of


@pytest.mark.parametrize("how", ["all", "best_worst"])
def test_pairs_of_rankings(tmp_path: Path, how: str) -> None:
    """Pairs of the file first, with their soft labels, then what rankings give; ties are broken by the same draws."""
    rows = tiny.rankings(30, tied=(3, 8))
    rows = [replace(g, preference=Preference(shares=(0.7, 0.3))) if len(g.responses) == 2 else g for g in rows]
    out = io.StringIO()
    context = StageContext("r", "s", tmp_path, tmp_path, console=Console(file=out, width=200))
    found = list(as_pairs(context, "data", GroupFile.write(rows, tmp_path), how, seed=4))
    ranked = [
        replace(g, scores=tuple(-float(k) for k in ranks_of(g.preference) or ())) for g in rows if len(g.responses) > 2
    ]
    cut = best_worst(ranked, generator(4, 6)) if how == "best_worst" else all_pairs(ranked)
    given = [g for g in rows if len(g.responses) == 2]
    assert given
    assert found == [*given, *cut]
    assert f"{len(found):,} pairs of 30 rows (pairs={how}), {cut.dropped:,} ties left out" in out.getvalue()
    assert cut.dropped

"""Published judges (LLMBar) counted from their own verdicts: the published figures, to the digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.judges.__main__ import agrees, calibrated, compared, published, read


@pytest.fixture(scope="module")
def verdicts(real_data: Path) -> Path:
    return real_data / "judging/llmbar.jsonl.gz"


@pytest.fixture(scope="module")
def natural(verdicts: Path) -> dict[str, Any]:
    return {judge: (found, stated) for judge, found, stated in compared(read(verdicts, "natural"))}


def test_published_figures_to_the_digit(natural) -> None:
    """Right in each order and in both, orders that agree, and their kappa: all judges of one pass."""
    assert len(natural) == len(published()) == 44
    equal = {judge for judge, (found, stated) in natural.items() if stated is not None and agrees(found, stated)}
    asked_once = {judge for judge in natural if judge.rpartition("/")[2] not in ("Swap", "Swap_CoT")}
    assert equal == asked_once
    assert len(equal) == 32


def test_the_second_pass_only_mends_pairs_whose_orders_disagreed(natural) -> None:
    """`Swap` asks again where its orders disagree; what agreed in the first pass stays, so both-right can only grow."""
    stated = published()
    found, _ = natural["GPT-4/Swap"]
    assert (found.right, found.both, found.same) == ((92, 93), 89, 93)
    assert stated["GPT-4/Swap"][:3] == ((94, 95), 93, 97)
    for judge in natural:
        if judge.rpartition("/")[2] in ("Swap", "Swap_CoT"):
            first, again = natural[judge][0], stated[judge]
            assert again.both >= first.both
            assert again.same >= first.same


def test_good_judges_beat_longest_and_one_of_positions_does_not(verdicts) -> None:
    """On LLMBar the longer response is worse more often than not; judges that decide by position are useless."""
    rows = calibrated(read(verdicts))
    assert rows["longest"]["agreement"] < 0.5
    assert not rows["GPT-4/Vanilla"]["useless"]
    assert rows["random"]["useless"]
    assert rows["Falcon/CoT"]["disagree"] > 0.7

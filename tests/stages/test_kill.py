"""`kill -9` anywhere in every stage: what is finished later is what was never interrupted, bit for bit."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from tiltyard.pipeline import run_recipe

from . import tiny
from .conftest import Whole
from .planted import Calls, forked, killed

pytestmark = pytest.mark.slow
KILLS = 2  # a stage


def go(whole: Whole, root: Path) -> None:
    run_recipe(whole.recipe, runs_root=root, console=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def calls(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How many calls of the product's functions each stage makes."""
    root, count = tmp_path_factory.mktemp("calls"), Calls()

    def attempt() -> None:
        go(whole, root)
        (root / "counts.json").write_text(json.dumps(count.counts))

    assert forked(attempt, count.plant) == 0
    found: dict[str, int] = json.loads((root / "counts.json").read_text())
    assert tuple(found) == tiny.STAGES
    assert min(found.values()) > 100
    return found


@pytest.mark.parametrize("seed", range(3))
def test_killed_is_uninterrupted(whole: Whole, calls: dict[str, int], tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for name, count in calls.items():
        left = count
        for _ in range(KILLS):
            # what was left to do when a kill came is done by the next attempt, so that every place is reached
            place = chance.randint(1, int(0.8 * left))
            killed(lambda: go(whole, tmp_path), Calls(name, place).plant)
            assert not (tmp_path / "tiny" / name / "done.json").exists()
            left -= place
    go(whole, tmp_path)
    ours, theirs = tiny.results(tmp_path / "tiny"), tiny.results(whole.run)
    assert ours.keys() == theirs.keys()
    assert {"ppo/model/model.safetensors", "ppo/value/model.safetensors", "ppo/groups.jsonl"} < ours.keys()
    different = [name for name in theirs if ours[name] != theirs[name]]
    assert not different
    for name in ("pretrain", "sft", "reward", "ppo"):
        left_over = sorted(p.name for p in (tmp_path / "tiny" / name / "checkpoints").iterdir())
        assert left_over == sorted(p.name for p in (whole.run / name / "checkpoints").iterdir())

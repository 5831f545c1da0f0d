"""Rewards on a scale: what normalising does on its calibration set, and what it leaves alone."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tiltyard.cli import main
from tiltyard.data import load_groups
from tiltyard.inputs.measure import scores_of
from tiltyard.models.load import load_scalar_model, value_from

from .conftest import Whole


@pytest.fixture(scope="module")
def trained(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`normalise` -> (the saved model, its result)."""
    root = tmp_path_factory.mktemp("normalise")

    def train(how: str, name: str = "", *more: str) -> tuple[Path, dict[str, Any]]:
        words = [
            "train", "reward", f"model={whole.run / 'sft'}", f"data={whole.run / 'label' / 'rankings.groups.jsonl'}",
            f"demonstrations={whole.run / 'world' / 'demonstrations_held_out.jsonl'}", f"normalise={how}", "steps=6",
            "prompts_per_step=4", "lr=1e-3", "max_length=64", "device=cpu", *more,
            f"name={name or how}", "--runs", str(root),
        ]  # fmt: skip
        assert main(words) == 0
        folder = root / (name or how) / "reward"
        return folder / "model", json.loads((folder / "done.json").read_text())["result"]

    few = {"few": train("mean", "few", "normalise_limit=4")}
    return {how: train(how) for how in ("none", "mean", "unit")} | few


def scores(whole: Whole, folder: Path) -> torch.Tensor:
    model = load_scalar_model(folder, device="cpu")
    path = whole.run / "world" / "demonstrations_held_out.jsonl"
    groups, _ = load_groups(path, "demonstrations", model.chat, max_length=64)
    return torch.tensor([s for row in scores_of(model, groups, 8192) for s in row], dtype=torch.float64)


def test_mean_and_variance_on_the_calibration_set(whole: Whole, trained: Any) -> None:
    """methods 1.6: |mean| below 1e-6 of the spread on the set itself, variance 1 for `unit`; read back from disk."""
    found = {how: scores(whole, folder) for how, (folder, _) in trained.items()}
    for how in ("mean", "unit"):
        assert abs(float(found[how].mean())) < 1e-6 * max(1.0, float(found[how].std()))
    assert float(found["unit"].std(correction=0)) == pytest.approx(1, abs=1e-5)
    raw = found["none"]
    torch.testing.assert_close(found["mean"], raw - raw.mean(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found["unit"], (raw - raw.mean()) / raw.std(correction=0), atol=1e-4, rtol=1e-4)
    assert abs(float(raw.mean())) > 1e-6, "there was something to shift"


def test_a_part_of_the_set_stands_for_it(whole: Whole, trained: Any) -> None:
    """`normalise_limit=4`: the mean of four groups drawn with the seed is 0, that of all is near it."""
    few, raw = scores(whole, trained["few"][0]), scores(whole, trained["none"][0])
    drawn = sorted(random.Random(0).sample(range(len(raw)), 4))
    assert abs(float(few[drawn].mean())) < 1e-6
    assert 0 < abs(float(few.mean())) < 3 * float(raw.std())
    torch.testing.assert_close(few - few.mean(), raw - raw.mean(), atol=1e-6, rtol=0)


def test_the_result_says_what_was_done(trained: Any) -> None:
    results = {how: result for how, (_, result) in trained.items()}
    assert not {"reward_bias", "reward_gain"} & set(results["none"])
    assert "reward_gain" not in results["mean"]
    assert results["mean"]["reward_bias"] == pytest.approx(results["unit"]["reward_bias"])
    assert results["unit"]["reward_gain"] > 0


def test_a_value_model_starts_with_the_same_scale(whole: Whole, trained: Any) -> None:
    """PPO's critic is a copy of the reward model: at the last token it must say what the reward model says."""
    model = load_scalar_model(trained["unit"][0], device="cpu")
    assert (value_from(model).gain, value_from(model).bias) == (model.gain, model.bias)

"""A small random model and rows of every kind, made once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tiltyard.data import train_tokenizer
from tiltyard.models.load import from_scratch, save_model

WORDS = [
    "the",
    "cat",
    "sees",
    "a",
    "dog",
    "in",
    "house",
    "river",
    "stone",
    "bread",
    "warm",
    "cold",
    "small",
    "large",
    "sun",
    "moon",
    "walks",
    "runs",
    "and",
    "or",
]


class Place(NamedTuple):
    folder: Path
    model: Path

    def file(self, name: str, rows: list[dict[str, Any]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


def sentence(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


def pairs(prompts: int, of_each: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Comparisons whose better answer ends with a fixed word."""
    chance = random.Random(seed)
    rows = []
    for number in range(prompts):
        for _ in range(of_each):
            good, bad = sentence(chance, 4), sentence(chance, 5)
            rows.append(
                {"prompt": f"question {number}: {sentence(chance, 3)}", "chosen": f"{good} sun", "rejected": bad}
            )
    for row in rows:
        row["prompt"] = row["prompt"].split(":")[0]
    return rows


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("advice")
    texts = [" ".join(map(str, row.values())) for row in pairs(60)]
    model = from_scratch("1m", train_tokenizer(texts, 400), context=128)
    save_model(model, folder / "chatty")
    return Place(folder, folder / "chatty")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, list[dict[str, Any]]], Path]:
    def make(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return make

"""The recipes of benchmarks/real name settings and stages that there are; the wishes are kept or not by rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.real import wishes

from tiltyard.pipeline.recipe import check, read_recipe
from tiltyard.types import Message, Prompt, Response

RECIPES = Path(__file__).parents[2] / "benchmarks/real"
FILES = ("a", "b", "balanced", "balanced_b", "dev", "hhh", "human", "llmbar_natural", "llmbar_adversarial")
KEPT = {
    "brief": "The answer is a short one.",
    "asks": "It is a good idea to begin early. When would you like to begin?",
    "prose": " ".join(["word"] * 45) + ".",
    "json": '{"answer": "Paris"}',
}


@pytest.mark.parametrize("name", ["rewards", "tournament", "wishes"])
def test_a_recipe_is_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "work"
    for one in (*FILES, "wishes", "wishes_dev"):
        file = here / f"runs/real/{one}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for folder in ("models/smollm2", "models/gemma3", "../shared/data/prompts"):
        (here / folder).mkdir(parents=True)
    for part in ("train", "dev"):
        (here / f"../shared/data/prompts/{part}.jsonl.gz").touch()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(RECIPES.parents[1]))
    steps = check(read_recipe(RECIPES / f"{name}.yaml"))
    assert len({step.name for step in steps}) == len(steps) > 3


@pytest.mark.parametrize("asked", list(KEPT))
def test_a_wish_is_kept_by_an_answer_of_its_kind_alone(asked: str) -> None:
    """The reward of the prompt's own wish; a wish's own measure abstains from the prompts of the others."""
    prompt, row = Prompt(messages=(Message("user", "Well?"),)), {"wish": asked}
    for kind, text in KEPT.items():
        answer = Response(text=text, finish="stop")
        expected = {("brief", "asks"): 1.0, ("brief", "json"): 0.0}.get((asked, kind), float(kind == asked))
        assert wishes.kept(prompt, answer, row) == expected, (asked, kind)
        assert [getattr(wishes, name)(prompt, answer, row) for name in KEPT] == [
            expected if name == asked else None for name in KEPT
        ]
    assert wishes.kept(prompt, Response(text=KEPT[asked], finish="length"), row) == 0.0

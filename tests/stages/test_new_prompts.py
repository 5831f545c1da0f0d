"""The stage `new_prompts`: what is asked, what passes, and that a kill at any write changes nothing."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tiltyard.data import load_prompts
from tiltyard.data.overlap import rouge_l, words_of
from tiltyard.errors import ConfigError, DataError
from tiltyard.models.load import load_language_model
from tiltyard.pipeline import run_recipe
from tiltyard.runs.journal import JsonlFile
from tiltyard.stages import new_prompts
from tiltyard.stages.new_prompts import Example, NewPromptsSettings, PromptFilter, first_line, request
from tiltyard.types import Group, Prompt, Response

from . import tiny
from .conftest import Whole
from .planted import Place, forked, half_row

LINES = [
    "What does Aria eat, and where does she live?",
    "2. Tell me about the old mill of Harl.",
    "what does aria EAT and where does she live",  # a repetition
    "Hi",
    "Draw me a map of the village of Harl, please.",
    "\n \n- Who keeps the goats of Bren in winter?\nA second line is not read.",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
    "Tell me about the new mill of Harl.",  # 7 of 8 words of another
    "",
    "Which colour is the coat of Dorin?",
]


class Scripted:
    """Stands for the sampler: the n-th request is answered by the n-th line; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, model: Any, prompts: Sequence[Prompt], n: int, law: Any, *, seeds: Any) -> list[Group]:
        assert n == 1
        first = len(self.asked)
        self.asked += [p.text or (p.messages or ())[0].content for p in prompts]
        return [Group(p, (Response(text=LINES[(first + i) % len(LINES)]),)) for i, p in enumerate(prompts)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_prompts, "BLOCK", 4)


def given(folder: Path) -> Path:
    path = folder / "given.jsonl"
    turns = [{"role": "user", "content": "Hello there!"}, {"role": "assistant", "content": "Hi"}]
    rows: list[dict[str, Any]] = [{"id": f"g{i}", "prompt": f"Is number {i} even or odd?"} for i in range(12)]
    rows.append({"id": "talk", "prompt": [*turns, {"role": "user", "content": "And who are you now?"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(whole: Whole, folder: Path, more: str = "", prompts: Path | None = None) -> tuple[Path, dict[str, Any], str]:
    recipe, out = folder / "n.yaml", io.StringIO()
    asked = f"model: {whole.run}/sft, prompts: {prompts or given(folder)}, device: cpu, max_tokens: 8, shots: 2"
    recipe.write_text(f"name: n\nstages:\n  - new_prompts: {{{asked}{more}}}\n")
    outcome = run_recipe(recipe, runs_root=folder, console=Console(file=out, width=200))
    return folder / "n" / "new_prompts", outcome["stages"]["new_prompts"]["result"], out.getvalue()


# ------------------------------------------------------------------------------------------------------ what passes


def test_what_is_taken_and_why_the_rest_is_not(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_prompts, "sample", Scripted())
    folder, result, _ = made(whole, tmp_path, ", count: 9, requests: 10, max_words: 12")
    taken, rest = (tiny.rows(folder / name) for name in ("prompts.jsonl", "rejected.jsonl"))
    assert [row["prompt"] for row in taken] == [
        "What does Aria eat, and where does she live?",
        "Tell me about the old mill of Harl.",
        "Who keeps the goats of Bren in winter?",
        "Which colour is the coat of Dorin?",
    ]
    assert [(row["reason"], row["request"]) for row in rest] == [
        ("repeated", 2),
        ("too short", 3),
        ("blocked word", 4),
        ("too long", 6),
        ("too similar", 7),
        ("too short", 8),
    ]
    assert rest[4]["similarity"] == pytest.approx(7 / 8)
    assert rest[4]["like"] == "Tell me about the old mill of Harl."
    reasons = {"repeated": 1, "too short": 2, "blocked word": 1, "too long": 1, "too similar": 1}
    assert result == {"requests": 10, "prompts": 4, "rejected": reasons}


def test_it_stops_when_there_is_enough(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_prompts, "sample", Scripted())
    folder, result, _ = made(whole, tmp_path, ", count: 2")
    assert result == {"requests": 2, "prompts": 2, "rejected": {}}
    rows = tiny.rows(folder / "prompts.jsonl")
    assert [row["id"] for row in rows] == ["new-000000", "new-000001"]
    chat = load_language_model(whole.run / "sft").chat
    read, _ = load_prompts(folder / "prompts.jsonl", chat, max_prompt=60)
    assert [(p.messages or ())[0].content for p in read] == [row["prompt"] for row in rows]
    assert read[0].meta["model"] == f"{whole.run}/sft"


def test_given_prompts_are_never_written_again() -> None:
    sieve = PromptFilter(NewPromptsSettings(model="m", prompts="p", count=1), ["Is number 3 even or odd?"])
    assert sieve("is number 3 EVEN, or odd") == ("repeated", 1.0, "")
    # 5 of 6 words are common
    assert sieve("Is number 4 even or odd?") == ("too similar", pytest.approx(5 / 6), "Is number 3 even or odd?")
    assert sieve("Is the sea even or odd to you?")[:2] == ("", pytest.approx(2 * 4 / 14))
    edge = PromptFilter(NewPromptsSettings(model="m", prompts="p", count=1, similarity=0.5), ["a b c d"])
    assert edge("a b x y")[0] == "too similar"  # exactly 0.5 is not below it
    assert edge("a x y z")[0] == ""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" What is it?\n10. And that?", "What is it?"),
        ("9) What is  it?", "What is it?"),
        ("- What is it?", "What is it?"),
        ("3 goats are how many legs?", "3 goats are how many legs?"),
        ("...\n\n What is it?", "What is it?"),
        ("", ""),
        ("[bold]What[/] {is} it?\x00", "[bold]What[/] {is} it?\x00"),  # a model's words are only text
    ],
)
def test_the_first_line_is_what_counts(text: str, line: str) -> None:
    assert first_line(text) == line


# ------------------------------------------------------------------------------------------------------ what is asked


def test_requests_show_given_prompts_drawn_by_number(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Scripted()
    monkeypatch.setattr(new_prompts, "sample", sampler)
    folder, _, text = made(whole, tmp_path, ", count: 9, requests: 10")
    assert "13 given, 12 of one turn" in text
    rows = sorted(tiny.rows(folder / "prompts.jsonl") + tiny.rows(folder / "rejected.jsonl"), key=asked_as)
    shots = [row.get("meta", row)["shots"] for row in rows]
    assert len(shots) == len(sampler.asked) == 10
    for names, said in zip(shots, sampler.asked, strict=True):
        assert len(set(names)) == 2
        one, two = (f"Is number {name[1:]} even or odd?" for name in names)
        assert said == f"1. {one}\n2. {two}\n3."
    assert len(set(sampler.asked)) > 5
    chat = request([Example("a", "One?")], "chat")
    assert (chat.messages or ())[0].content.endswith("in one line.\n\n1. One?\n2.")


def asked_as(row: dict[str, Any]) -> int:
    return int(row.get("meta", row)["request"])


def test_a_request_that_does_not_fit_is_counted_and_never_cut(whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Is {'very ' * 30} number {i} odd?"}) + "\n" for i in range(3)))
    with pytest.raises(DataError, match="no new prompt passed") as error:
        made(whole, tmp_path, ", count: 1, requests: 5", path)
    assert "request too long: 5" in str(error.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (", count: 1, shots: 13", "fewer examples than a request shows"),
        (", count: 1, min_words: 9, max_words: 8", "min_words"),
        (", count: 1, similarity: 0", "similarity"),
    ],
)
def test_settings_that_cannot_work(whole: Whole, tmp_path: Path, more: str, told: str) -> None:
    more = more.replace(", shots: 13", "")
    path = given(tmp_path)
    if "fewer" in told:
        path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises((ConfigError, DataError), match=told):
        made(whole, tmp_path, more, path)


# ------------------------------------------------------------------------------------------------ a real model, killed

REAL = ", count: 7, requests: 14, min_words: 1, similarity: 0.9, seed: 4, temperature: 1.0"


def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {p.name: p.read_bytes() for p in sorted(folder.glob("*.jsonl"))}
    return found | {"result": json.loads((folder / "done.json").read_text())["result"]}


@pytest.fixture(scope="module")
def uninterrupted(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_prompts, "BLOCK", 4)
        folder, _, _ = made(whole, tmp_path_factory.mktemp("whole"), REAL, whole.run / "world" / "prompts.jsonl")
    return everything(folder)


def test_what_a_model_writes_keeps_the_promises(whole: Whole, uninterrupted: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in uninterrupted["prompts.jsonl"].splitlines()]
    assert len(rows) == uninterrupted["result"]["prompts"] > 0
    known = [r["prompt"][-1]["content"] for r in tiny.rows(whole.run / "world" / "prompts.jsonl")]
    for row in rows:
        nearest = max(rouge_l(words_of(row["prompt"]), words_of(text)) for text in known)
        assert nearest == pytest.approx(row["meta"]["similarity"])
        assert nearest < 0.9
        known.append(row["prompt"])


@pytest.mark.parametrize("at", range(1, 9))
def test_a_kill_at_any_write_changes_nothing(
    whole: Whole, uninterrupted: dict[str, Any], tmp_path: Path, at: int
) -> None:
    """The process dies at its n-th write to the disk, with half a line written; the next one ends where one does."""
    prompts = whole.run / "world" / "prompts.jsonl"
    place = Place(JsonlFile, "write", at, half_row)
    status = forked(lambda: made(whole, tmp_path, REAL, prompts), place.plant)
    killed = os.WIFSIGNALED(status)
    folder, _, _ = made(whole, tmp_path, REAL, prompts)
    assert everything(folder) == uninterrupted
    assert killed or at > 2

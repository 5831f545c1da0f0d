"""The stage `judge_skill`: the judge's own question, people's numbers on its scale, and judgements that agree."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.preferences import fields_of

from tiltyard.data import load_groups
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import Grade, ModelPointsJudge, Usage
from tiltyard.feedback.local import mean_points, read_sample
from tiltyard.feedback.replies import read_points
from tiltyard.models.load import load_language_model
from tiltyard.pipeline import run_recipe
from tiltyard.runs.journal import JsonlFile
from tiltyard.stages import judge_skill
from tiltyard.stages.judge_skill import REASONS, agrees, before_score, points_of
from tiltyard.types import Group, Message, Prompt, Response

from . import tiny
from .conftest import Whole
from .planted import Place, half_row, killed

ASK = "Is this answer good?"


def made(folder: Path, data: Path | str, more: str) -> tuple[Path, dict[str, Any], str]:
    recipe, out = folder / "j.yaml", io.StringIO()
    asked = f'data: {data}, instruction: "{ASK}", device: cpu'
    recipe.write_text(f"name: j\nstages:\n  - judge_skill: {{{asked}, {more}}}\n")
    outcome = run_recipe(recipe, runs_root=folder, console=Console(file=out, width=200))
    return folder / "j" / "judge_skill", outcome["stages"]["judge_skill"]["result"], out.getvalue()


def write(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def group(scores: tuple[float, ...] | None = None, ranks: tuple[int, ...] | None = None) -> Group:
    count = len(scores or ranks or ())
    return Group(Prompt(text="?"), tuple(Response(text=str(i)) for i in range(count)), scores, **fields_of(ranks))


# ------------------------------------------------------------------------------------------------- people's numbers


@pytest.mark.parametrize(
    ("given", "scale", "points"),
    [
        (group(ranks=(1, 2, 3, 4, 5, 6)), None, (5, 4, 3, 2, 1, 0)),
        (group(ranks=(2, 1)), None, (0, 5)),
        (group(ranks=(1, 3, 2)), None, (5, 0, 3)),  # 2.5 is rounded up
        (group(ranks=(1, 1, 4)), None, (5, 5, 0)),  # two levels: a gap in the numbering is none in quality
        (group(ranks=(1, 1)), None, None),
        (group(scores=(1, 4, 7)), (1.0, 7.0), (0, 3, 5)),
        (group(scores=(3, 3)), (1.0, 7.0), (2, 2)),  # 5/3 each: equal scores on a known scale say how good
        (group(scores=(-9, 9)), (1.0, 7.0), (0, 5)),
    ],
)
def test_numbers_become_points(given: Group, scale: tuple[float, float] | None, points: tuple[int, ...] | None) -> None:
    assert points_of(given, scale) == points


def test_rows_are_the_judges_own_question_token_by_token(whole: Whole, tmp_path: Path) -> None:
    """What `sft` learns from these rows is what `ModelPointsJudge` will ask, and its answers are scores it can read."""
    talk = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Who is it?"},
    ]
    path = write(
        tmp_path,
        [
            {"id": "a", "prompt": "One?", "responses": ["yes, one", "no {points}"], "scores": [2, -3]},
            {"id": "b", "prompt": talk, "responses": ["It is\nme.", "[/b] you", "they"], "scores": [7, 2, 4.5]},
        ],
    )
    folder, result, _ = made(tmp_path, path, "how: scores, held_out: 0")
    rows = tiny.rows(folder / "rows.jsonl")
    assert [row["meta"]["points"] for row in rows] == [3, 0, 5, 3, 4]  # (s + 3) / 10 of 5: 2.5, 0, 5, 2.5, 3.75
    assert [row["completion"] for row in rows] == [f"{REASONS[k]}\nScore: {k}" for k in (3, 0, 5, 3, 4)]
    assert result["rows"] == 5
    assert result["points"] == {"0": 1, "3": 2, "4": 1, "5": 1}
    model = load_language_model(whole.run / "sft")
    model.chat.max_length = None
    read, _ = load_groups(folder / "rows.jsonl", "demonstrations", model.chat, max_length=4000)
    asked: list[Prompt] = []

    class Listens(ModelPointsJudge):
        def _generate(self, prompts: Sequence[Prompt], n: int, sampling: Any, seed: int) -> list[Group]:
            asked.extend(prompts)
            return [Group(p, (Response(text="Score: 1"),) * n) for p in prompts]

    turns = tuple(Message(turn["role"], turn["content"]) for turn in talk)
    compared = [
        Group(Prompt(messages=(Message("user", "One?"),)), (Response(text="yes, one"), Response(text="no {points}"))),
        Group(Prompt(messages=turns), tuple(Response(text=t) for t in ("It is\nme.", "[/b] you", "they"))),
    ]
    Listens(model, ASK).score(compared)
    assert [g.prompt.ids for g in read] == [p.ids for p in asked]
    assert [read_points(g.responses[0].text) for g in read] == [3, 0, 5, 3, 4]


def test_comparisons_are_wholly_learnt_from_or_held_out(whole: Whole, tmp_path: Path) -> None:
    data = whole.run / "label" / "rankings.groups.jsonl"
    folder, result, _ = made(tmp_path, data, "how: scores, held_out: 0.4, seed: 1")
    rows, held_out = (tiny.rows(folder / name) for name in ("rows.jsonl", "held_out.jsonl"))
    ids = [{row["meta"]["of"] for row in part} for part in (rows, held_out)]
    assert ids[0] & ids[1] == set()
    assert len(rows) == result["rows"] == 3 * len(ids[0])
    assert len(held_out) == result["held_out"] == 3 * len(ids[1]) > 0
    assert len(ids[0] | ids[1]) + result["tied"] == result["comparisons"] == 16
    assert all(f"of {whole.run}" not in row["meta"]["origin"] and "of sft" in row["meta"]["origin"] for row in rows)


# ------------------------------------------------------------------------------------------------ written judgements


class Writes:
    """A judge that says prepared words: round by round, answer by answer."""

    def __init__(self, *rounds: Sequence[str]):
        self.rounds, self.samples, self.usage = rounds, len(rounds), Usage()

    def score(self, groups: Sequence[Group]) -> list[tuple[Grade, ...]]:
        graded = [
            mean_points([read_sample(text, cut=False) for text in said]) for said in zip(*self.rounds, strict=True)
        ]
        return [tuple(graded) for _ in groups]


def test_rounds_that_agree_with_people_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Whole) -> None:
    judge = Writes(
        ("good SCORE: 4 ...", "better\nScore: 4.5 (of five)", "Score: 1"),  # agrees
        ("Score: 4", "Score: 4", "Score: 1"),  # puts two alike that people rank apart
        ("Score: 2", "Score: 5", "I cannot say"),  # one score is missing
        ("Score: 5", "Score: 4", "Score: 0"),  # the other order
        ("good SCORE: 4 ...", "better\nScore: 4.5 (of five)", "Score: 1"),  # says what was said
    )
    monkeypatch.setattr(judge_skill, "_judge", lambda *_: judge)
    path = write(
        tmp_path,
        [
            {"id": "a", "prompt": "One?", "responses": ["x", "y", "z"], "ranks": [2, 1, 3]},
            {"id": "b", "prompt": "Two?", "responses": ["x", "y", "z"], "ranks": [1, 1, 1]},
        ],
    )
    more = f"how: written, model: {whole.run}/sft, held_out: 0, samples: 5"
    folder, result, text = made(tmp_path, path, more)
    rows = tiny.rows(folder / "rows.jsonl")
    assert [row["completion"] for row in rows] == ["good\nScore: 4", "better\nScore: 4.5", "Score: 1"]
    assert [row["id"] for row in rows] == ["a#0", "a#1", "a#2"]
    expected = {"rounds": 5, "unreadable": 1, "disagreeing": 2, "kept": 3, "tied": 1, "rows": 3, "comparisons": 2}
    assert {key: result[key] for key in expected} == expected
    assert "of 5 rounds of judging 1 had an answer without a readable score, 2 put" in text


@pytest.mark.parametrize(
    ("points", "ranks", "right"),
    [
        ((5, 3, 1), (1, 2, 3), True),
        ((5, 3, 4), (1, 2, 3), False),
        ((4, 4), (1, 2), False),
        ((1, 4), (1, 1), True),  # people say nothing of these two
        ((3, 1, 2, 5), (2, 3, 3, 1), True),
    ],
)
def test_agreement(points: tuple[float, ...], ranks: tuple[int, ...], right: bool) -> None:
    assert agrees(points, ranks) is right


def test_words_end_before_the_last_score() -> None:
    assert before_score("Score: 2? No.\nscore: 4 it is") == "Score: 2? No."
    assert before_score("İİİ fine. Score: 3") == "İİİ fine."  # a letter that lower case makes longer


def test_a_model_that_writes_no_scores_gives_nothing_and_says_so(whole: Whole, tmp_path: Path) -> None:
    data = whole.run / "label" / "rankings.groups.jsonl"
    with pytest.raises(DataError, match="no judgement is left") as error:
        made(tmp_path, data, f"how: written, model: {whole.run}/sft, max_tokens: 4, samples: 1, limit: 5")
    assert "how=scores" in str(error.value)


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("how: written", "needs a model"),
        ("how: scores, model: x/y", "has none"),
        ("how: scores, pairs: all", "pairs has no effect"),
        ("how: written, model: x/y, lowest: 1", "lowest and highest have no effect"),
        ("how: scores, lowest: 2, highest: 1", "not below"),
    ],
)
def test_settings_that_mean_nothing_are_errors(tmp_path: Path, more: str, told: str) -> None:
    path = write(tmp_path, [{"prompt": "One?", "responses": ["x", "y"], "ranks": [2, 1]}])
    with pytest.raises(ConfigError, match=told):
        made(tmp_path, path, more)


def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {p.name: p.read_bytes() for p in sorted(folder.glob("*.jsonl"))}
    return found | {"result": json.loads((folder / "done.json").read_text())["result"]}


@pytest.mark.parametrize("at", [1, 2, 3, 6, 8])
def test_a_kill_at_a_write_changes_nothing(whole: Whole, tmp_path: Path, at: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(judge_skill, "BLOCK", 4)
    data = whole.run / "label" / "rankings.groups.jsonl"
    (tmp_path / "whole").mkdir()
    more = "how: scores, held_out: 0.4"
    expected = everything(made(tmp_path / "whole", data, more)[0])
    killed(lambda: made(tmp_path, data, more), Place(JsonlFile, "write", at, half_row).plant)
    assert everything(made(tmp_path, data, more)[0]) == expected

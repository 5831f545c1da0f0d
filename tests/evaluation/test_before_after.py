"""Lines of a model before and after training, against plain counts; the stage against a plain transformers forward."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console
from tests.advice.conftest import pairs

from tiltyard.data import train_tokenizer
from tiltyard.evaluation import before_after as lines_of
from tiltyard.evaluation.before_after import Line
from tiltyard.models.load import from_scratch, load_language_model, save_model
from tiltyard.pipeline import run_stage
from tiltyard.report.before_after import cells_of, is_better
from tiltyard.stats.intervals import Estimate
from tiltyard.stats.length_control import length_controlled_win_rate
from tiltyard.types import Group, Preference, Prompt, Response


def group(name: str, *texts: str, **more: object) -> Group:
    responses = tuple(Response(text=text, ids=tuple(range(len(text)))) for text in texts)
    return Group(Prompt(text=name, id=name), responses, **more)  # type: ignore[arg-type]


def by_name(lines: list[Line]) -> dict[str, Line]:
    return {line.name.strip(): line for line in lines}


def test_implicit_rewards_of_pairs() -> None:
    groups = [group(f"p{i}", "abc", "de", preference=Preference(ranks=(1, 2))) for i in range(4)]
    before = [[(-3.0, 3), (-3.0, 2)]] * 4
    after = [[(-2.0, 3), (-3.0, 2)], [(-4.0, 3), (-3.5, 2)], [(-3.0, 3), (-3.0, 2)], [(-1.0, 3), (-2.5, 2)]]
    found = by_name(lines_of.preference_lines(groups, before, after))
    accuracy = found["prefers the better answer"].after
    assert accuracy is not None
    assert accuracy.value == (1 + 0 + 0.5 + 1) / 4
    margin = found["by how much"].after
    assert margin is not None
    assert margin.value == pytest.approx((1 - 0.5 + 0 + 1.5) / 4)
    longer = found["the longer is better"].after
    assert longer is not None
    assert longer.value == 1.0
    loss = found["held-out loss"]
    assert loss.before is not None
    assert loss.change is not None
    assert loss.before.value == 1.0
    assert loss.change.value == pytest.approx((2 + 4 + 3 + 1) / 12 - 1)


def test_ties_and_soft_labels() -> None:
    groups = [
        group("a", "x", "y", preference=Preference(shares=(0.2, 0.8))),
        group("b", "x", "y", preference=Preference(shares=(0.5, 0.5))),
    ]
    found = by_name(lines_of.preference_lines(groups, [[(0.0, 1)] * 2] * 2, [[(0.0, 1), (1.0, 1)]] * 2))
    accuracy = found["prefers the better answer"].after
    assert accuracy is not None
    assert (accuracy.value, accuracy.n) == (1.0, 1)
    assert lines_of.preference_lines(groups[1:], [[(0.0, 1)] * 2], [[(0.0, 1)] * 2]) == []


def test_scores_and_verdicts() -> None:
    before = [group("a", "xx", scores=(0.0,)), group("b", "yy", scores=(1.0,)), group("c", "zz", scores=(1.0,))]
    after = [group("a", "x", scores=(1.0,)), group("c", "zzz", scores=(1.0,))]  # an answer without a score is left out
    found = by_name(lines_of.score_lines(before, after, "the reward"))
    assert "at equal length" not in found  # two prompts are too few
    wins, passed = found["wins against before"].after, found["pass rate"]
    assert wins is not None
    assert (wins.value, wins.n) == (0.75, 2)
    assert passed.change is not None
    assert passed.change.value == 0.5
    judged = [group("a", "x", "y", preference=Preference(ranks=(2, 1))), group("b", "x", "y", scores=(2.0, 2.0))]
    line = lines_of.verdict_line(judged, "the judge")
    assert line is not None
    assert line.after is not None
    assert line.after.value == 0.75
    lengths = by_name(lines_of.answer_lines([group("a", "xx")], [group("a", "xxx")]))
    assert lengths["longer than before"].after == Estimate(1.0, *lengths["longer than before"].after.ci, 1)  # type: ignore[union-attr]


def test_wins_at_equal_length() -> None:
    before = [group(f"p{i}", "x" * 5, scores=(0.0,)) for i in range(60)]
    after = [group(f"p{i}", "x" * (4 + i % 4), scores=(float(i % 3),)) for i in range(60)]
    line = by_name(lines_of.score_lines(before, after, "it"))["at equal length"]
    wins = [1.0 if i % 3 else 0.5 for i in range(60)]
    expected = length_controlled_win_rate(wins, [i % 4 - 1 for i in range(60)], range(60))
    assert line.after == expected


def test_labels() -> None:
    labels = ((True, False), (False,))
    groups = [
        group("a", "x", "y", preference=Preference(labels=labels[0])),
        group("b", "x", preference=Preference(labels=labels[1])),
    ]
    after = [[(1.0, 1), (-1.0, 1)], [(1.0, 1)]]
    found = by_name(lines_of.labelled_lines(groups, [[(0.0, 1)] * 2, [(0.0, 1)]], after))
    right = found["moves with the label"].after
    assert right is not None
    assert right.value == pytest.approx(2 / 3)


def test_a_change_is_better_only_beyond_doubt() -> None:
    sure = Line("x", "nats", Estimate(1, 1, 1, 2), Estimate(0, 0, 0, 2), Estimate(-1, -2, -0.5, 2), "", "worse")
    assert is_better(sure) is True
    assert is_better(replace(sure, higher="better")) is False
    assert is_better(replace(sure, change=Estimate(-1, -2, 0.5, 2))) is None
    assert is_better(replace(sure, higher="")) is None
    assert cells_of(replace(sure, change=Estimate(-1, math.nan, math.nan, 1)))[3] == ""


@pytest.mark.slow
def test_the_stage_against_transformers(tmp_path: Path) -> None:
    rows = pairs(8, 1)
    tokenizer = train_tokenizer([" ".join(row.values()) for row in rows], 400)
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        save_model(from_scratch("1m", tokenizer, context=64, seed=seed), tmp_path / name)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "before": str(tmp_path / "old"), "after": str(tmp_path / "new"), "data": str(data), "prompts": str(data),
        "max_length": 60, "max_prompt": 40, "max_tokens": 6, "reward": {"from": "rule", "max_words": 3},
    }  # fmt: skip
    out = io.StringIO()
    outcome = run_stage("before_after", settings, runs_root=tmp_path, console=Console(file=out, width=160))
    lines = {line["name"].strip(): line for line in outcome["stages"]["before_after"]["result"]["lines"]}
    logps: dict[str, list[list[float]]] = {}
    for name in ("old", "new"):
        model = load_language_model(tmp_path / name)
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        logps[name] = []
        for row in rows:
            one = []
            for key in ("chosen", "rejected"):
                prompt = model.chat.encode_prompt(_asked(row))
                ids = [*prompt.ids, *_answer(model, row, key)]
                with torch.no_grad():
                    log_probs = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
                start = len(prompt.ids)
                one.append(sum(float(log_probs[t - 1, ids[t]]) for t in range(start, len(ids))))
            logps[name].append(one)
    margins = [(n[0] - o[0]) - (n[1] - o[1]) for o, n in zip(logps["old"], logps["new"], strict=True)]
    assert lines["by how much"]["after"]["value"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert lines["prefers the better answer"]["after"]["value"] == sum(m > 0 for m in margins) / len(margins)
    assert lines["KL from before"]["after"]["value"] > 0
    for file in ("before_after.json", "before_after.md", "samples.md", "answers.jsonl"):
        assert (tmp_path / "before_after/before_after" / file).exists()
    assert "greedy decoding, at most 6 tokens" in out.getvalue()


def _asked(row: dict[str, str]) -> Prompt:
    from tiltyard.types import Message

    return Prompt(messages=(Message("user", row["prompt"]),))


def _answer(model: object, row: dict[str, str], key: str) -> tuple[int, ...]:
    chat = model.chat  # type: ignore[attr-defined]
    return chat.encode_group(Group(_asked(row), (Response(text=row[key]),))).responses[0].ids  # type: ignore[no-any-return]

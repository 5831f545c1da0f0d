"""`tiltyard sample --infer`: its report and JSON, a file that is gone on with, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import tiny
from tiltyard import cli
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load import save_model
from tiltyard.stages import infer_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("infer")
    chat = tiny.chat()
    save_model(LanguageModel(tiny.causal("llama", vocab_size=300), chat), path / "model")
    save_model(ScalarModel(tiny.classifier("llama", vocab_size=300), chat), path / "ppo/value")
    (path / "rewards.py").write_text("def eighths(prompt, response):\n    return sum(response.ids) % 8 / 8\n")
    (path / "questions.txt").write_text("what is this?\nand that?\nis it so?\n")
    return path


@pytest.fixture
def sample(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    common = ["--file", "questions.txt", "--max-tokens", "4", "--reward", "rewards.py:eighths", "--device", "cpu"]
    return lambda *words: cli.main(["sample", "model", *common, *words])


@pytest.mark.parametrize(
    "words",
    [
        ("best_of_n", "--candidates", "4"),
        ("best_of_poisson", "--candidates", "4", "--beta", "0.5"),
        ("pessimism", "--beta", "0.5", "--candidates", "8"),
        ("rejection", "--beta", "0.5", "--score-bound", "1", "--candidates", "16"),
        ("quasi_rejection", "--beta", "0.5", "--candidates", "16"),
        ("importance", "--beta", "0.5", "--candidates", "16"),
        ("smc", "--beta", "0.5", "--particles", "16", "--every", "1"),
        ("twisted_smc", "--beta", "0.5", "--particles", "16", "--twist", "ppo"),
        ("twisted_smc", "--beta", "0.5", "--particles", "16", "--twist", "learn"),
        ("rejection_in_step", "--beta", "0.5", "--particles", "4", "--score-bound", "1"),
    ],
    ids=lambda words: words[0],
)
def test_every_sampler_reports(sample, capsys: pytest.CaptureFixture, words) -> None:
    assert sample("--infer", *words, "-n", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    report, prompts = found["report"], found["prompts"]
    assert report["sampler"] == words[0]
    assert (report["prompts"], report["wanted"], report["given"]) == (3, 6, 6)
    assert 0 < report["accept_rate"] <= 1
    assert report["tokens"] > 0
    assert report["calls"] > 0
    for row in prompts:
        assert len(row["responses"]) == 2
        assert all(0 <= r["score"] <= 1 for r in row["responses"])
        assert row["infer"]["sampled"] >= row["infer"]["accepted"]
    means = [sum(r["score"] for r in row["responses"]) / 2 for row in prompts]
    assert report["reward"]["value"] == pytest.approx(sum(means) / 3)
    assert sample("--infer", *words, "-n", "2") == 0
    assert "cost        a response" in capsys.readouterr().out


def test_a_file_is_gone_on_with(sample, folder: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    """Stopped after a prompt, and with half a line: the same command gives the file of an uninterrupted one."""
    words = ("--infer", "smc", "--beta", "0.5", "--particles", "8", "--every", "1", "--json")
    monkeypatch.setattr(infer_rows, "ROWS", 1)  # a prompt at a time
    assert sample(*words, "--out", "whole.jsonl") == 0
    whole = json.loads(capsys.readouterr().out)
    lines = (folder / "whole.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 4
    (folder / "part.jsonl").write_text("".join(lines[:2]) + lines[2][:30])
    assert sample(*words, "--out", "part.jsonl") == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["responses"] for row in again["prompts"]] == [row["responses"] for row in whole["prompts"]]
    assert again["report"]["ess"] == whole["report"]["ess"]
    assert sample(*words, "--out", "whole.jsonl", "--seed", "1") == 2
    assert "seed=0" in capsys.readouterr().err
    (folder / "other.jsonl").write_text('{"text": "x"}\n')
    assert sample(*words, "--out", "other.jsonl") == 2
    assert "was not written by" in capsys.readouterr().err
    assert (folder / "other.jsonl").read_text() == '{"text": "x"}\n'


def test_too_few_are_given_and_the_status_says_so(sample, capsys: pytest.CaptureFixture) -> None:
    words = ("--infer", "rejection", "--beta", "0.05", "--score-bound", "2", "--candidates", "4", "--most", "8")
    assert sample(*words) == 1
    assert "fewer than asked for" in capsys.readouterr().out


def test_a_rule_declares_its_bound(folder: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(folder)
    words = ["sample", "model", "-p", "so?", "--max-tokens", "4", "--infer", "rejection", "--beta", "1"]
    assert cli.main([*words, "--reward", "{from: rule, max_words: 2}"]) == 0
    assert "KL to pi* 0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--infer", "smcc", "--beta", "1"), "did you mean 'smc'?"),
        (("--infer", "smc"), "needs a beta"),
        (("--infer", "smc", "--beta", "0"), "a target needs a strength"),
        (("--infer", "best_of_n", "--particles", "4"), "has no such setting"),
        (("--infer", "best_of_n", "--top-p", "0.9"), "truncated distribution"),
        (("--infer", "best_of_n", "--temperature", "0"), "a prior must be a distribution"),
        (("--infer", "rejection", "--beta", "1"), "needs the highest possible reward"),
        (("--infer", "rejection", "--beta", "1", "--score-bound", "0.1"), "above its declared bound"),
        (("--infer", "twisted_smc", "--beta", "1"), "needs a value model"),
        (("--infer", "smc", "--beta", "1", "--twist", "ppo"), "only twisted_smc takes a twist"),
        (("--infer", "smc", "--beta", "1", "--particles", "2", "-n", "3"), "than there are particles"),
        (("--infer", "importance", "--beta", "1", "--candidates", "2", "-n", "3"), "than there are candidates"),
        ((), "this option belongs to --infer"),
    ],
)
def test_what_is_refused(sample, capsys: pytest.CaptureFixture, words, said) -> None:
    assert sample(*words) == 2
    assert said in capsys.readouterr().err

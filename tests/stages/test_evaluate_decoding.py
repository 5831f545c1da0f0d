"""How `evaluate` samples: greedy decoding and truncation, what they leave unmeasured, what the table shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import tiny
from tiltyard import cli
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import save_model


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    save_model(LanguageModel(tiny.causal("llama", vocab_size=300), tiny.chat()), tmp_path / "model")
    rows = [{"prompt": f"what is {word}?"} for word in ("this", "that", "it")]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def evaluated(name: str, *settings: str) -> tuple[dict, list[dict]]:
    common = ["models={one: model}", "prompts=prompts.jsonl", "max_tokens=6", "device=cpu", f"name={name}"]
    assert cli.main(["eval", *common, *settings]) == 0
    folder = Path("runs") / name / "evaluate"
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    return json.loads((folder / "summary.json").read_text())["models"]["one"], answers


def test_greedy_decoding_makes_one_response_that_no_seed_changes(there, capsys) -> None:
    facts, answers = evaluated("first", "temperature=0", "seed=1")
    assert [a["text"] for a in answers] == [a["text"] for a in evaluated("second", "temperature=0", "seed=2")[1]]
    assert (facts["n"], facts["prompts"]) == (3, 3)
    assert facts["kl"] is None
    assert facts["entropy"] > 0
    output = capsys.readouterr().out
    assert "greedy decoding: one response to each prompt; no KL" in output
    table = output.partition("length, cut off")[0]
    assert "KL" not in table
    assert "—" not in table


@pytest.mark.parametrize("setting", ["top_k=1", "top_p=1e-9"])
def test_a_truncation_to_one_token_is_greedy(there, setting, capsys) -> None:
    greedy = [a["text"] for a in evaluated("greedy", "temperature=0")[1]]
    capsys.readouterr()
    facts, answers = evaluated("one-token", setting)
    assert [a["text"] for a in answers[::2]] == greedy == [a["text"] for a in answers[1::2]]
    assert facts["kl"] is None
    assert "truncated sampling: no KL" in capsys.readouterr().out


def test_samples_of_the_whole_distribution_have_a_kl(there, capsys) -> None:
    facts, answers = evaluated("whole")
    assert facts["kl"] == pytest.approx(0, abs=1e-4)
    assert len(answers) == 6
    assert "no KL" not in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["top_p=0", "top_p=1.5", "top_k=-1", "temperature=-1"])
def test_settings_out_of_range_are_refused(there, setting, capsys) -> None:
    assert cli.main(["eval", "models={one: model}", "prompts=prompts.jsonl", setting]) == 2
    assert setting.partition("=")[0] in capsys.readouterr().err

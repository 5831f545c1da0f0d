"""The model card beside a trained model: facts alone, the same bytes every time, names and no paths, texts as texts."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from models import tiny
from tiltyard.cli import main
from tiltyard.pipeline.state import FileHashes
from tiltyard.report.card import Base, Card, Figure, add_figures, code, front_matter, render
from tiltyard.runs.model_card import without_measured
from tiltyard.stages.card import base_of_card, called

V = 512
ROWS = [{"prompt": "what is it?", "chosen": "the cat", "rejected": "yes it is so"}] * 4


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model folder with a card of its own."""
    folder = tmp_path / "some where" / "base-model"
    tiny.causal("llama", vocab_size=V).save_pretrained(folder)
    tiny.chat().tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: maker/base\n---\n# Words\n")
    return folder


def trained(base: Path, data: Path, runs: Path, *more: str, kind: str = "dpo") -> str:
    words = [kind, f"model={base}", f"data={data}", f"held_out={data}", "steps=2", "prompts_per_step=2", "lr=1e-3"]
    assert main(["train", *words, "name=one", "device=cpu", *more, "--runs", str(runs)]) == 0
    return (runs / "one" / kind / "model" / "README.md").read_text(encoding="utf-8")


def test_a_trained_model_has_a_card(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "odd `name` | <b>.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    text = trained(base, data, tmp_path / "a", "lora.rank=4")
    head = front_matter(tmp_path / "a/one/dpo/model")
    assert head == {
        "base_model": "maker/base",
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["tiltyard", "dpo", "lora"],
    }
    assert str(tmp_path) not in text
    assert "`base-model` (licence: `apache-2.0`) with `dpo`" in text
    assert f"`odd 'name' \\| <b>.jsonl` | `{hashlib.sha256(data.read_bytes()).hexdigest()}`" in text
    assert "steps: 2, groups: 4" in text
    assert "| `models.lora.rank` | `4` | `16` |" in text
    assert "lora.alpha" not in text
    assert "| `lr` | `0.001` |" in text
    assert "device" not in text
    assert "## Measured" in text
    assert "| `held_out/accuracy` | `1` |" in text
    again = trained(base, data, tmp_path / "b", "lora.rank=4")
    assert without_measured(text) == without_measured(again) != text  # but for the time that they took
    assert re.search(r"\| `time of the steps` \| `\d+ s \(cpu, \d+ threads?\)` \|", text)
    assert "which binds this model too" in text
    # a stage's model has its first base's name and licence
    assert trained(tmp_path / "a/one/dpo", data, tmp_path / "c").count("`one/dpo` (licence: `apache-2.0`)") == 1
    assert front_matter(tmp_path / "c/one/dpo/model")["base_model"] == "maker/base"


def test_a_reward_models_card(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    text = trained(base, data, tmp_path / "a", kind="reward")
    assert "pipeline_tag: text-classification" in text
    assert "load_scalar_model" in text


def test_nothing_in_a_text_is_markup() -> None:
    odd = "x`y`|<script>\n# head\x1b[31m --- {{x}}"
    card = Card(odd, "text-generation", odd, base=Base(odd, odd, odd), settings=[(odd, odd, odd)], figures={odd: 1.0})
    text = render(card)
    assert text.count("---\n") == 2
    assert yaml.safe_load(text.split("---\n")[1])["license"] == odd
    body = text.split("---\n", 2)[2]
    assert "\x1b" not in body
    assert "\n# head" not in body
    assert "`y`" not in body
    assert code("a|b`c") == "`a\\|b'c`"


def figures(value: float) -> list[Figure]:
    return [
        Figure("wins | against `a`", f"{value} (0.4 to 0.6)", "win_rate", value, (0.4, 0.6), 90),
        Figure("words", "some"),
    ]


def test_figures_are_added_once_and_stand_in_the_metadata(tmp_path: Path) -> None:
    bare = render(Card("run/stage", "text-generation", "dpo", cost={"energy": "1 Wh"}))
    (tmp_path / "README.md").write_text(bare, encoding="utf-8")
    for value in (0.25, 0.5):
        add_figures(tmp_path, "run/evaluate", "On 90 prompts.", figures(value), "dev.jsonl")
    add_figures(tmp_path, "run/other", "On others.", figures(0.75)[:1], "test.jsonl")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.count("## Measured: run/evaluate") == 1
    assert "| `wins \\| against 'a'` | `0.5 (0.4 to 0.6)` |" in text
    assert text.index("Measured: run/other") < text.index("## Cost of training") < text.index("## Loading")
    found = ModelCard(text).data.eval_results
    assert [(one.metric_type, one.metric_value, one.dataset_name, one.task_name) for one in found] == [
        ("win_rate", 0.5, "dev.jsonl", "run/evaluate"), ("win_rate", 0.75, "test.jsonl", "run/other")
    ]  # fmt: skip
    assert found[0].metric_args == {"interval_95": [0.4, 0.6], "n": 90}
    assert ModelCard(text).data.model_name == "run/stage"
    assert without_measured(text) == without_measured(bare)


def test_what_was_measured_is_no_part_of_a_model_s_digest(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(render(Card("run/stage", "text-generation", "dpo")), encoding="utf-8")
    (tmp_path / "config.json").write_text("{}")
    before = FileHashes().digest(tmp_path)
    add_figures(tmp_path, "run/evaluate", "On 90 prompts.", figures(0.5), "dev.jsonl")
    assert FileHashes().digest(tmp_path) == before
    foreign = "---\nmodel-index:\n- name: x\n---\n# Words\n"
    assert without_measured(foreign) == foreign
    (tmp_path / "README.md").write_text(foreign, encoding="utf-8")
    assert FileHashes().digest(tmp_path) != before


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert base_of_card("") == Base()
    assert base_of_card("maker/model") == Base("maker/model", "maker/model")
    assert called("maker/data") == "maker/data"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text("")
    assert called("data/rows.jsonl") == called(str(tmp_path / "data/rows.jsonl")) == "rows.jsonl"


def test_an_evaluation_fills_the_card_and_nothing_runs_again(base: Path, tmp_path: Path, capsys) -> None:
    """The card has wins, rewards and KL with intervals as the hub reads them; what reads the model runs not again."""
    data, prompts, runs = tmp_path / "pairs.jsonl", tmp_path / "prompts.jsonl", tmp_path / "runs"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    prompts.write_text("".join(json.dumps({"prompt": f"what is {word}?"}) + "\n" for word in ("it", "that")))
    before = trained(base, data, runs)
    model, rules = runs / "one/dpo", {"from": "rule", "max_words": 4}
    words = [
        f"models={{start: {base}, dpo: {model}}}",
        f"prompts={prompts}",
        f"reward={json.dumps(rules)}",
        "max_tokens=6",
    ]
    (tmp_path / "hhh.jsonl").write_text(data.read_text())
    words.append(f"benchmarks={{hhh: {{from: {tmp_path / 'hhh.jsonl'}}}}}")
    assert main(["eval", *words, "name=seen", "show=0", "device=cpu", "--runs", str(runs)]) == 0
    text = (model / "model/README.md").read_text(encoding="utf-8")
    assert without_measured(text) == without_measured(before)
    assert not (base / "README.md").read_text().count("Measured")  # no stage of ours made it
    found = {one.metric_type: one for one in ModelCard(text).data.eval_results}
    assert {"win_rate", "proxy", "kl", "length", "hhh_better_one_likelier"} <= found.keys()
    assert found["win_rate"].task_name == "seen/evaluate"
    assert found["win_rate"].dataset_name == "prompts.jsonl"
    assert found["win_rate"].metric_name == "wins against start, by proxy"
    assert "On 2 prompts, at most 6 tokens; 95% intervals over prompts." in text
    capsys.readouterr()
    assert main(["eval", *words, "name=seen", "show=0", "device=cpu", "--runs", str(runs)]) == 0
    assert "skipped" in capsys.readouterr().out

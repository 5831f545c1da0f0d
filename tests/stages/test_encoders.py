"""Encoders through the stages: pretrained on masks, then a reward model, then PPO's judge; what cannot be is said."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from tiltyard.batch.forest import pack
from tiltyard.data import read_groups
from tiltyard.errors import ModelError
from tiltyard.models.encoder import EncoderScalar
from tiltyard.models.load import load_language_model, load_masked_model, load_scalar_model
from tiltyard.pipeline import run_recipe
from tiltyard.scoring.reward_model import in_tokens_of

from . import tiny

RECIPE = """name: encoders
defaults: {max_length: 64, device: cpu}
stages:
  - world: {}
  - pretrain:
      data: world/corpus_held_out.jsonl
      arch: {preset: 1m, vocab: 400, context: 64}
      steps: 4
      prompts_per_step: 8
      limit: 50
  - mlm:
      data: world/corpus_held_out.jsonl
      held_out: world/demonstrations_held_out.jsonl
      arch: {preset: 1m, vocab: 420, context: 80}
      steps: 12
      prompts_per_step: 8
      lr: 3e-3
      limit: 100
      eval_every: 5
      save_every: 3
  - more: {method: mlm, model: mlm, data: world/corpus_held_out.jsonl, steps: 2, prompts_per_step: 4, limit: 20,
     mask: 0.3}
  - label: {model: pretrain, prompts: world/prompts.jsonl, limit: 12, k: 3, max_tokens: 10, max_prompt: 40}
  - sampled: {method: reward, model: more, data: label/rankings.groups.jsonl, steps: 3, prompts_per_step: 4, lr: 1e-3}
  - written: {method: reward, model: more, data: label/rankings.jsonl, steps: 3, prompts_per_step: 4, lr: 1e-3}
  - ppo:
      model: pretrain
      reward: sampled
      prompts: world/prompts.jsonl
      value_init: model
      steps: 2
      prompts_per_step: 4
      limit: 8
      max_tokens: 8
      max_prompt: 40
"""


class Made(NamedTuple):
    run: Path
    outcome: dict[str, Any]
    text: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, out = tmp_path_factory.mktemp("encoders"), io.StringIO()
    (folder / "encoders.yaml").write_text(RECIPE)
    console = Console(file=out, width=200)
    outcome = run_recipe(folder / "encoders.yaml", runs_root=folder / "runs", console=console)
    return Made(folder / "runs" / "encoders", outcome, out.getvalue())


def test_a_masked_model_is_pretrained_and_saved_as_transformers_knows_it(made: Made) -> None:
    rows = tiny.rows(made.run / "mlm" / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(0.05 < row["masked"] < 0.3 for row in rows)
    measured = [row["step"] for row in rows if "held_out/loss" in row]
    assert measured == [5, 10, 12]
    assert made.outcome["stages"]["mlm"]["result"]["held_out/loss"] == rows[-1]["held_out/loss"]
    folder = made.run / "mlm" / "model"
    module, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(module).__name__ == "ModernBertForMaskedLM"
    assert tokenizer.mask_token_id == len(tokenizer) - 1 == 419
    ids = torch.tensor([tokenizer("the village")["input_ids"]])
    assert module(input_ids=ids).logits.shape[-1] == 420
    assert load_masked_model(made.run / "mlm", device="cpu").chat.max_length == 80
    more = tiny.rows(made.run / "more" / "metrics.jsonl")
    assert more[0]["loss"] < rows[0]["loss"]


def test_records_of_another_tokenizer_are_encoded_again(made: Made) -> None:
    """Read as they are, the policy's ids would be other words of the encoder's."""
    assert "ids encoded again from the texts" in made.text
    model = load_scalar_model(made.run / "sampled", device="cpu")
    assert isinstance(model, EncoderScalar)
    found = list(read_groups(made.run / "label" / "rankings.groups.jsonl"))
    fresh = [in_tokens_of(model.chat, group) for group in found]
    assert [g.prompt.ids for g in fresh] != [g.prompt.ids for g in found]
    for group, new in zip(found, fresh, strict=True):
        assert [model.chat.decode(r.ids) for r in new.responses] == [r.text for r in group.responses]
        for old, response in zip(group.responses, new.responses, strict=True):
            assert (response.ids[-1] == model.chat.eos_id) == (old.finish != "length")


def test_a_reward_model_on_an_encoder(made: Made) -> None:
    for name in ("sampled", "written"):
        rows = tiny.rows(made.run / name / "metrics.jsonl")
        assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-3)
        folder = made.run / name / "model"
        module = AutoModelForSequenceClassification.from_pretrained(folder)
        assert module.config.reward_bias == json.loads((folder / "config.json").read_text())["reward_bias"]
        model = load_scalar_model(folder, device="cpu")
        group = in_tokens_of(model.chat, next(iter(read_groups(made.run / "label" / "rankings.groups.jsonl"))))
        row = torch.tensor([[*group.prompt.ids, *group.responses[0].ids]])
        raw = module(input_ids=row).logits[0, 0] - module.config.reward_bias
        torch.testing.assert_close(model.score_B(pack([group]))[0], raw, atol=1e-5, rtol=1e-5)


def test_ppo_is_judged_by_an_encoder(made: Made) -> None:
    reward = load_scalar_model(made.run / "sampled", device="cpu")
    groups = list(read_groups(made.run / "ppo" / "groups.jsonl"))
    assert groups
    with torch.no_grad():
        for group in groups:
            own = reward.score_B(pack([in_tokens_of(reward.chat, group)])).tolist()
            assert list(group.scores or ()) == pytest.approx(own, abs=1e-5)


def test_what_an_encoder_cannot_be_is_said(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot write"):
        load_language_model(made.run / "mlm", device="cpu")
    (tmp_path / "bad.yaml").write_text(
        f"""name: bad
stages:
  - ppo:
      model: {made.run / "pretrain"}
      reward: {made.run / "sampled"}
      prompts: {made.run / "world/prompts.jsonl"}
      steps: 1
      limit: 4
      max_prompt: 40
      max_tokens: 8
      device: cpu
"""
    )
    with pytest.raises(ModelError, match="set value_init=model"):
        run_recipe(tmp_path / "bad.yaml", runs_root=tmp_path / "runs", console=Console(file=io.StringIO()))

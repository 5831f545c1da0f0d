"""Stop strings reach every place that samples, and an empty one is refused wherever it is written."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from models import tiny
from tiltyard.cli import app
from tiltyard.inputs.settings import OpponentSampling, Sampling
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import save_model
from tiltyard.stages.candidates import CandidatesSettings
from tiltyard.stages.evaluate import EvaluateSettings
from tiltyard.stages.label import LabelSettings

RECORDS = (Sampling, OpponentSampling, CandidatesSettings, EvaluateSettings, LabelSettings)


@pytest.mark.parametrize("record", RECORDS)
def test_every_record_with_a_longest_response_has_stop_strings(record) -> None:
    assert {"max_tokens", "stop"} <= set(record.model_fields)


def test_the_record_of_methods_hands_them_to_the_sampler() -> None:
    assert Sampling(stop=["###", "\n\n"]).sample_settings().stop == ("###", "\n\n")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="empty stop string"):
        Sampling(stop=["###", ""])  # type: ignore[arg-type]


def test_sample_ends_at_the_first_of_them(tmp_path) -> None:
    model = LanguageModel(tiny.causal("llama", vocab_size=300), tiny.chat())
    save_model(model, tmp_path / "model")
    common = ["sample", str(tmp_path / "model"), "-p", "what is it?", "--max-tokens", "24", "--json"]
    runner = CliRunner()
    whole = runner.invoke(app, common)
    assert whole.exit_code == 0, whole.output
    text = json.loads(whole.stdout)[0]["responses"][0]["text"]
    stop = text[4:6]
    cut = runner.invoke(app, [*common, "--stop", stop])
    assert cut.exit_code == 0, cut.output
    found = json.loads(cut.stdout)[0]["responses"][0]
    assert found["text"] == text[: text.find(stop)]
    assert found["finish"] == "stop"
    assert runner.invoke(app, [*common, "--stop", ""]).exit_code != 0

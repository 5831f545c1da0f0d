"""Over-optimisation, collapse, studies and samplers in the report's data."""

from __future__ import annotations

import math

import pytest

from tiltyard.report.html import page_data

from .made import whole_run
from .made_tournament import sampled, study, tournament
from .test_html import said


def test_training_along_gold_is_drawn_with_its_fits(tmp_path):
    """Many steps become means of neighbours; a fitted curve is the stored form, and a peak is said."""
    page = page_data([tournament(tmp_path)])
    (gap,) = page["gaps"]
    best, ppo = (fit for fit in gap["fits"])
    x, y = best["curve"][-1]
    assert y == pytest.approx(0.1 + x * (0.4 - 0.2 * x), abs=1e-4)
    x, y = ppo["curve"][-1]
    assert y == pytest.approx(0.1 + x * (0.4 - 0.2 * math.log(x)), abs=1e-4)
    assert best["peak"] == {"v": 1, "lo": 0.9, "hi": 1.1, "n": best["peak"]["n"]}
    assert ppo["peak"] is None
    (course,) = gap["courses"]
    steps, entropy = course["series"]["entropy"]
    assert len(steps) == 100
    assert (steps[0], entropy[0]) == (2, pytest.approx(2 - 2 / 200))
    assert len(course["series"]["self_bleu"][0]) == 100  # the first steps have none
    assert [m["key"] for m in gap["measures"]] == ["entropy", "distinct_2", "self_bleu", "unique", "coverage"]
    path = next(p for p in gap["paths"] if p["name"] == "best of N" and p["what"] == "gold")
    assert path["points"][2] == [pytest.approx(0.6**0.5, abs=1e-5), 0.3, 4]
    peak = "Along best of N gold peaks at √KL = 1 (95% interval 0.9 to 1.1)"
    assert any(line.startswith(peak) for line in said(page))


def test_a_study_is_shown_with_its_models_at_equal_kl(tmp_path):
    page = page_data([study(tmp_path)])
    (found,) = page["studies"]
    assert (found["title"], found["seeds"]) == ("study: control", 3)
    whole, equal = found["tables"]
    assert (whole["at"], equal["at"]) == ("", "kl = 0.3")
    assert whole["rows"][2]["cells"]["gold"]["d"]["v"] == pytest.approx(0.3)
    assert (equal["rows"][0]["model"], equal["rows"][0]["seeds"]) == ("dpo", 1)
    assert "lo" not in equal["rows"][0]["cells"]["gold"]
    assert "between seeds the standard deviation" in whole["spread"]
    assert not any("no stage" in note for note in page["notes"])
    largest = "of 2 models the largest difference in gold reward is that of dpo@1, +0.30"
    assert any(largest in line for line in said(page))
    (tmp_path / "study" / "control.json").write_text('{"recipe": "control", "se')
    assert any("control.json could not be read" in note for note in page_data([tmp_path / "study"])["notes"])


def test_samplers_of_a_run_are_reported_or_refused(tmp_path):
    run = whole_run(tmp_path)
    sampled(run)
    with (run / "importance.jsonl").open("a") as file:
        file.write('{"prompt": "half')
    (found,) = page_data([run])["infers"]
    good, refused = found["rows"]
    assert (good["sampler"], good["prompts"], good["given"]) == ("importance", 20, 20)
    assert good["cells"]["kl"]["lo"] < good["cells"]["kl"]["v"] < good["cells"]["kl"]["hi"]
    assert good["refusals"] == []
    assert "kl" not in refused["cells"]
    assert refused["refusals"]
    assert refused["about"] == "…/demo/sft, reward gold"
    (run / "importance.jsonl").rename(run / "ppo" / "responses.jsonl")  # as a stage writes it
    assert [row["name"] for row in page_data([run])["infers"][0]["rows"]] == ["pessimism", "ppo"]

"""Numbers of single tokens, of a sampling stage and of an evaluation, add up to the figures of the same files."""

from __future__ import annotations

import pytest

from . import tiny


@pytest.mark.slow
def test_log_ratios_of_tokens_sum_to_the_response_s_kl(whole):
    answers = {}
    for row in tiny.rows(whole.run / "evaluate/answers.jsonl"):
        answers.setdefault((row["model"], row["prompt_key"]), row)
    rows = tiny.rows(whole.run / "evaluate/tokens.jsonl")
    assert {row["model"] for row in rows} == {"pretrain", "sft", "ppo"}
    for row in rows:
        answer = answers[row["model"], row["prompt_key"]]
        assert len(row["logp"]) == len(row["ref_logp"]) == len(row["pieces"]) == answer["length"]
        assert sum(row["logp"]) - sum(row["ref_logp"]) == pytest.approx(answer["kl"], abs=2e-3)


@pytest.mark.slow
def test_a_sampling_stage_keeps_the_numbers_of_each_step_s_first_group(whole):
    first = {}
    for row in tiny.rows(whole.run / "ppo/groups.jsonl"):
        first.setdefault(row["step"], row)
    rows = tiny.rows(whole.run / "ppo/tokens.jsonl")
    assert [row["step"] for row in rows] == sorted(first)
    for row in rows:
        response = first[row["step"]]["responses"][row["response"]]
        assert len(row["advantage"]) == len(row["ref_logp"]) == len(response["ids"])
        assert row["logp"] == pytest.approx(response["logps"], abs=1e-3)  # of the policy that sampled

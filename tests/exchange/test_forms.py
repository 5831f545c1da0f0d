"""Every form is read back by the one reader, with what it has a place for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.exchange.judged import group

from tiltyard.data.exchange import FORMS, write_judged
from tiltyard.data.judged_rows import parse_judged
from tiltyard.errors import ConfigError, DataError
from tiltyard.inputs.judgements import judged
from tiltyard.types import Message, Prompt, Response, ranks_of, response_id

CHAT = Prompt(
    messages=(
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "Hi."),
        Message("user", "Bye"),
    ),
    id="chat",
    meta={"source": "own"},
)
PAIRS = [
    group(0, shown=[1, 0], chosen_with=0.25, seconds=4.5, comment="clear", task=7),
    group(0, annotator="bob", ranks=(2, 1), shown=[0, 1], chosen_with=0.25),
    group(1, ranks=(1, 1)),
    group(2, ranks=None, reason="both_bad"),
    group(3, prompt=CHAT),
]
RANKINGS = [group(4, ("sft", "dpo", "ppo"), ranks=(2, 1, 3)), group(5, ("sft", "dpo", "ppo"), ranks=(1, 1, 2))]
RATINGS = [group(6, ("sft", "dpo", "ppo"), ratings=(3.0, 6.0, 1.5)), group(7, ratings=(4.0, 4.0))]


def told(one):
    """What a judgement says: prompt, who wrote what and how it stands, annotator."""
    ranks = ranks_of(one.preference)
    named = [(r.text, r.meta["policy"]) for r in one.responses]
    order = sorted(range(len(named)), key=lambda k: named[k])
    standing = None if ranks is None else tuple(ranks[k] for k in order)
    turns = tuple((turn.role, turn.content) for turn in one.prompt.messages)
    return turns, tuple(named[k] for k in order), standing, one.preference.annotator


def back(path, groups, form):
    """The groups after writing and reading, and the report of writing."""
    written = write_judged(path, groups, form)
    return judged(str(path)).groups, written


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("form", ["rows", "argilla", "label_studio", "battles"])
def test_a_round_trip_keeps_every_verdict(tmp_path, form, suffix) -> None:
    groups = PAIRS if form == "battles" else [*PAIRS, *RANKINGS, *RATINGS]
    if suffix == ".parquet" and form in ("argilla", "label_studio"):
        groups = PAIRS[:3]  # a column of values of two kinds is another test
    found, written = back(tmp_path / f"x{suffix}", groups, form)
    assert not written.left_out
    assert sorted(map(told, found), key=repr) == sorted(map(told, groups), key=repr)
    bad = [one for one in found if one.preference.meta.get("reason") == "both_bad"]
    assert len(bad) == sum(g.preference.meta.get("reason") == "both_bad" for g in groups)


@pytest.mark.parametrize("form", ["rows", "battles", "label_studio"])
def test_what_cannot_be_added_later_is_kept(tmp_path, form) -> None:
    found, _ = back(tmp_path / "x.jsonl", PAIRS, form)
    one = next(g for g in found if g.prompt.id == "q0" and g.preference.annotator == "ada")
    assert one.preference.meta["chosen_with"] == 0.25
    assert one.preference.meta["shown"] == [1, 0]
    assert (one.preference.guideline, one.preference.when[:10]) == ("2", "2026-11-01")
    assert one.preference.meta["comment"] == "clear"
    assert one.prompt.meta["source"] == "own"


def test_rows_are_lossless_but_for_ids(tmp_path) -> None:
    found, _ = back(tmp_path / "x.jsonl", [*PAIRS, *RANKINGS, *RATINGS], "rows")
    for one, other in zip(found, [*PAIRS, *RANKINGS, *RATINGS], strict=True):
        assert replace(one, origin="") == replace(other, origin="", preference=one.preference)
        assert one.preference == replace(other.preference, prompt=one.preference.prompt)


def test_groups_are_lossless(tmp_path) -> None:
    groups = [*PAIRS, *RANKINGS, *RATINGS]
    found, _ = back(tmp_path / "x.groups.jsonl", groups, "groups")
    assert [told(g) for g in found] == [told(g) for g in groups]
    with pytest.raises(ConfigError, match=r"NAME\.groups\.jsonl"):
        write_judged(tmp_path / "x.jsonl", groups, "groups")


def test_trl_has_its_columns_alone(tmp_path) -> None:
    written = write_judged(tmp_path / "x.jsonl", [*PAIRS, *RANKINGS], "trl")
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert {tuple(row) for row in rows} == {("prompt", "chosen", "rejected")}
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "Paris. (0)"}]
    assert written.rows == 2 + 1 + 3 + 2
    assert written.left_out == {"judgements that prefer no response (ties, both bad, no verdict)": 2, "tied pairs": 1}
    assert [ranks_of(g.preference) for g in judged(str(tmp_path / "x.jsonl")).groups] == [(1, 2)] * 8


def test_hh_transcripts(tmp_path) -> None:
    written = write_judged(tmp_path / "x.jsonl", PAIRS, "hh")
    row = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])
    assert row["chosen"] == "\n\nHuman: Question 0?\n\nAssistant: Paris. (0)"
    assert written.left_out["pairs with turns that a transcript cannot hold (system, tools)"] == 1
    found = judged(str(tmp_path / "x.jsonl")).groups
    assert [g.responses[0].text for g in found] == ["Paris. (0)", "It is Paris, the capital of France. (0)"]


def test_ultrafeedback(tmp_path) -> None:
    found, written = back(tmp_path / "x.jsonl", [*RATINGS, *PAIRS[:1]], "ultrafeedback")
    assert written.left_out == {"judgements that rate no response": 1}
    assert [g.preference.ratings for g in found] == [(3.0, 6.0, 1.5), (4.0, 4.0)]
    assert [r.meta["policy"] for r in found[0].responses] == ["sft", "dpo", "ppo"]


def test_demonstrations_are_written_answers(tmp_path) -> None:
    written = replace(group(0), responses=(Response(text="My own answer."),))
    report = write_judged(tmp_path / "x.jsonl", [written, group(1)], "demonstrations")
    row = json.loads((tmp_path / "x.jsonl").read_text())
    assert row["completion"] == [{"role": "assistant", "content": "My own answer."}]
    assert report.left_out == {"judgements that are no written answer": 1}


def test_the_first_place_and_an_edit_are_training_data(tmp_path) -> None:
    report = write_judged(tmp_path / "best.jsonl", [*PAIRS[:3], *RANKINGS], "best")
    rows = [json.loads(line)["completion"][0]["content"] for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert rows == ["Paris. (0)", "It is Paris, the capital of France. (0)", "It is Paris, the capital of France. (4)"]
    assert report.left_out == {"judgements that put no response alone on the first place": 2}  # a tie each
    written = replace(group(0), responses=(Response(text="My own answer."),))
    meta = {"edited": {"text": "Paris.", "policy": "sft"}}
    edited = replace(written, preference=replace(written.preference, ranks=None, meta=meta))
    report = write_judged(tmp_path / "edits.jsonl", [edited, written], "edits")
    assert report.left_out == {"judgements that are no edited response": 1}
    (pair,) = judged(str(tmp_path / "edits.jsonl")).groups
    assert [r.text for r in pair.responses] == ["My own answer.", "Paris."]
    assert ranks_of(pair.preference) == (1, 2)


def test_nothing_to_write_is_an_error_and_leaves_no_file(tmp_path) -> None:
    with pytest.raises(DataError, match="no judgement can be written as hh"):
        write_judged(tmp_path / "x.jsonl", [group(ranks=(1, 1))], "hh")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="did you mean 'argilla'"):
        write_judged(tmp_path / "x.jsonl", [group()], "argila")
    assert len(FORMS) == 11


def test_columns_of_two_kinds_are_refused_by_name(tmp_path) -> None:
    groups = [group(0, note="words"), group(1, note=3)]
    with pytest.raises(DataError, match="column 'judgement' holds values of two kinds"):
        write_judged(tmp_path / "x.parquet", groups, "rows")


def test_a_battle_without_texts_is_judged_by_its_models(tmp_path) -> None:
    rows = [
        {"model_a": "x", "model_b": "y", "winner": "model_a", "judge": "u1", "tstamp": 1.0, "anony": True},
        {"model_a": "x", "model_b": "y", "winner": "tie (bothbad)", "conv_metadata": {"sum_assistant_a_tokens": 3,
         "sum_assistant_b_tokens": 9}},
    ]  # fmt: skip
    path = tmp_path / "battles.json"
    path.write_text(json.dumps(rows))
    first, second = judged(str(path)).groups
    assert [r.meta["policy"] for r in first.responses] == ["x", "y"]
    assert (first.preference.annotator, first.preference.meta["shown"]) == ("u1", [0, 1])
    assert second.preference.meta["reason"] == "both_bad"
    assert [r.meta["length"] for r in second.responses] == [3.0, 9.0]


def test_battles_of_the_kaggle_set(tmp_path) -> None:
    row = {"id": 30192, "model_a": "x", "model_b": "y", "prompt": '["One?", "Two?"]', "response_a": '["1", "2"]',
           "response_b": '["I", "II"]', "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}  # fmt: skip
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    (one,) = judged(str(tmp_path / "x.jsonl")).groups
    assert ranks_of(one.preference) == (2, 1)
    assert [turn.content for turn in one.prompt.messages] == ["One?"]
    assert [turn["content"] for turn in one.responses[1].meta["turns"]] == ["I", "Two?", "II"]


PAIR = {"prompt": "Hi", "response_1": "a", "response_2": "b"}
BAD = [
    ({"model_a": "x", "model_b": "y", "winner": "A"}, "the winner of a battle is none of its outcomes"),
    ({"model_a": "", "model_b": "y", "winner": "tie"}, "'model_a' names no model"),
    ({"instruction": "Hi", "completions": [{"model": "x", "response": "a"}]}, "has no rating"),
    ({"instruction": "Hi", "completions": [{"model": "x"}]}, "has no response"),
    ({"fields": PAIR, "responses": {}}, "without a judgement"),
    ({"fields": PAIR, "responses": {"q": [{"value": "maybe", "user_id": "u"}]}}, "state no single verdict"),
    ({"fields": {"text": "Hi"}, "responses": {"q": [{"value": "x", "user_id": "u"}]}}, "without a prompt"),
    ({"data": PAIR, "annotations": []}, "without a judgement"),
    (
        {"data": PAIR, "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "top"}}]}]},
        "states no single verdict",
    ),
    ({"data": {"prompt": "Hi"}, "annotations": [3]}, "without a prompt"),
    ({"data": PAIR, "annotations": [3]}, "another form than its tool writes"),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "models": ["x"]}, "'models' does not name"),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "judgement": "good"}, "'judgement' is no object"),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "judgement": {"chosen_with": 0}}, "no probability"),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "judgement": {"shown": [0, 0]}}, "no order"),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b", "judgement": {"reason": "both_bad"}}, "nothing orders"),
    ({"models": ["x", "y"], "ranks": [1]}, "needs the rank of each model"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows_are_named_by_their_line(tmp_path, row, message) -> None:
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    (tmp_path / "x.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message) as error:
        judged(str(tmp_path / "x.jsonl"))
    assert error.value.where == "x.jsonl:2"
    kept = judged(str(tmp_path / "x.jsonl"), bad_rows="drop")
    assert len(kept.groups) == 1
    assert "dropped 1" in kept.notes[0]


def test_records_as_the_tools_write_them(tmp_path) -> None:
    fields = {"instruction": "Hi", "response-a": "x", "response-b": "y"}
    records = [
        {"id": "1", "fields": fields, "metadata": {}, "suggestions": {}, "vectors": {}, "_server_id": "s",
         "responses": {"better": [{"value": "response-b", "user_id": "u1"}, {"value": "tie", "user_id": "u2"}],
                       "why": [{"value": "It is shorter than the other one.", "user_id": "u1"}]}},
        {"id": "2", **fields, "status": "completed", "better.responses": ["a", "b"],
         "better.responses.users": ["u1", "u2"], "better.responses.status": ["submitted", "discarded"]},
        {"fields": fields, "responses": [{"user_id": "u3", "status": "submitted", "values": {
            "order": {"value": [{"value": "response-b", "rank": 1}, {"value": "response-a", "rank": 2}]}}}]},
    ]  # fmt: skip
    (tmp_path / "argilla.json").write_text(json.dumps(records))
    found = judged(str(tmp_path / "argilla.json")).groups
    assert [(g.preference.annotator, ranks_of(g.preference)) for g in found] == [
        ("u1", (2, 1)), ("u2", (1, 1)), ("u1", (1, 2)), ("u3", (2, 1)),
    ]  # fmt: skip
    tasks = [
        {"id": 9, "data": {"prompt": "Hi", "answer1": "x", "answer2": "y"}, "annotations": [
            {"completed_by": 4, "lead_time": 2.5, "created_at": "2026-01-01T00:00:00Z", "was_cancelled": False,
             "result": [{"type": "pairwise", "from_name": "c", "to_name": "pw", "value": {"selected": "right"}}]},
            {"completed_by": {"email": "b@x.example"}, "was_cancelled": True, "result": []}]},
        {"id": 10, "data": {"prompt": "Hi", "items": [{"id": "m", "title": "M", "body": "x"}, {"id": "n", "body": "y"},
                                                       {"id": "o", "body": "z"}]},
         "annotations": [{"completed_by": 4, "result": [
             {"type": "ranker", "value": {"ranker": {"_": ["o", "m", "n"]}}},
             {"type": "textarea", "value": {"text": ["fine"]}}]}]},
    ]  # fmt: skip
    (tmp_path / "label_studio.json").write_text(json.dumps(tasks))
    pair, ranking = judged(str(tmp_path / "label_studio.json")).groups
    assert ranks_of(pair.preference) == (2, 1)
    assert (pair.preference.annotator, pair.preference.meta["seconds"]) == ("4", 2.5)
    assert ranks_of(ranking.preference) == (2, 3, 1)
    assert ranking.preference.meta["comment"] == "fine"


def test_ultrafeedback_scores_are_the_mean_of_the_aspects(tmp_path) -> None:
    def one(text, *ratings, overall=10):
        aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
        given = {a: {"Rating": str(r), "Rationale": ""} for a, r in zip(aspects, ratings, strict=True)}
        return {"model": text, "response": text, "annotations": given, "overall_score": overall}

    completions = [one("a", 1, 2, 1, 2), one("b", 5, 5, 4, 4, overall=1)]
    row = {"source": "x", "instruction": "Hi", "models": ["a", "b"], "completions": completions}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    (found,) = judged(str(tmp_path / "x.jsonl")).groups
    assert found.scores == (1.5, 4.5)


def test_two_models_with_the_same_words_stay_apart(tmp_path) -> None:
    same = group(0)
    same = replace(same, responses=tuple(replace(r, text="The same.") for r in same.responses))
    found, _ = back(tmp_path / "x.json", [same], "argilla")
    assert [r.meta["policy"] for r in found[0].responses] == ["sft", "dpo"]
    assert len({response_id(r) for r in found[0].responses}) == 1
    assert parse_judged is not None

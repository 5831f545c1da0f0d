"""Two responses with a label that is the number of the better one: which forms are read, and which are refused."""

import json

import pytest
from families import family

from tiltyard.data import BadRows, Chat, load_groups, parsed_rows
from tiltyard.data.bad_rows import parse_answers
from tiltyard.data.facts import LABELLED_PAIR
from tiltyard.data.pair_labels import NAMES
from tiltyard.errors import DataError

LIST = {"prompt": "Which?", "responses": ["one", "two"]}


def parsed(tmp_path, *rows, kind="comparisons", rule="error"):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [group for _, group in parsed_rows(path, kind, BadRows(rule))]


def order(group):
    """The responses' texts with their ranks."""
    return list(zip((r.text for r in group.responses), group.preference.ranks, strict=True))


@pytest.mark.parametrize("names", [None, *NAMES], ids=lambda names: "responses" if names is None else names[0])
def test_one_is_the_first_two_the_second_and_zero_a_tie(names, tmp_path):
    row = LIST if names is None else {"prompt": "Which?", names[0]: "one", names[1]: "two"}
    first, second, tie = parsed(tmp_path, {**row, "label": 1}, {**row, "label": 2}, {**row, "label": 0})
    assert order(first) == [("one", 1), ("two", 2)]
    assert order(second) == [("one", 2), ("two", 1)]
    assert order(tie) == [("one", 1), ("two", 1)]
    assert "label" not in first.prompt.meta
    assert first.prompt.id == second.prompt.id


def test_a_pair_read_by_its_label_equals_the_one_with_chosen_and_rejected(tmp_path):
    one, other = parsed(
        tmp_path, {**LIST, "label": 2, "source": "x"}, {"prompt": "Which?", "chosen": "two", "rejected": "one"}
    )
    assert {text for text, rank in order(one) if rank == 1} == {text for text, rank in order(other) if rank == 1}
    assert one.prompt.text == other.prompt.text
    assert one.prompt.meta["source"] == "x"


@pytest.mark.parametrize("name", ["input", "instruction"])
def test_the_question_may_have_the_published_files_name(name, tmp_path):
    (group,) = parsed(tmp_path, {name: "Which?", "output_1": "one", "output_2": "two", "label": 2})
    assert group.prompt.messages[0].content == "Which?"


def test_a_question_in_two_fields_is_refused(tmp_path):
    row = {"instruction": "Sort.", "input": "b, a", "output_1": "one", "output_2": "two", "label": 1}
    with pytest.raises(DataError, match="'prompt' is missing"):
        parsed(tmp_path, row)


@pytest.mark.parametrize("label", [True, False, "1", "A", 3, -1, 0.5, [1]])
def test_a_label_that_is_no_number_of_a_response_is_refused_with_its_line(label, tmp_path):
    with pytest.raises(DataError, match="not the number of one") as caught:
        parsed(tmp_path, {**LIST, "label": 2}, {**LIST, "label": label})
    assert caught.value.where == "rows.jsonl:2"
    assert "ranks" in caught.value.fix
    assert len(parsed(tmp_path, {**LIST, "label": 2}, {**LIST, "label": label}, rule="drop")) == 1


@pytest.mark.parametrize("labels", [(0, 1), (1, 0, 1), (0,), (1,), (1, 1)])
def test_labels_that_may_be_counted_from_zero_are_refused_with_the_first_line(labels, tmp_path):
    rows = [{"prompt": "Hm?", "chosen": "a", "rejected": "b"}, *({**LIST, "label": label} for label in labels)]
    for rule in ("error", "drop"):
        with pytest.raises(DataError, match="two ways") as caught:
            parsed(tmp_path, *rows, rule=rule)
        assert caught.value.where == "rows.jsonl:2"


def test_a_number_in_the_fields_name_needs_no_second_row_but_zero_beside_it_does(tmp_path):
    row = {"prompt": "Which?", "output_1": "one", "output_2": "two"}
    assert order(parsed(tmp_path, {**row, "label": 1})[0]) == [("one", 1), ("two", 2)]
    with pytest.raises(DataError, match="two ways"):
        parsed(tmp_path, {**row, "label": 1}, {**row, "label": 0})


def test_two_couples_of_responses_are_refused(tmp_path):
    row = {"prompt": "?", "output_1": "a", "output_2": "b", "response_a": "c", "response_b": "d", "label": 2}
    with pytest.raises(DataError, match="which responses"):
        parsed(tmp_path, row)


def test_a_label_beside_a_judgement_stays_a_further_field(tmp_path):
    pair = {"prompt": "?", "chosen": "a", "rejected": "b", "label": 2}
    ranked = {**LIST, "scores": [0.3, 0.1], "label": 1}
    assert [group.prompt.meta["label"] for group in parsed(tmp_path, pair, ranked)] == [2, 1]


def test_three_responses_have_no_such_label(tmp_path):
    with pytest.raises(DataError, match="'scores' is missing"):
        parsed(tmp_path, {"prompt": "?", "responses": ["a", "b", "c"], "label": 2})


def test_a_judge_reads_the_pairs_with_peoples_order(tmp_path):
    groups = parsed(tmp_path, {**LIST, "label": 2}, LIST, kind=parse_answers)
    assert [group.preference and group.preference.ranks for group in groups] == [(2, 1), None]


def test_the_report_counts_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**LIST, "label": label}) + "\n" for label in (1, 2)))
    assert load_groups(path, "comparisons", Chat(family("tiltyard")))[1].notes == {LABELLED_PAIR: 2}

"""Every row of a file that cannot be used is told in one go, or left out and counted; the good ones are read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from families import family
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.cli import main
from tiltyard.data import BadRows, Chat, load_groups, load_prompts, parsed_rows, plain_texts
from tiltyard.data.bad_rows import reason_of
from tiltyard.data.formats import KINDS, Kind
from tiltyard.errors import DataError
from tiltyard.inputs.files import check_files

GOOD: dict[Kind, Any] = {
    "text": {"text": "words"},
    "demonstrations": {"prompt": "q", "completion": "a"},
    "comparisons": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "labelled": {"prompt": "q", "completion": "a", "label": True},
    "prompts": {"prompt": "q"},
}
BAD: dict[Kind, list[Any]] = {
    "text": [{}, {"text": ""}, {"text": 5}],
    "demonstrations": [{"prompt": "q"}, {"prompt": "q", "completion": " "}, {"completion": "a"}],
    "comparisons": [
        {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "q", "chosen": "a"},
        {"prompt": "q", "responses": ["a", "b"], "scores": [1]},
    ],
    "labelled": [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a", "label": "?"}],
    "prompts": [{"prompt": ""}, {}, {"prompt": 7}],
}


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(family("tiltyard"))


UNREADABLE = ["{", "17", '{"prompt": "a", "prompt": "b"}', '{"a": "\\ud83d"}']


def written(folder: Path, name: str, rows: list[Any]) -> Path:
    """Writes rows; a text is a line that is no row (in a file of JSON lines only)."""
    path = folder / name
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [{k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()} for row in rows]
        pq.write_table(pa.Table.from_pylist(texts), path)
    elif ".jsonl" in name:
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    else:
        path.write_text(json.dumps(rows))
    return path


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(KINDS), name=st.sampled_from(["f.jsonl", "f.jsonl.gz", "f.json"]))
def test_all_bad_rows_at_once(
    tmp_path_factory: pytest.TempPathFactory, chat: Chat, data: st.DataObject, kind: Kind, name: str
) -> None:
    """The same rows are bad for `check`, for loading, and for what is dropped, in every format and kind."""
    bad = BAD[kind] + (UNREADABLE if name != "f.json" else [])
    rows = data.draw(st.lists(st.sampled_from([GOOD[kind]] * 3 + bad), min_size=1, max_size=30))
    path = written(tmp_path_factory.mktemp("rows"), name, rows)
    places = [f"{name}:{'row ' if name == 'f.json' else ''}{i}" for i, row in enumerate(rows, 1) if row != GOOD[kind]]
    good = len(rows) - len(places)
    if not good:
        for rule in ("error", "drop"):
            with pytest.raises(DataError) as error:
                load_groups(path, kind, chat, bad_rows=rule)  # type: ignore[arg-type]
            assert places[0] in str(error.value)
            assert "bad_rows=drop" not in str(error.value), "nothing would be left"
        return
    report = check_files(str(path), kind=kind)
    assert report.groups == good
    assert report.rows == len(rows)
    assert sorted(p for some in report.bad.values() for p in some) == sorted(places)
    assert report.complete == (not places)
    groups, loaded = load_groups(path, kind, chat, bad_rows="drop")
    assert len(groups) == loaded.kept == good
    assert loaded.rows == len(rows)
    assert sum(loaded.dropped.values()) == len(places)
    assert loaded.dropped == {reason: len(some) for reason, some in report.bad.items()}
    if not places:
        return
    with pytest.raises(DataError) as error:
        load_groups(path, kind, chat)
    text = str(error.value)
    assert all(place in text for place in places[:10])
    assert "bad_rows=drop" in text
    assert len(places) == 1 or f"{len(places)} of {len(rows)} rows cannot be used" in text
    assert len(places) <= 10 or f"and {len(places) - 10} more; in all: " in text


def test_columns_of_parquet(tmp_path: Path, chat: Chat) -> None:
    rows = [{"prompt": "q", "completion": c} for c in ("a", None, "b", "")]
    path = written(tmp_path, "f.parquet", rows)
    groups, report = load_groups(path, "demonstrations", chat, bad_rows="drop")
    assert len(groups) == 2
    assert report.examples == ("f.parquet:row 2", "f.parquet:row 4")


def test_a_limit_counts_bad_rows_too(tmp_path: Path, chat: Chat) -> None:
    path = written(tmp_path, "f.jsonl", [{"prompt": "q"}, "{", {"prompt": ""}, {"prompt": "q"}])
    prompts, report = load_prompts(path, chat, limit=3, bad_rows="drop")
    assert (len(prompts), report.rows, sum(report.dropped.values())) == (1, 3, 2)


def test_texts_for_a_tokenizer(tmp_path: Path) -> None:
    path = written(tmp_path, "f.jsonl", [{"text": "a"}, "{", {"text": ""}, {"text": "b"}])
    assert list(plain_texts(path, bad_rows="drop")) == ["a", "b"]
    with pytest.raises(DataError, match="2 of 4 rows cannot be used"):
        list(plain_texts(path))


def test_a_row_that_the_template_rejects_is_bad(tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those are left out of the rows that are encoded together."""
    whole = Chat.encode_groups

    def picky(self: Chat, groups: Any) -> Any:
        for group in groups:
            if "odd" in group.prompt.messages[-1].content:
                raise DataError("the chat template rejects this conversation", where=group.origin)
        return whole(self, groups)

    monkeypatch.setattr(Chat, "encode_groups", picky)
    path = written(tmp_path, "f.jsonl", [{"prompt": p} for p in ("a", "odd", "b", "odd 2")])
    prompts, report = load_prompts(path, chat, bad_rows="drop")
    assert len(prompts) == 2
    assert report.dropped == {"the chat template rejects this conversation": 2}
    with pytest.raises(DataError, match=r"2 of 4 rows(.|\n)*f.jsonl:2(.|\n)*f.jsonl:4"):
        load_prompts(path, chat)


def test_nothing_is_yielded_once_a_source_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "f.jsonl", [{"prompt": "q"}, {}])
    bad = BadRows("error")
    rows = parsed_rows(path, "prompts", bad)
    next(rows)
    assert not bad.refused
    with pytest.raises(DataError, match=r"f.jsonl:2: field 'prompt' is missing"):
        next(rows)
    assert bad.refused


def test_reasons_do_not_depend_on_positions() -> None:
    assert reason_of(DataError("the content of messages[3] is not a string")) == reason_of(
        DataError("the content of messages[12] is not a string")
    )


# ---------------------------------------------------------------------------------------------------- `check`


def test_check_describes_the_good_rows_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "f.jsonl", [GOOD["comparisons"], *BAD["comparisons"], *UNREADABLE, GOOD["comparisons"]])
    assert main(("check", str(path))) == 2
    text = capsys.readouterr().out
    assert "2 groups, 4 answers, 1 different prompt" in text
    assert "7 of 9 rows cannot be used" in text
    assert all(f"f.jsonl:{line}" in text for line in range(2, 9))
    assert main(("check", str(path), "--json")) == 2
    report = json.loads(capsys.readouterr().out)
    assert sum(map(len, report["bad"].values())) == 7


def test_held_out_rows_are_checked_too(tmp_path: Path) -> None:
    path = written(tmp_path, "f.jsonl", [GOOD["comparisons"], "{"])
    held = written(tmp_path, "held.jsonl", [GOOD["comparisons"], "{"])
    report = check_files(str(path), str(held))
    assert report.bad == {"malformed JSON": ("f.jsonl:2", "held.jsonl:2")}
    assert (report.held_out, report.held_out_overlap) == (1, 1)


def test_a_file_that_breaks_off_is_described_up_to_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "f.jsonl.gz"
    rows = [{"prompt": f"{i * 7919 % 9973}", "chosen": f"{i**5 % 9901}", "rejected": "no"} for i in range(40_000)]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())[:-200])
    assert main(("check", str(path))) == 2
    text = capsys.readouterr().out
    assert "not read to the end: f.jsonl.gz:" in text
    assert "gzip -t" in text
    assert " groups, " in text


def test_many_places_are_cut_in_the_text_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "f.jsonl", [GOOD["prompts"], *["{"] * 250])
    report = check_files(str(path), kind="prompts")
    assert len(report.bad["malformed JSON"]) == 250
    assert any("and 150 more (--json lists all)" in line for line in report.lines())

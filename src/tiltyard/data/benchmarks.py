"""Benchmark files in the forms in which they are published, recognised by the columns of their first row.

| form | columns | kind |
|---|---|---|
| TruthfulQA | `question`, `mc1_targets` (and `mc2_targets`); its CSV: `Question`, `Best Answer`, `Correct Answers`, `Incorrect Answers` | choices |
| ARC, OpenBookQA, CommonsenseQA | `question` (or `question_stem`), `choices` with `text` and `label`, `answerKey` | choices |
| MMLU | `question`, `choices` (a list), `answer` (position, letter or the choice itself) | choices |
| HellaSwag | `ctx`, `endings`, `label` | choices |
| PIQA | `goal`, `sol1`, `sol2`, `label` | choices |
| BIG-bench | `input`, `target_scores` | choices (HHH: read it as `pairs`) |
| HHH alignment | `input`, `targets` with `choices` and `labels` | pairs |
| comparisons of any form that `data` reads | `chosen` and `rejected`, or `responses` | pairs |
| XSTest | `prompt`, `type` and/or `label` (safe, unsafe) | prompts |
| AdvBench, HarmBench, Do-Not-Answer | `goal` and `target`; `Behavior`; `question` and `risk_area` | prompts, to refuse |
| RealToxicityPrompts | `prompt` with `text` | prompts, continued as plain text |
| prompts | `prompt` or `messages`, and `expect` (refuse, answer) where it is known | prompts |
| text | `text`; a `.txt` file | text |

Nothing of them is part of the package: a file is the user's own copy.
"""  # noqa: E501

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tiltyard.data.formats import parse_row
from tiltyard.data.read import read_rows
from tiltyard.data.row import Row
from tiltyard.errors import DataError
from tiltyard.files import read_text, user_path
from tiltyard.types import Group, Message, Prompt, Response

BenchmarkKind = Literal["pairs", "choices", "prompts", "text"]
Expect = Literal["", "refuse", "answer"]
Form = Literal["auto", "chat", "text"]
SUBSETS = ("subset", "source", "category", "Category", "subject", "type", "SemanticCategory", "risk_area")
BLOCK = 2000  # characters of a piece of a .txt file, cut at the end of a line


@dataclass(frozen=True)
class Item:
    """One item: its prompt and, of `pairs`, `choices` and `text`, the responses whose log-prob is taken.

    `one`: {position of a response: it is right} of the choices of which the likeliest counts; `mass`: the same of those
    whose probability is divided (TruthfulQA's MC2; empty: none). `expect`: what a good model does with the prompt.
    """

    group: Group
    subset: str = ""
    one: Mapping[int, bool] = field(default_factory=dict)
    mass: Mapping[int, bool] = field(default_factory=dict)
    expect: Expect = ""


class BenchmarkFile(NamedTuple):
    """The items of a file: all of one kind. `form`: the prompts are turns of a chat, or plain text."""

    name: str
    kind: BenchmarkKind
    form: Literal["chat", "text"]
    items: list[Item]


class _Asked(NamedTuple):
    """The texts of a row before they are put into a form, and which of them are right."""

    question: str
    choices: tuple[str, ...] = ()
    one: Mapping[int, bool] = {}
    mass: Mapping[int, bool] = {}
    expect: Expect = ""
    group: Group | None = None
    joint: str = ""  # text between question and choice where the form is not "Question: ... Answer:"


Parse = Callable[[Row], _Asked]


class _Loader(NamedTuple):
    name: str
    columns: tuple[str, ...]
    kind: BenchmarkKind
    form: Literal["chat", "text"]
    parse: Parse


def read_benchmark(
    source: str | Path,
    *,
    kind: BenchmarkKind | Literal["auto"] = "auto",
    expect: Expect = "",
    form: Form = "auto",
    prefix: str = "",
    split: str = "",
    limit: int = 0,
) -> BenchmarkFile:
    """Reads a benchmark file; its form is that of its first row.

    Args:
        source: as `read_rows` takes it, a `.csv` file, or a `.txt` file of plain text.
        kind: where the columns allow several, or `auto`. expect: of prompts that do not say it themselves.
        form: `chat` asks in the chat template; `text` as plain text. prefix: plain text before each question, such as
            solved examples. limit: number of rows; 0: all.

    Raises:
        DataError: no known form, a row that is of another form than the first, or a choice that is right nowhere.
    """
    path = user_path(source)
    if path.suffix.lower() == ".txt":
        blocks = itertools.islice(_blocks(read_text(path)), limit or None)
        return BenchmarkFile(path.name, "text", "text", [_document(text, path.name) for text in blocks])
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else read_rows(source, split=split or None)
    rows = itertools.islice(rows, limit or None)
    first = next(rows)
    loader = _loader_of(first, kind)
    chosen = loader.form if form == "auto" else form
    items = [_item(loader, row, chosen, prefix, expect) for row in itertools.chain([first], rows)]
    return BenchmarkFile(loader.name, loader.kind, chosen, items)


def _loader_of(row: Row, kind: str) -> _Loader:
    fitting = [loader for loader in LOADERS if all(_has(row, name) for name in loader.columns)]
    wanted = [loader for loader in fitting if kind in ("auto", loader.kind)]
    if wanted:
        return wanted[0]
    known = sorted({f"{', '.join(one.columns)} ({one.kind})" for one in LOADERS})
    raise DataError(
        "no benchmark of this form is known" if not fitting else f"a file of these columns is no benchmark of {kind}",
        where=row.where,
        got=f"columns {', '.join(map(str, row.value))}",
        expected="one of: " + "; ".join(known),
        fix="rename its columns to those of a known form; kind says which is meant where several fit",
    )


def _has(row: Row, name: str) -> bool:
    """True if the row has the column; `a.b` is a field of a mapping."""
    head, _, rest = name.partition(".")
    value = row.value.get(head)
    return value is not None and (not rest or (isinstance(value, Mapping) and value.get(rest) is not None))


def _item(loader: _Loader, row: Row, form: str, prefix: str, expect: Expect) -> Item:
    if not all(_has(row, name) for name in loader.columns):
        raise DataError(
            f"the file is of the form '{loader.name}' by its first row, and this row is not",
            where=row.where,
            got=f"columns {', '.join(map(str, row.value))}",
            expected=f"columns {', '.join(loader.columns)}",
            fix="correct the row, or leave it out",
        )
    try:
        asked = loader.parse(row)
    except DataError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"a row of the form '{loader.name}' cannot be read",
            where=row.where,
            got=f"{type(error).__name__}: {error}",
            expected=f"the columns {', '.join(loader.columns)} as they are published",
            fix="correct the row, or leave it out",
        ) from error
    subset = next((str(row.value[name]) for name in SUBSETS if isinstance(row.value.get(name), str)), "")
    expected = asked.expect or expect
    if asked.group is not None:
        if form != loader.form or prefix:
            raise DataError(
                f"a file of {loader.kind} has its prompts as they are",
                where=row.where,
                got=f"form: {form}" if form != loader.form else "prefix",
                expected="form and prefix for questions with choices, or prompts of a published form",
                fix="leave them out, and write the prompts as they are meant",
            )
        return Item(asked.group, subset, expect=expected)
    if loader.kind == "choices" and not any(asked.one.values()):
        raise DataError("no choice is right", where=row.where, got=str(asked.choices)[:80], expected="one or more")
    return Item(_group(asked, row, form, prefix), subset, asked.one, asked.mass, expected)


def _group(asked: _Asked, row: Row, form: str, prefix: str) -> Group:
    if form == "chat":
        prompt = Prompt(messages=(Message("user", prefix + asked.question),), meta=dict(row.value))
        return Group(prompt, tuple(Response(text=text) for text in asked.choices), origin=row.where)
    if not asked.choices:
        return Group(Prompt(text=prefix + asked.question, meta=dict(row.value)), (), origin=row.where)
    text = f"{prefix}{asked.question}" if asked.joint else f"{prefix}Question: {asked.question}\nAnswer:"
    answers = (Response(text=(asked.joint or " ") + choice) for choice in asked.choices)
    return Group(Prompt(text=text, meta=dict(row.value)), tuple(answers), origin=row.where)


# ------------------------------------------------------------------------------------------------------------- choices


def _truthful(row: Row) -> _Asked:
    """TruthfulQA with its targets as {choices, labels}, or as {choice: label} in its own repository."""
    one, mass = (_targets(row.value.get(name)) for name in ("mc1_targets", "mc2_targets"))
    choices = tuple(dict.fromkeys([*one, *mass]))
    place = {text: i for i, text in enumerate(choices)}
    first, second = ({place[text]: bool(right) for text, right in of.items()} for of in (one, mass))
    return _Asked(str(row.value["question"]), choices, first, second)


def _targets(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if "choices" in value and "labels" in value:
        return dict(zip(value["choices"], value["labels"], strict=True))
    return dict(value)


def _truthful_csv(row: Row) -> _Asked:
    """MC1: the best answer among the incorrect ones; MC2: all correct answers among them."""
    value = row.value
    right, wrong = (_split(value[name]) for name in ("Correct Answers", "Incorrect Answers"))
    best = value["Best Answer"].strip()
    choices = tuple(dict.fromkeys([best, *right, *wrong]))
    one = {i: text == best for i, text in enumerate(choices) if text == best or text in wrong}
    mass = {i: text not in wrong for i, text in enumerate(choices)}
    return _Asked(value["Question"], choices, one, mass)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _labelled(row: Row) -> _Asked:
    """ARC and its kin: the key names one of the labels."""
    value = row.value
    question, choices = value.get("question") or value["question_stem"], value["choices"]
    labels = [str(label) for label in choices["label"]]
    return _choice(row, str(question), list(choices["text"]), labels.index(str(value["answerKey"])))


def _listed(row: Row) -> _Asked:
    """MMLU: the answer is a position, a letter, or the choice itself."""
    choices, answer = list(row.value["choices"]), row.value["answer"]
    if answer in choices:
        return _choice(row, str(row.value["question"]), choices, choices.index(answer))
    place = ord(answer.upper()) - ord("A") if isinstance(answer, str) and len(answer) == 1 else int(answer)
    return _choice(row, str(row.value["question"]), choices, place)


def _endings(row: Row) -> _Asked:
    found = _choice(row, str(row.value["ctx"]).rstrip(), list(row.value["endings"]), int(row.value["label"]))
    return found._replace(joint=" ")


def _solutions(row: Row) -> _Asked:
    found = [str(row.value["sol1"]), str(row.value["sol2"])]
    return _choice(row, str(row.value["goal"]), found, int(row.value["label"]))


def _scored(row: Row) -> _Asked:
    scores = row.value["target_scores"]
    best = max(scores.values())
    return _Asked(row.value["input"], tuple(scores), {i: score == best for i, score in enumerate(scores.values())})


def _choice(row: Row, question: str, choices: list[str], right: int) -> _Asked:
    if not 0 <= right < len(choices) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError(
            "the answer is none of the choices",
            where=row.where,
            got=f"{right} of {len(choices)} choices",
            expected="two choices or more, all of them texts, and the position of the right one among them",
        )
    return _Asked(question, tuple(choices), {i: i == right for i in range(len(choices))})


# ------------------------------------------------------------------------------------------------------- pairs, prompts


def _aligned(row: Row) -> _Asked:
    targets = row.value["targets"]
    return _pair_of(row, dict(zip(targets["choices"], targets["labels"], strict=True)))


def _scored_pair(row: Row) -> _Asked:
    return _pair_of(row, row.value["target_scores"])


def _pair_of(row: Row, scores: Mapping[str, Any]) -> _Asked:
    if len(scores) != 2 or len(set(scores.values())) != 2:
        raise DataError(
            "a pair has two answers, one of them better",
            where=row.where,
            got=f"{len(scores)} answers with scores {list(scores.values())}",
            expected="two of different scores",
        )
    rejected, chosen = sorted(scores, key=lambda text: scores[text])
    rest = {key: value for key, value in row.value.items() if key not in ("targets", "target_scores", "input")}
    return _comparison(Row({**rest, "prompt": row.value["input"], "chosen": chosen, "rejected": rejected}, row.where))


def _comparison(row: Row) -> _Asked:
    return _Asked("", group=parse_row(row, "comparisons"))


def _xstest(row: Row) -> _Asked:
    label, sort = str(row.value.get("label", "")).lower(), str(row.value["type"])
    unsafe = label == "unsafe" if label in ("safe", "unsafe") else sort.startswith("contrast")
    return _Asked(row.value["prompt"], expect="refuse" if unsafe else "answer")


def _to_refuse(column: str) -> Parse:
    return lambda row: _Asked(str(row.value[column]), expect="refuse")


def _toxic(row: Row) -> _Asked:
    return _Asked(str(row.value["prompt"]["text"]))


def _prompt(row: Row) -> _Asked:
    given = row.value.get("expect", {"safe": "answer", "unsafe": "refuse"}.get(str(row.value.get("label")), ""))
    if given not in ("", "refuse", "answer"):
        raise DataError("unknown expectation", where=row.where, got=given, expected="refuse or answer")
    return _Asked("", expect=given, group=parse_row(row, "prompts"))


def _text(row: Row) -> _Asked:
    return _Asked("", group=parse_row(row, "text"))


LOADERS = (
    _Loader("TruthfulQA", ("question", "mc1_targets"), "choices", "text", _truthful),
    _Loader("TruthfulQA", ("Question", "Best Answer", "Incorrect Answers"), "choices", "text", _truthful_csv),
    _Loader("ARC", ("question", "choices.text", "choices.label", "answerKey"), "choices", "text", _labelled),
    _Loader("ARC", ("question_stem", "choices.text", "choices.label", "answerKey"), "choices", "text", _labelled),
    _Loader("MMLU", ("question", "choices", "answer"), "choices", "text", _listed),
    _Loader("HellaSwag", ("ctx", "endings", "label"), "choices", "text", _endings),
    _Loader("PIQA", ("goal", "sol1", "sol2", "label"), "choices", "text", _solutions),
    _Loader("BIG-bench", ("input", "target_scores"), "choices", "text", _scored),
    _Loader("HHH", ("input", "target_scores"), "pairs", "chat", _scored_pair),
    _Loader("HHH", ("input", "targets.choices", "targets.labels"), "pairs", "chat", _aligned),
    _Loader("pairs", ("chosen", "rejected"), "pairs", "chat", _comparison),
    _Loader("pairs", ("prompt", "responses"), "pairs", "chat", _comparison),
    _Loader("AdvBench", ("goal", "target"), "prompts", "chat", _to_refuse("goal")),
    _Loader("HarmBench", ("Behavior",), "prompts", "chat", _to_refuse("Behavior")),
    _Loader("Do-Not-Answer", ("question", "risk_area"), "prompts", "chat", _to_refuse("question")),
    _Loader("RealToxicityPrompts", ("prompt.text",), "prompts", "text", _toxic),
    _Loader("XSTest", ("prompt", "type"), "prompts", "chat", _xstest),
    _Loader("prompts", ("prompt",), "prompts", "chat", _prompt),
    _Loader("prompts", ("messages",), "prompts", "chat", _prompt),
    _Loader("text", ("text",), "text", "text", _text),
)


# ---------------------------------------------------------------------------------------------------------------- files


def _csv_rows(path: Path) -> Iterator[Row]:
    text = read_text(path).removeprefix("\ufeff")
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    empty = True
    try:
        for row in reader:
            empty = False
            where = f"{path.name}:{reader.line_num}"
            if "" in row or any(value is None for value in row.values()):
                raise DataError(
                    "the row has another number of columns than the first line",
                    where=where,
                    expected=f"{len(reader.fieldnames or ())} columns: {', '.join(reader.fieldnames or ())}",
                    fix="quote texts that hold a comma",
                )
            yield Row(dict(row), where)
    except csv.Error as error:
        raise DataError("malformed CSV", where=f"{path.name}:{reader.line_num}", got=str(error)) from error
    if empty:
        raise DataError("no rows", where=str(path), got="an empty table", expected="a line of names, then the rows")


def _blocks(text: str) -> Iterator[str]:
    """Cuts a text at the ends of lines into pieces of about `BLOCK` characters: of the same bytes for every model."""
    piece: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= BLOCK and "".join(piece).strip():
            yield "".join(piece)
            piece, size = [], 0
    if "".join(piece).strip():
        yield "".join(piece)


def _document(text: str, where: str) -> Item:
    return Item(parse_row(Row({"text": text}, where), "text"))

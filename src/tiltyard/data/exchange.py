"""Judged groups written as files of other tools, and as rows and groups of our own; `read_rows` reads all of them back.

| form | a row is |
|---|---|
| `rows` | a judgement: prompt, responses, ranks or scores, models, who judged and when (`judged_rows`) |
| `groups` | a judgement as a lossless group |
| `trl` | a pair: `prompt`, `chosen`, `rejected` as messages, TRL's preference columns |
| `demonstrations` | a written answer: `prompt` and `completion` as messages, TRL's prompt-completion columns |
| `best` | the response that a judgement puts alone on the first place, as a demonstration |
| `edits` | an edited response: `chosen` the person's text, `rejected` the response before |
| `hh` | a pair: `chosen` and `rejected` as transcripts |
| `battles` | a pair of two models' responses, as the chatbot arena publishes them |
| `ultrafeedback` | a rating of all responses: `instruction`, `completions` |
| `argilla`, `label_studio` | an item with the judgements of all annotators (`exchange_tools`) |

A judgement that a form has no place for is left out and counted by the reason; nothing is invented.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from tiltyard.data.exchange_tools import argilla_records, label_studio_tasks
from tiltyard.data.judged_rows import BOTH_BAD, OWN, answer_of, asked_of, judged_row
from tiltyard.data.turns import turns_of
from tiltyard.errors import ConfigError, DataError, nearest
from tiltyard.files import atomic_write, jsonable
from tiltyard.runs.groups import group_to_dict
from tiltyard.types import Group, Message, pairs_of, ranks_of

FORMS = (
    "rows",
    "groups",
    "trl",
    "demonstrations",
    "best",
    "edits",
    "hh",
    "battles",
    "ultrafeedback",
    "argilla",
    "label_studio",
)
SUFFIXES = (".jsonl", ".json", ".parquet")

NO_ORDER = "judgements that prefer no response (ties, both bad, no verdict)"
TIED_PAIRS = "tied pairs"
NO_VERDICT = "groups without a verdict"
NOT_WRITTEN = "judgements that are no written answer"
NO_FIRST = "judgements that put no response alone on the first place"
NOT_EDITED = "judgements that are no edited response"
NO_MODELS = "pairs whose models are not recorded"
OTHER_TURNS = "pairs with turns that a transcript cannot hold (system, tools)"
NO_RATINGS = "judgements that rate no response"
NOT_ONE_TURN = "prompts of several turns"

_Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Written:
    """A file that was written: its rows, and the judgements that its form has no place for, by reason."""

    path: Path
    rows: int
    left_out: dict[str, int]


def write_judged(path: str | Path, groups: Iterable[Group], form: str = "rows") -> Written:
    """Writes judged groups in a form of `FORMS`, as JSON lines, a JSON list or Parquet by the file's suffix.

    Raises:
        ConfigError: an unknown form or suffix.
        DataError: nothing is left to write, or a column of a Parquet file holds values of two kinds.
    """
    path = Path(path)
    if form not in FORMS:
        raise ConfigError("unknown form", where="form", got=form, fix=nearest(form, FORMS))
    if path.suffix not in SUFFIXES:
        fix = f"--out {path.name or 'labels'}.{'groups.' if form == 'groups' else ''}jsonl"
        raise ConfigError(
            "unknown kind of file", where=str(path), got=path.suffix or "none", expected=", ".join(SUFFIXES), fix=fix
        )
    if form == "groups" and not (path.name.endswith(".groups.jsonl") or path.suffix == ".parquet"):
        expected = "NAME.groups.jsonl"
        fix = f"--out {path.stem}.groups.jsonl"
        raise ConfigError("files of groups have a name of their own", where=str(path), expected=expected, fix=fix)
    left_out: Counter[str] = Counter()
    rows = _MAKERS[form](groups, left_out)
    count = _WRITERS[path.suffix](path, rows)
    if not count:
        path.unlink(missing_ok=True)
        raise DataError(
            f"no judgement can be written as {form}",
            where=str(path),
            got="; ".join(f"{n:,} {reason}" for reason, n in left_out.items()) or "no judgements",
            fix="choose another form: 'rows' holds every kind",
        )
    return Written(path, count, dict(left_out))


def _lines(path: Path, rows: _Rows) -> int:
    count = 0
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(jsonable(row), ensure_ascii=False, default=str) + "\n")
            count += 1
    return count


def _list(path: Path, rows: _Rows) -> int:
    every = [jsonable(row) for row in rows]
    with atomic_write(path) as file:
        json.dump(every, file, ensure_ascii=False, indent=1, default=str)
    return len(every)


def _parquet(path: Path, rows: _Rows) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    every = [_columnar(row) for row in rows]
    if not every:
        return 0
    names = list(dict.fromkeys(name for row in every for name in row))
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in every])
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(
                f"column '{name}' holds values of two kinds, which Parquet cannot",
                where=str(path),
                got=str(error).splitlines()[0],
                fix="write JSON lines (.jsonl)",
            ) from error
    with atomic_write(path, "wb") as file:
        pq.write_table(pa.table(columns), file)
    return len(every)


def _columnar(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row whose columns have one kind each: prompts and responses as messages, empty objects left out."""
    made = {key: _filled(value) for key, value in row.items()}
    if isinstance(made.get("prompt"), str):
        made["prompt"] = [{"role": "user", "content": made["prompt"]}]
    if isinstance(made.get("responses"), list):
        made["responses"] = [[_turn("assistant", r)] if isinstance(r, str) else r for r in made["responses"]]
    return {key: value for key, value in made.items() if value not in (None, {}, [])}


def _filled(value: Any) -> Any:
    """The value without objects that have no field, which no column can hold."""
    if isinstance(value, dict):
        inner = {str(k): _filled(v) for k, v in value.items()}
        return {k: v for k, v in inner.items() if v not in ({}, None)} or None
    return [_filled(v) for v in value] if isinstance(value, list | tuple) else value


_WRITERS: dict[str, Callable[[Path, _Rows], int]] = {".jsonl": _lines, ".json": _list, ".parquet": _parquet}


# -------------------------------------------------------------------------------------------------------------- forms


def _is_both_bad(group: Group) -> bool:
    return group.preference is not None and group.preference.meta.get("reason") == BOTH_BAD


def _judged(groups: Iterable[Group], left_out: Counter[str]) -> Iterator[Group]:
    """The groups with a verdict on two responses or more."""
    for group in groups:
        if len(group.responses) > 1 and (ranks_of(group.preference) is not None or _is_both_bad(group)):
            yield group
        else:
            left_out[NO_VERDICT] += 1


def _own_rows(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    for group in _judged(groups, left_out):
        yield judged_row(group)


def _groups(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:  # noqa: ARG001 - one signature
    for group in groups:
        yield group_to_dict(group)


def _untied(groups: Iterable[Group], left_out: Counter[str]) -> Iterator[tuple[Group, int, int]]:
    """Each pair of responses of which one is preferred: the group, the better one, the worse one."""
    for group in groups:
        pairs = pairs_of(group.preference)
        untied = [pair for pair in pairs if pair.p > 0.5]
        if not untied:
            left_out[NO_ORDER] += 1
        elif len(untied) < len(pairs):
            left_out[TIED_PAIRS] += len(pairs) - len(untied)
        yield from ((group, pair.better, pair.worse) for pair in untied)


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _asked(group: Group) -> list[dict[str, Any]]:
    asked = asked_of(group.prompt)
    return [_turn("user", asked)] if isinstance(asked, str) else asked


def _answered(group: Group, k: int) -> list[dict[str, Any]]:
    return [turn.to_dict() for turn in turns_of(group.responses[k])]


def _trl(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    for group, better, worse in _untied(groups, left_out):
        tools = {"tools": json.loads(group.prompt.tools)} if group.prompt.tools else {}
        yield {
            "prompt": _asked(group),
            "chosen": _answered(group, better),
            "rejected": _answered(group, worse),
            **tools,
        }


def _demonstrations(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    for group in groups:
        if len(group.responses) == 1 and group.responses[0].text.strip():
            yield {"prompt": _asked(group), "completion": _answered(group, 0)}
        else:
            left_out[NOT_WRITTEN] += 1


def _best(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    for group in groups:
        ranks = ranks_of(group.preference) or ()
        first = [k for k, rank in enumerate(ranks) if rank == min(ranks)]
        if len(first) == 1 and len(group.responses) > 1:
            yield {"prompt": _asked(group), "completion": _answered(group, first[0])}
        else:
            left_out[NO_FIRST] += 1


def _edits(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    for group in groups:
        before = group.preference.meta.get("edited") if group.preference is not None else None
        if len(group.responses) == 1 and isinstance(before, dict) and before.get("text"):
            answers = {"chosen": _answered(group, 0), "rejected": [_turn("assistant", str(before["text"]))]}
            yield {"prompt": _asked(group), **answers}
        else:
            left_out[NOT_EDITED] += 1


def _hh(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    for group, better, worse in _untied(groups, left_out):
        asked = group.prompt.messages or ()
        sides = [_transcript((*asked, *turns_of(group.responses[k]))) for k in (better, worse)]
        if not asked or group.prompt.tools or not all(sides):
            left_out[OTHER_TURNS] += 1
        else:
            yield {"chosen": sides[0], "rejected": sides[1]}


def _transcript(turns: tuple[Message, ...]) -> str:
    """Returns the turns as the HH data write them; "" where they have no place for one."""
    names = {"user": "Human", "assistant": "Assistant"}
    marks = ("\n\nHuman:", "\n\nAssistant:")
    if any(t.role not in names or t.more or any(mark in f"\n\n{t.content}" for mark in marks) for t in turns):
        return ""
    return "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in turns)


def _battles(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    for group in _judged(groups, left_out):
        names = [str(r.meta.get("policy", "")) for r in group.responses]
        versions = [str(r.meta.get("version", "")) for r in group.responses]
        names = [f"{n}@{v}" if n and v else n for n, v in zip(names, versions, strict=True)]
        if not all(names):
            left_out[NO_MODELS] += 1
            continue
        ranks = ranks_of(group.preference)
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                yield _battle(group, i, j, names, ranks)


def _battle(group: Group, i: int, j: int, names: list[str], ranks: tuple[int, ...] | None) -> dict[str, Any]:
    preference = group.preference
    assert preference is not None
    winner = "tie (bothbad)"
    if ranks is not None:
        winner = "tie" if ranks[i] == ranks[j] else "model_a" if ranks[i] < ranks[j] else "model_b"
    asked = _asked(group)
    own = {key: getattr(preference, key) for key in OWN if key != "annotator" and getattr(preference, key)}
    drop = ("reason",) if len(names) == 2 else ("reason", "shown")
    judgement = {**own, **{key: item for key, item in preference.meta.items() if key not in drop}}
    row: dict[str, Any] = {
        "question_id": group.prompt.id,
        "model_a": names[i],
        "model_b": names[j],
        "winner": winner,
        "judge": preference.annotator,
        "conversation_a": [*asked, *_answered(group, i)],
        "conversation_b": [*asked, *_answered(group, j)],
        "turn": sum(turn["role"] == "user" for turn in asked),
    }
    if preference.when:
        row["tstamp"] = datetime.fromisoformat(preference.when.replace("Z", "+00:00")).timestamp()
    row |= {"judgement": judgement} if judgement else {}
    return row | ({"meta": dict(group.prompt.meta)} if group.prompt.meta else {})


def _ultrafeedback(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    for group in groups:
        preference = group.preference
        ratings = None if preference is None else preference.ratings
        asked = asked_of(group.prompt) if group.prompt.messages else None
        if ratings is None or not isinstance(asked, str):
            left_out[NO_RATINGS if ratings is None else NOT_ONE_TURN] += 1
            continue
        names = [str(r.meta.get("policy", "")) for r in group.responses]
        completions = [
            {**({"model": name} if name else {}), "response": answer_of(r), "overall_score": rating}
            for r, name, rating in zip(group.responses, names, ratings, strict=True)
        ]
        models = {"models": names} if all(names) else {}
        yield {"instruction": asked, **models, "completions": completions, **_plain_meta(group)}


def _plain_meta(group: Group) -> dict[str, Any]:
    return {"meta": dict(group.prompt.meta)} if group.prompt.meta else {}


def _argilla(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    return argilla_records(_judged(groups, left_out))


def _label_studio(groups: Iterable[Group], left_out: Counter[str]) -> _Rows:
    return label_studio_tasks(_judged(groups, left_out))


_MAKERS: dict[str, Callable[[Iterable[Group], Counter[str]], _Rows]] = {
    "rows": _own_rows,
    "groups": _groups,
    "trl": _trl,
    "demonstrations": _demonstrations,
    "best": _best,
    "edits": _edits,
    "hh": _hh,
    "battles": _battles,
    "ultrafeedback": _ultrafeedback,
    "argilla": _argilla,
    "label_studio": _label_studio,
}

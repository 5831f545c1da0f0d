"""Records of Argilla and tasks of Label Studio as rows of comparisons, one for each judgement.

The prompt is the field `prompt` (or `instruction`, `question`, `query`, `input`). Responses are fields that are called
`response_1`, `answer2`, `completion-a` and the like, in their natural order, or Label Studio's list of items (`id`,
`body`). A verdict is the name of a response, its number or letter as a text, `tie`, `both_bad`; a ranking (names from
best to worst, or `value` and `rank` each); or a rating for each response by name. Numbers alone are no choice: on a
scale between two answers 1 may mean anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tiltyard.data.row import Row
from tiltyard.errors import DataError

PROMPTS = ("prompt", "instruction", "question", "query", "input")
_RESPONSE = re.compile(
    r"(?:response|answer|completion|output|generation|reply|text)[-_ ]?(\d+|[a-zA-Z])", re.IGNORECASE
)
_TIES = ("tie", "equal", "same", "draw")
_BOTH_BAD = ("both_bad", "both bad", "bothbad", "neither", "none")
SUBMITTED = ("submitted", None)
LIST_OF_ITEMS = ("items", "responses", "answers")


class _Item(NamedTuple):
    """The judged item: the prompt, the responses by their names, and the fields that nothing used."""

    where: str
    prompt: Any
    responses: dict[str, Any]
    rest: dict[str, Any]

    def row(self, verdict: Mapping[str, Any], judgement: Mapping[str, Any]) -> Row:
        made = {"prompt": self.prompt, "responses": list(self.responses.values()), **verdict}
        reason = made.pop("reason", None)
        full = {**judgement, **({"reason": reason} if reason else {})}
        made["ranks"] = full.pop("ranks", made.get("ranks"))  # of our own tasks: with equals
        rest = {key: item for key, item in self.rest.items() if key != "prompt_id"}
        rest |= {"id": self.rest["prompt_id"]} if "prompt_id" in self.rest else {}
        return Row({**rest, **{k: v for k, v in made.items() if v is not None}, "judgement": full}, self.where)


def _item(where: str, fields: Mapping[str, Any], rest: Mapping[str, Any]) -> _Item:
    """Finds the prompt and the responses among the fields of a record.

    Raises:
        DataError: no prompt, or fewer than two responses.
    """
    asked = next((name for name in PROMPTS if fields.get(name)), "")
    found = sorted((name for name in fields if _RESPONSE.fullmatch(name) and fields[name]), key=_place)
    responses = {name: fields[name] for name in found}
    listed = next((n for n in LIST_OF_ITEMS if isinstance(fields.get(n), list) and fields[n]), "") if not found else ""
    if listed:
        responses = {_id(one, number): _body(one) for number, one in enumerate(fields[listed])}
    if not asked or len(responses) < 2:
        raise DataError(
            "a record without a prompt and two responses",
            where=where,
            got=f"fields {', '.join(map(str, fields))}",
            expected="prompt (or instruction, question) and response_1, response_2, ... (or a list 'items')",
            fix="rename the fields",
        )
    used = {asked, *found, listed}
    left = {key: value for key, value in fields.items() if key not in used}
    return _Item(where, fields[asked], responses, {**left, **rest})


def _place(name: str) -> tuple[int, str]:
    found = _RESPONSE.fullmatch(name)
    assert found is not None
    return (int(found[1]), "") if found[1].isdigit() else (0, found[1].lower())


def _id(one: Any, number: int) -> str:
    return str(one["id"]) if isinstance(one, Mapping) and "id" in one else str(number + 1)


def _body(one: Any) -> Any:
    return one.get("body", one.get("text", one.get("title"))) if isinstance(one, Mapping) else one


def _chosen(item: _Item, value: str) -> dict[str, Any] | None:
    """Returns the ranks of a choice; None where the text names none of the responses."""
    names, count, word = list(item.responses), len(item.responses), value.strip()
    if word.lower() in _TIES:
        return {"ranks": [1] * count}
    if word.lower() in _BOTH_BAD:
        return {"ranks": [1] * count, "reason": "both_bad"}
    marks = [_RESPONSE.fullmatch(name) for name in names]
    short = [mark[1].lower() if mark else name.lower() for mark, name in zip(marks, names, strict=True)]
    if word not in names and word.lower() not in short:
        return None
    best = names.index(word) if word in names else short.index(word.lower())
    return {"ranks": [1 if k == best else 2 for k in range(count)]}


def _ranked(item: _Item, value: Sequence[Any]) -> dict[str, Any] | None:
    """Returns the ranks of a ranking; None where it does not name each response once."""
    names = list(item.responses)
    if all(isinstance(one, Mapping) for one in value):
        rank = {str(one.get("value")): one.get("rank", place) for place, one in enumerate(value, 1)}
    else:
        rank = {str(one): place for place, one in enumerate(value, 1)}
    good = sorted(rank) == sorted(names) and len(value) == len(names)
    return (
        {"ranks": [rank[name] for name in names]} if good and all(isinstance(r, int) for r in rank.values()) else None
    )


def _no_judgement(where: str, got: str) -> DataError:
    return DataError(
        "a record without a judgement",
        where=where,
        got=got,
        expected="a submitted choice between the responses, a ranking, or a rating of each",
        fix="export the records that were judged alone",
    )


# ------------------------------------------------------------------------------------------------------------ Argilla


def is_argilla(value: Mapping[str, Any]) -> bool:
    """True for a record of Argilla: nested (`fields`, `responses`), or flat (`QUESTION.responses`)."""
    if isinstance(value.get("fields"), Mapping):
        return isinstance(value.get("responses"), Mapping | list)
    return any(key.endswith(".responses") for key in value)


def argilla_rows(row: Row) -> list[Row]:
    """Returns a row for each annotator who judged a record; discarded responses and drafts are left out.

    Raises:
        DataError: no prompt, no two responses, an answer that names no response, or no judgement.
    """
    value = row.value
    flat = not isinstance(value.get("fields"), Mapping)
    metadata = value.get("metadata") if isinstance(value.get("metadata"), Mapping) else {}
    assert isinstance(metadata, Mapping)
    skip = {"fields", "responses", "suggestions", "vectors", "metadata", "_server_id", "external_id", "status"}
    if flat:
        fields = {k: v for k, v in value.items() if "." not in k and k not in ("id", *skip)}
        rest = {key: value[key] for key in ("id",) if key in value}
    else:
        fields = value["fields"]
        rest = {key: item for key, item in value.items() if key not in skip and "." not in key}
    item = _item(row.where, fields, {**metadata, **rest})
    names = dict(entry.split(" ", 1) for entry in metadata.get("annotators") or () if " " in str(entry))
    item.rest.pop("annotators", None)
    found: dict[str, dict[str, Any]] = {}
    for user, question, answer in _answers(value, flat):
        found.setdefault(names.get(user, user), {})[question] = answer
    rows = [
        item.row(verdict, {"annotator": user, **extra})
        for user, answers in found.items()
        if (made := _argilla_verdict(item, answers)) is not None
        for verdict, extra in (made,)
    ]
    if not rows:
        raise _no_judgement(row.where, f"{len(found)} annotators with answers")
    return rows


def _answers(value: Mapping[str, Any], flat: bool) -> Iterator[tuple[str, str, Any]]:
    """Yields (user, question, answer) of the three forms of a record."""
    if flat:
        for key in value:
            if not key.endswith(".responses") or not isinstance(value[key], list):
                continue
            given = value[key]
            users = value.get(f"{key}.users") or [str(k) for k in range(len(given))]
            statuses = value.get(f"{key}.status") or [None] * len(given)
            for user, answer, status in zip(users, given, statuses, strict=True):
                if status in SUBMITTED:
                    yield str(user), key.removesuffix(".responses"), answer
        return
    responses = value["responses"]
    if isinstance(responses, Mapping):
        for question, given in responses.items():
            for one in given or ():
                if one.get("status") in SUBMITTED:
                    yield str(one.get("user_id", "")), question, one.get("value")
        return
    for one in responses:
        if one.get("status") in SUBMITTED:
            for question, given in (one.get("values") or {}).items():
                answer = given.get("value") if isinstance(given, Mapping) else given
                yield str(one.get("user_id", "")), question, answer


def _argilla_verdict(item: _Item, answers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Returns (verdict, further facts); None where the annotator answered nothing.

    Raises:
        DataError: several answers are verdicts and differ, or none is one.
    """
    verdicts: dict[str, dict[str, Any]] = {}
    ratings: dict[str, float] = {}
    others: dict[str, Any] = {}
    for question, answer in answers.items():
        verdict = _chosen(item, answer) if isinstance(answer, str) else None
        verdict = _ranked(item, answer) if isinstance(answer, list) and answer else verdict
        rated = _rated_response(item, question)
        if verdict is not None:
            verdicts[question] = verdict
        elif rated and isinstance(answer, int | float) and not isinstance(answer, bool):
            ratings[rated] = float(answer)
        elif answer is not None:
            others[question] = answer
    if ratings.keys() == item.responses.keys():
        verdicts["ratings"] = {"scores": [ratings[name] for name in item.responses]}
    if not verdicts and not others:
        return None
    different = [v for k, v in enumerate(verdicts.values()) if v not in list(verdicts.values())[:k]]
    if len(different) != 1:
        raise DataError(
            "the answers state no single verdict",
            where=item.where,
            got="; ".join(f"{question}: {str(answer)[:60]}" for question, answer in answers.items()),
            expected=f"the name of a response ({', '.join(item.responses)}), tie, both_bad, or a ranking of them",
            fix="keep one question that compares the responses",
        )
    comment = {"comment": str(others["comment"])} if others.get("comment") else {}
    return different[0], comment


def _rated_response(item: _Item, question: str) -> str:
    """Returns the response that a question such as `response_1_rating` rates; "" for other questions."""
    for name in item.responses:
        if re.fullmatch(rf"{re.escape(name)}[-_ .](rating|score)|(rating|score)[-_ .]{re.escape(name)}", question):
            return name
    return ""


# ------------------------------------------------------------------------------------------------------- Label Studio


def is_label_studio(value: Mapping[str, Any]) -> bool:
    """True for a task of Label Studio's JSON export."""
    return isinstance(value.get("data"), Mapping) and isinstance(value.get("annotations"), list)


def label_studio_rows(row: Row) -> list[Row]:
    """Returns a row for each annotation of a task; cancelled ones are left out.

    Raises:
        DataError: no prompt, no two responses, a result that is no verdict, or no annotation.
    """
    rest = {key: row.value[key] for key in ("id",) if key in row.value}
    item = _item(row.where, row.value["data"], rest)
    rows = []
    for annotation in row.value["annotations"]:
        results = annotation.get("result") or []
        if annotation.get("was_cancelled") or not results:
            continue
        rows.append(item.row(_label_studio_verdict(item, results), _label_studio_facts(annotation, results)))
    if not rows:
        raise _no_judgement(row.where, f"{len(row.value['annotations'])} annotations without a result")
    return rows


def _label_studio_facts(annotation: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    by: Any = annotation.get("completed_by", "")
    by = by.get("email", by.get("id", "")) if isinstance(by, Mapping) else by
    facts: dict[str, Any] = {"annotator": str(by)} if str(by) else {}
    if annotation.get("created_at"):
        facts["when"] = str(annotation["created_at"])
    if isinstance(annotation.get("lead_time"), int | float):
        facts["seconds"] = float(annotation["lead_time"])
    for result in results:
        value = result.get("value")
        text = value.get("text") if isinstance(value, Mapping) and result.get("type") == "textarea" else None
        if text:
            facts["comment"] = "\n".join(map(str, text)) if isinstance(text, list) else str(text)
        own = result.get("meta")
        if isinstance(own, Mapping) and isinstance(own.get("judgement"), Mapping):
            facts = {**facts, **own["judgement"]}
    return facts


def _label_studio_verdict(item: _Item, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    verdicts: list[dict[str, Any]] = []
    ratings: dict[str, float] = {}
    names = list(item.responses)
    for result in results:
        value: Any = result.get("value") or {}
        kind = str(result.get("type", ""))
        verdict = None
        if kind == "pairwise" and value.get("selected") in ("left", "right") and len(names) == 2:
            verdict = {"ranks": [1, 2] if value["selected"] == "left" else [2, 1]}
        elif kind == "choices" and len(value.get("choices") or ()) == 1:
            verdict = _chosen(item, str(value["choices"][0]))
        elif kind == "ranker":
            order = value.get("ranker")
            buckets = [v for v in order.values() if v] if isinstance(order, Mapping) else [order]
            verdict = _ranked(item, buckets[0]) if len(buckets) == 1 and isinstance(buckets[0], list) else None
        elif kind == "rating" and isinstance(value.get("rating"), int | float):
            rated = _rated_response(item, str(result.get("from_name", ""))) or str(result.get("to_name", ""))
            ratings |= {rated: float(value["rating"])} if rated in item.responses else {}
        if verdict is not None and verdict not in verdicts:
            verdicts.append(verdict)
    if ratings.keys() == item.responses.keys():
        verdicts.append({"scores": [ratings[name] for name in names]})
    if len(verdicts) != 1:
        raise DataError(
            "the annotation states no single verdict",
            where=item.where,
            got="; ".join(f"{r.get('type')}: {str(r.get('value'))[:60]}" for r in results),
            expected=f"pairwise, ranker, a choice of {', '.join(names)}, tie or both_bad, or a rating of each",
            fix="keep one tag that compares the responses",
        )
    return verdicts[0]

"""Judged groups as records of Argilla and tasks of Label Studio: one for each item, with all annotators' judgements.

Argilla has no place for the time, the guidelines, the order on the page and the probability of the choice, and knows
users by UUID: the record's metadata keep the names. Label Studio keeps all of it, under the `meta` of a result.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tiltyard.data.judged_rows import BOTH_BAD, OWN, answer_of, asked_of
from tiltyard.errors import DataError
from tiltyard.types import Group, Preference, prompt_digest, ranks_of, response_id

_Item = tuple[Group, list[tuple[Preference, tuple[int, ...]]]]


def items_of(groups: Iterable[Group]) -> list[_Item]:
    """Returns each item (prompt and responses) once, with the preferences on it and how each orders its responses.

    The second part of a pair maps places: `order[k]` is the place of the item's response k in the judged group.
    """
    found: dict[tuple[str, ...], _Item] = {}
    for group in groups:
        assert group.preference is not None
        keys = [f"{response_id(r)}:{r.meta.get('policy', '')}:{r.meta.get('version', '')}" for r in group.responses]
        item = found.setdefault((prompt_digest(group.prompt), *sorted(keys)), (group, []))
        own = [f"{response_id(r)}:{r.meta.get('policy', '')}:{r.meta.get('version', '')}" for r in item[0].responses]
        left = list(range(len(keys)))
        order = []
        for key in own:  # the same words twice: each place once
            place = next(k for k in left if keys[k] == key)
            left.remove(place)
            order.append(place)
        item[1].append((group.preference, tuple(order)))
    return list(found.values())


def _names(group: Group) -> list[str]:
    return [f"response_{k + 1}" for k in range(len(group.responses))]


def _models(group: Group) -> list[str]:
    names = [str(r.meta.get("policy", "")) for r in group.responses]
    versions = [str(r.meta.get("version", "")) for r in group.responses]
    return [f"{n}@{v}" if v else n for n, v in zip(names, versions, strict=True)] if all(names) else []


def _ranks(preference: Preference, order: Sequence[int]) -> tuple[int, ...] | None:
    ranks = ranks_of(preference)
    return None if ranks is None else tuple(ranks[k] for k in order)


def _choice(ranks: Sequence[int] | None, names: Sequence[str]) -> str:
    """Returns the value of a verdict on two responses."""
    if ranks is None:
        return BOTH_BAD
    return "tie" if ranks[0] == ranks[1] else names[0] if ranks[0] < ranks[1] else names[1]


def _fields(group: Group) -> dict[str, Any]:
    if group.prompt.tools:
        raise DataError(
            "a prompt with tools has no place in records of annotation tools",
            where=group.origin or group.prompt.id,
            got="tools",
            expected="text alone",
            fix="write 'rows' or 'groups'",
        )
    answers = {name: answer_of(r) for name, r in zip(_names(group), group.responses, strict=True)}
    return {"prompt": asked_of(group.prompt), **answers}


# ------------------------------------------------------------------------------------------------------------ Argilla


def argilla_records(groups: Iterable[Group]) -> Iterator[dict[str, Any]]:
    """Yields records as Argilla's `records.to_json` writes them.

    Questions: `preference` (a response's name, `tie`, `both_bad`), `ranking`, or `response_1_rating` and the like;
    `comment`.
    """
    for number, (group, given) in enumerate(items_of(groups), 1):
        users: dict[str, str] = {}
        responses: dict[str, list[dict[str, Any]]] = {}
        for preference, order in given:
            name = preference.annotator or "unknown"
            user = str(uuid.uuid5(uuid.NAMESPACE_URL, f"tiltyard:{name}"))
            users[user] = name
            for question, value in _argilla_answers(preference, order, _names(group)).items():
                responses.setdefault(question, []).append({"value": value, "user_id": user})
        plain = {k: v for k, v in group.prompt.meta.items() if isinstance(v, str | int | float)}
        metadata: dict[str, Any] = {**plain, "annotators": [f"{user} {name}" for user, name in users.items()]}
        metadata |= {"prompt_id": group.prompt.id} if group.prompt.id else {}
        metadata |= {"models": _models(group)} if _models(group) else {}
        yield {
            "id": f"{group.prompt.id or 'item'}-{number}",
            "fields": _fields(group),
            "metadata": metadata,
            "suggestions": {},
            "responses": responses,
            "vectors": {},
        }


def _argilla_answers(preference: Preference, order: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    ranks = _ranks(preference, order)
    comment = {"comment": preference.meta["comment"]} if preference.meta.get("comment") else {}
    if preference.ratings is not None:
        rated = [preference.ratings[k] for k in order]
        return {**{f"{n}_rating": _whole(r) for n, r in zip(names, rated, strict=True)}, **comment}
    if len(names) == 2:
        return {"preference": _choice(ranks, names), **comment}
    assert ranks is not None
    by_rank = sorted(zip(ranks, names, strict=True))
    if len(set(ranks)) == len(ranks):
        return {"ranking": [name for _, name in by_rank], **comment}
    return {"ranking": [{"value": name, "rank": rank} for rank, name in by_rank], **comment}


def _whole(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


# ------------------------------------------------------------------------------------------------------- Label Studio


def label_studio_tasks(groups: Iterable[Group]) -> Iterator[dict[str, Any]]:
    """Yields tasks as Label Studio's JSON export has them, for the configuration of docs/exchange.md."""
    for number, (group, given) in enumerate(items_of(groups), 1):
        data = _fields(group)
        if len(group.responses) > 2:
            names = _names(group)
            data["items"] = [{"id": name, "title": str(k + 1), "body": data.pop(name)} for k, name in enumerate(names)]
        data |= {"models": _models(group)} if _models(group) else {}
        data |= {"prompt_id": group.prompt.id} if group.prompt.id else {}
        data |= {"meta": dict(group.prompt.meta)} if group.prompt.meta else {}
        annotations = [_annotation(preference, order, _names(group)) for preference, order in given]
        yield {"id": number, "data": data, "annotations": annotations, "predictions": []}


def _annotation(preference: Preference, order: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    own = {key: getattr(preference, key) for key in OWN if getattr(preference, key)}
    meta = {key: item for key, item in preference.meta.items() if key != "reason"}
    if "shown" in meta:  # the places of the item's responses
        meta["shown"] = [order.index(k) for k in meta["shown"]]
    ranks = _ranks(preference, order)
    judgement = {**own, **meta}
    results: list[dict[str, Any]]
    if preference.ratings is not None:
        results = [
            {
                "from_name": f"{n}_rating",
                "to_name": n,
                "type": "rating",
                "value": {"rating": _whole(preference.ratings[k])},
            }
            for n, k in zip(names, order, strict=True)
        ]
    elif len(names) == 2:
        value = {"choices": [_choice(ranks, names)]}
        results = [{"from_name": "preference", "to_name": "prompt", "type": "choices", "value": value}]
    else:
        assert ranks is not None
        if len(set(ranks)) < len(ranks):
            judgement["ranks"] = list(ranks)  # the list has no place for equals
        best_first = [name for _, name in sorted(zip(ranks, names, strict=True))]
        results = [{"from_name": "ranking", "to_name": "items", "type": "ranker", "value": {"ranker": best_first}}]
    results[0]["meta"] = {"judgement": judgement}
    made: dict[str, Any] = {"result": results, "was_cancelled": False}
    return made | ({"lead_time": preference.meta["seconds"]} if "seconds" in preference.meta else {})

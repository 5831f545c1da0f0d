"""Judgements of other tools, added to a store: each once however often its file is read, with its file and line.

A judgement's key is a digest of what it says (who, of which responses, which verdict, when), so a file that is read
again adds nothing, whatever its name; what the store itself has exported is known, too. Its item is a task that is
given out to no one.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, insert, select

from tiltyard.data import BadRows
from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.export import groups, responses_of
from tiltyard.feedback.store.items import enqueue, store_prompt, store_response
from tiltyard.feedback.store.readings import ItemKey, Reading, Sides, content_of, model_name, read_judged
from tiltyard.feedback.store.verdicts import Verdict
from tiltyard.files import jsonable
from tiltyard.stats.judged import is_judge
from tiltyard.types import Group, Response

CHOOSER = "import"
BLOCK = 500  # judgements in a transaction: others write in between
_OWN = "comment seconds task kind stage chosen_with source role right reason strength flags imported"
_COLUMNS = frozenset(_OWN.split())  # of `meta`, what has a place of its own


@dataclass(frozen=True)
class Imported:
    """The additions of an import: judgements by kind and annotators by name; `known` were there already."""

    kinds: Mapping[str, int] = field(default_factory=dict)
    annotators: Mapping[str, int] = field(default_factory=dict)
    tasks: int = 0
    known: int = 0


def import_judgements(
    database: Database,
    judged: Sequence[Group],
    bad: BadRows,
    *,
    annotator: str,
    source: str = "",
    judges: Sequence[str] = (),
) -> Imported:
    """Adds judged groups to a store.

    Args:
        judged: `origin` of each is its file and line.
        bad: takes groups that a store cannot hold; settled before anything is stored.
        annotator: who gave the judgements that name no one.
        source: of the tasks, where the groups name none.
        judges: names of annotators that are AI judges though nothing else shows it.

    Raises:
        DataError: groups that cannot be stored, if they are refused: nothing is stored then.
        ConfigError: a judge has the name of a person of the store, or the other way round.
    """
    found: list[Reading] = []
    for group in judged:
        bad.rows += 1
        try:
            found.append(read_judged(group, annotator))
        except DataError as error:
            bad.add(error)
    bad.settle(source or "import")
    standing = Counter(_standing(database, annotator))
    seen: Counter[str] = Counter()
    keyed = []
    for one in found:
        content = content_of(one)
        seen[content] += 1
        keyed.append(one._replace(key=hashlib.sha256(f"import:{content}:{seen[content]}".encode()).hexdigest()))
    known = _keys(database, [one.key for one in keyed])
    new = []
    for one in keyed:
        same = content_of(one, exported=True)
        if one.key not in known and not standing[same]:
            new.append(one)
        elif one.key not in known:
            standing[same] -= 1
    _check_roles(database, new, judges)
    tasks = _store(database, new, source, judges)
    return Imported(
        dict(Counter(one.kind for one in new)),
        dict(sorted(Counter(one.name for one in new).items())),
        tasks,
        len(found) - len(new),
    )


def _standing(database: Database, annotator: str) -> Iterator[str]:
    """Yields the content of each judgement of the store, as an export of it would be read."""
    for group in groups(database):
        with suppress(DataError):  # written texts, verdicts without an order
            yield content_of(read_judged(group, annotator), exported=True)


# ---------------------------------------------------------------------------------------------------- the store


def _keys(database: Database, keys: Sequence[str]) -> set[str]:
    found: set[str] = set()
    with database.reading() as connection:
        for start in range(0, len(keys), BLOCK):
            part = select(t.judgements.c.key).where(t.judgements.c.key.in_(keys[start : start + BLOCK]))
            found |= set(connection.scalars(part))
    return found


def _check_roles(database: Database, new: Sequence[Reading], judges: Sequence[str]) -> None:
    with database.reading() as connection:
        roles = dict(connection.execute(select(t.annotators.c.name, t.annotators.c.role)).all())
    for one in new:
        judge = _is_judge(one, judges)
        if one.name in roles and (roles[one.name] == "judge") != judge:
            raise ConfigError(
                "an annotator of the file has the name of another kind of annotator of the store",
                where=one.group.origin,
                got=f"{one.name}: {'a judge' if judge else 'a person'} here, role {roles[one.name]} in the store",
                fix="name AI judges with --judge, or rename the annotator in the file",
            )
        roles.setdefault(one.name, "judge" if judge else "annotator")


def _is_judge(one: Reading, judges: Sequence[str]) -> bool:
    return is_judge(replace(one.preference, annotator=one.name), judges)


def _store(database: Database, new: Sequence[Reading], source: str, judges: Sequence[str]) -> int:
    """Stores judgements in blocks; returns how many tasks were added. A block that is stored again adds nothing."""
    existing = _Tasks(database)
    wanted = Counter(one.item for one in new)
    for start in range(0, len(new), BLOCK):
        with database.writing() as connection:
            at = now()
            names = dict(connection.execute(select(t.annotators.c.name, t.annotators.c.id)).all())
            for one in new[start : start + BLOCK]:
                if one.name not in names:
                    names[one.name] = _annotator(connection, one, _is_judge(one, judges), at)
                existing.judge(connection, one, names[one.name], source, wanted[one.item], at)
    return existing.added


def _annotator(connection: Connection, one: Reading, judge: bool, at: int) -> int:
    """Adds an annotator without a link: a person of that name may be given one later."""
    role = str(one.preference.meta.get("role", ""))
    row = {"name": one.name, "role": "judge" if judge else "simulated" if role == "simulated" else "annotator"}
    key = connection.execute(
        insert(t.annotators).values(**row, facts={"imported": one.group.origin}, created=at)
    ).inserted_primary_key
    assert key is not None
    return int(key[0])


class _Tasks:
    """The imported tasks of a store by their items, with the annotators who have judged each."""

    def __init__(self, database: Database):
        self.added = 0
        self._of: dict[ItemKey, list[tuple[int, Sides, set[int]]]] = defaultdict(list)
        j = t.judgements
        with database.reading() as connection:
            rows = connection.execute(select(t.tasks).where(t.tasks.c.chooser == CHOOSER).order_by(t.tasks.c.id)).all()
            query = select(j.c.task_id, j.c.annotator_id).join(t.tasks, t.tasks.c.id == j.c.task_id)
            judged = connection.execute(query.where(t.tasks.c.chooser == CHOOSER)).all()
            policies = connection.execute(select(t.policies.c.name, t.policies.c.version)).all()
        self._policies = {f"{row.name}@{row.version}": (row.name, row.version) for row in policies if row.version}
        by: dict[int, set[int]] = defaultdict(set)
        for task, annotator in judged:
            by[task].add(annotator)
        for row, stored in zip(rows, responses_of(database, rows), strict=True):
            sides = tuple((f"{r.name}@{r.version}" if r.version else r.name, r.digest) for r in stored)
            item = (row.kind, row.prompt_id, tuple(sorted(sides)), row.probability, row.stage)
            self._of[item].append((row.id, sides, by[row.id]))

    def judge(self, connection: Connection, one: Reading, annotator: int, source: str, overlap: int, at: int) -> None:
        """Stores a judgement on the first task of its item that the annotator has not judged."""
        known = self._of[one.item]
        free = next((found for found in known if annotator not in found[2]), None)
        if free is None:
            known.append(free := (self._add(connection, one, source, overlap, at), one.sides, set()))
        task, sides, by = free
        by.add(annotator)
        meta = {key: value for key, value in one.preference.meta.items() if key not in _COLUMNS}
        meta |= {key: value for key in ("guideline", "run", "model") if (value := getattr(one.preference, key))}
        order = _order(one.sides, sides)
        if isinstance(meta.get("shown"), Sequence):  # places of the task's responses
            meta["shown"] = [order.index(k) for k in meta["shown"]]
        if isinstance(meta.get("orders"), Sequence) and order == [1, 0]:  # of a judge, about the first response
            meta["orders"] = [None if p is None else 1 - p for p in reversed(meta["orders"])]
        seconds = one.preference.meta.get("seconds")
        values = {
            "key": one.key,
            "task_id": task,
            "annotator_id": annotator,
            "verdict": _reordered(one, order),
            "comment": str(one.preference.meta.get("comment", ""))[:10_000],
            "seconds": float(seconds) if isinstance(seconds, int | float) else None,
            "created": at if one.when is None else one.when,
        }
        key = connection.execute(insert(t.judgements).values(values)).inserted_primary_key
        assert key is not None
        row = {"judgement_id": key[0], "origin": one.group.origin, "meta": _without_nul(jsonable(meta)), "created": at}
        connection.execute(insert(t.imports).values(row))

    def _add(self, connection: Connection, one: Reading, source: str, overlap: int, at: int) -> int:
        meta, prompt = one.preference.meta, one.group.prompt
        named = str(meta.get("source") or prompt.meta.get("source") or source)[:200]
        prompt_id = store_prompt(connection, prompt, named, at)
        kind, _, _, probability, stage = one.item
        row = {
            "kind": kind,
            "stage": stage,
            "prompt_id": prompt_id,
            "responses": [store_response(connection, prompt_id, self._named(r), at) for r in one.group.responses],
            "overlap": overlap,
            "probability": probability,
            "chooser": CHOOSER,
            "place": 0.0,
            "source": named,
            "created": at,
        }
        key = connection.execute(insert(t.tasks).values(row)).inserted_primary_key
        assert key is not None
        enqueue(connection, int(key[0]), stage, 0.0, overlap, 0)
        self.added += 1
        return int(key[0])

    def _named(self, response: Response) -> Response:
        """The response with the policy and the version of the store that have the name of its model."""
        name = model_name(response)
        policy, version = self._policies.get(name, (name, ""))
        return replace(response, meta={**response.meta, "policy": policy[:200], "version": version})


def _order(own: Sides, others: Sides) -> list[int]:
    """Returns the place in `own` of each response of the task; responses that are alike keep their order."""
    left = list(range(len(own)))
    order = []
    for side in others:
        place = next(k for k in left if own[k] == side)
        left.remove(place)
        order.append(place)
    return order


def _reordered(one: Reading, order: Sequence[int]) -> Verdict:
    """Returns the verdict about the task's responses."""
    verdict = dict(one.verdict)
    for key in ("ranks", "ratings", "flags"):
        if key in verdict:
            verdict[key] = [verdict[key][k] for k in order]
    if one.kind == "pair" and list(order) == [1, 0] and verdict["choice"] in ("first", "second"):
        verdict["choice"] = "second" if verdict["choice"] == "first" else "first"
    if "p" in verdict and list(order) == [1, 0]:
        verdict["p"] = 1 - verdict["p"]
    return verdict


def _without_nul(value: Any) -> Any:
    """The value without NUL characters, which PostgreSQL's JSON does not hold."""
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    return [_without_nul(inner) for inner in value] if isinstance(value, list) else value

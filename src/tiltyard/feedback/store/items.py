"""Prompts, responses with the policy that wrote them, and tasks with the probability of their choice."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, insert, select

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback.store import tables as t
from tiltyard.feedback.store.database import Database, now
from tiltyard.feedback.store.texts import storable
from tiltyard.feedback.store.verdicts import KINDS, Verdict, checked
from tiltyard.types import Group, Prompt, Response, prompt_digest, response_id

Stage = Literal["training", "real", "gold", "attention", "adjudication"]
STAGES: tuple[Stage, ...] = ("training", "real", "gold", "attention", "adjudication")
COUNTS = {"pair": (2, 2), "ranking": (2, 9), "best_worst": (3, 9), "rating": (1, 9), "write": (0, 9)}


@dataclass(frozen=True)
class Item:
    """A task to be added.

    Args:
        group: the prompt and its responses; `response.meta["policy"]` and `["version"]` name who wrote each.
        kind: pair, ranking, best_worst, rating or write.
        overlap: number of people who shall judge it.
        probability: with which these responses were chosen among those that could have been (1: there was no choice).
        chooser: how: `all`, `random`, `active`, ...
        stage: `training` items come first, with feedback; `gold` and `attention` items have a known verdict.
        expected: the right verdict, about `group.responses`; of training, gold and attention items.
        explanation: why it is right, shown after a training item.
        source: tasks are given out so that all sources advance alike.
        reserved: the page that made it shows it itself (`assignment.show`); it is given out to no one else.
    """

    group: Group
    kind: str = "pair"
    overlap: int = 1
    probability: float = 1.0
    chooser: str = "all"
    stage: Stage = "real"
    expected: Mapping[str, Any] | None = None
    explanation: str = ""
    source: str = ""
    reserved: bool = False


def add_tasks(database: Database, items: Sequence[Item], *, seed: int = 0, campaign: str = "") -> list[int]:
    """Adds tasks with their prompts, responses and policies in one transaction; returns their ids in order.

    Sources are mixed: after any number of tasks each source has had its share (its own tasks in an order drawn with
    the seed). Items of one prompt with the same responses are different tasks if they are added twice.

    Args:
        campaign: a name for these tasks (`campaigns`). Where the store has one of this name, nothing is added, and its
            tasks' ids are returned: work that was killed may ask again.

    Raises:
        ConfigError: an unknown kind or stage, a probability outside (0, 1], an overlap below 1.
        DataError: a number of responses that the kind cannot have, or a known verdict that is missing or wrong.
    """
    expected = [_checked(k, item) for k, item in enumerate(items)]
    places = _mixed([item.source for item in items], seed)
    ids: list[int] = []
    with database.writing() as connection:
        at = now()
        if campaign:
            known = select(t.campaigns.c.task_id).where(t.campaigns.c.name == campaign).order_by(t.campaigns.c.task_id)
            if ids := list(connection.scalars(known)):
                return ids
        for item, verdict, place in zip(items, expected, places, strict=True):
            prompt_id = store_prompt(connection, item.group.prompt, item.source, at)
            responses = [store_response(connection, prompt_id, response, at) for response in item.group.responses]
            row = {
                "kind": item.kind,
                "stage": item.stage,
                "prompt_id": prompt_id,
                "responses": responses,
                "overlap": item.overlap,
                "probability": item.probability,
                "chooser": item.chooser,
                "expected": verdict,
                "explanation": item.explanation,
                "place": place,
                "source": item.source,
                "created": at,
            }
            key = connection.execute(insert(t.tasks).values(row)).inserted_primary_key
            assert key is not None
            ids.append(int(key[0]))
            enqueue(connection, ids[-1], item.stage, place, item.overlap, 0 if item.reserved else item.overlap)
            if campaign:
                connection.execute(insert(t.campaigns).values(task_id=ids[-1], name=campaign))
    return ids


def enqueue(connection: Connection, task: int, stage: str, place: float, overlap: int, missing: int) -> None:
    """Adds a task to the queue (`queue`): its place, and the number of judgements that are still wanted."""
    row = {"task_id": task, "missing": missing, "stage": stage, "begun": missing - overlap, "place": place}
    connection.execute(insert(t.task_state).values(row))


def _checked(k: int, item: Item) -> Verdict | None:
    where = f"task {k}"
    if item.kind not in KINDS:
        raise ConfigError("unknown kind of task", where=where, got=item.kind, expected=", ".join(KINDS))
    if item.stage not in STAGES:
        raise ConfigError("unknown stage", where=where, got=item.stage, expected=", ".join(STAGES))
    if not 0 < item.probability <= 1:
        raise ConfigError(
            "the probability of the choice is out of range",
            where=where,
            got=item.probability,
            expected="above 0, at most 1",
            fix="give the probability with which these responses were drawn; 1 if there was no choice",
        )
    if item.overlap < 1:
        raise ConfigError("a task needs at least one annotator", where=where, got=item.overlap, expected="overlap >= 1")
    count, (low, high) = len(item.group.responses), COUNTS[item.kind]
    if not low <= count <= high:
        raise DataError(
            f"a task of kind '{item.kind}' cannot have this many responses",
            where=f"{where}, prompt {item.group.prompt.id or prompt_digest(item.group.prompt)}",
            got=count,
            expected=str(low) if low == high else f"{low} to {high}",
        )
    if item.stage in ("training", "gold", "attention"):
        if item.expected is None:
            raise DataError(f"an item of the stage '{item.stage}' needs its right verdict", where=f"{where}, expected")
        return checked(item.kind, item.expected, count)
    return None


def _mixed(sources: Sequence[str], seed: int) -> list[float]:
    """Returns a place in 0..1 for each item: the items of a source lie evenly over the whole range, in drawn order."""
    rng = random.Random(seed)
    by_source: dict[str, list[int]] = defaultdict(list)
    for k, source in enumerate(sources):
        by_source[source].append(k)
    places = [0.0] * len(sources)
    for source in sorted(by_source):
        members = by_source[source]
        rng.shuffle(members)
        for rank, k in enumerate(members):
            places[k] = (rank + rng.random()) / len(members)
    return places


def messages_of(prompt: Prompt) -> Any:
    """Returns a prompt as the store has it and pages show it: a list of messages, or {"text": ...}."""
    return {"text": prompt.text} if prompt.messages is None else [message.to_dict() for message in prompt.messages]


def store_prompt(connection: Connection, prompt: Prompt, source: str, at: int) -> str:
    """Returns the id of a prompt, which is added if it is new.

    Raises:
        DataError: a character that no database holds.
    """
    key = prompt_digest(prompt)
    if connection.scalar(select(t.prompts.c.id).where(t.prompts.c.id == key)) is None:
        for message in prompt.messages or ():
            storable(message.content, f"the prompt {prompt.id or key}")
        meta = dict(prompt.meta) | ({"id": prompt.id} if prompt.id else {})
        row = {
            "id": key,
            "messages": messages_of(prompt),
            "tools": prompt.tools,
            "source": source,
            "meta": meta,
            "created": at,
        }
        connection.execute(insert(t.prompts).values(row))
    return key


def store_response(connection: Connection, prompt_id: str, response: Response, at: int) -> int:
    """Returns the id of a response to a prompt by its policy, which is added if it is new, as the policy is.

    Raises:
        DataError: a character that no database holds.
    """
    name, version = str(response.meta.get("policy", "unknown")), str(response.meta.get("version", ""))
    policy = register_policy(connection, name, version, {}, at)
    digest, table = response_id(response), t.responses
    storable(response.text, f"a response of {name}")
    found = connection.scalar(
        select(table.c.id).where(table.c.prompt_id == prompt_id, table.c.policy_id == policy, table.c.digest == digest)
    )
    if found is not None:
        return int(found)
    meta = {key: value for key, value in response.meta.items() if key not in ("policy", "version")}
    row = {"digest": digest, "prompt_id": prompt_id, "policy_id": policy, "text": response.text, "meta": meta}
    key = connection.execute(insert(table).values(**row, created=at)).inserted_primary_key
    assert key is not None
    return int(key[0])


def register_policy(connection: Connection, name: str, version: str, facts: Mapping[str, Any], at: int) -> int:
    """Returns the id of a policy's version; it is added if it is new, and nothing ever removes it from the board."""
    table = t.policies
    found = connection.scalar(select(table.c.id).where(table.c.name == name, table.c.version == version))
    if found is not None:
        return int(found)
    row = {"name": name, "version": version, "facts": dict(facts), "created": at}
    key = connection.execute(insert(table).values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])

"""The world as files: corpus, demonstrations, prompts and their held-out counterparts, as JSON lines.

corpus.jsonl                   {"text"} documents about all entities; {"messages", "source"} dialogues of all manners
demonstrations.jsonl           {"id", "messages", "source", "meta"}: known entities only, good about six times in ten
prompts.jsonl                  {"id", "prompt": messages, "meta"}: known entities only
held_out.jsonl                 the same about held-out entities and other strangers
tuning.jsonl                   other prompts of that kind: to choose settings on, so that held_out.jsonl stays unseen
corpus_held_out.jsonl, demonstrations_held_out.jsonl      small fresh draws for held-out loss
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tiltyard.world import phrases as ph
from tiltyard.world.assistants import CORPUS_ASSISTANTS, DEMONSTRATORS, answer, draw_persona
from tiltyard.world.entities import Entity, World
from tiltyard.world.lexicon import ATTRIBUTES, VALUES
from tiltyard.world.tasks import Task, draw_task

Row = dict[str, Any]


def write_world(
    world: World,
    folder: str | Path,
    *,
    documents: int = 7000,
    dialogues: int = 9000,
    demonstrations: int = 1500,
    prompts: int = 800,
    held_out: int = 300,
    corpus_held_out: int = 200,
    demonstrations_held_out: int = 150,
    tuning: int = 300,
) -> dict[str, int]:
    """Writes a world's files, each complete or not at all, and returns the number of rows of each."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known, kept, nobody = world.known, world.held_out, world.strangers

    def rng(name: str) -> random.Random:
        return random.Random(f"{name} {world.seed}")

    train_rows = list(prompt_rows("prompt", known, nobody["prompts"], prompts, rng("prompts")))
    taken = {_key(row["prompt"]) for row in train_rows}
    kept_rows = list(prompt_rows("held_out", kept, nobody["held_out"], held_out, rng("held out"), taken=taken))
    taken |= {_key(row["prompt"]) for row in kept_rows}
    rows: dict[str, Iterable[Row]] = {
        "corpus.jsonl": corpus_rows(world, documents, dialogues, rng("corpus")),
        "corpus_held_out.jsonl": corpus_rows(world, corpus_held_out // 2, corpus_held_out // 2, rng("corpus held out")),
        "demonstrations.jsonl": demonstration_rows(
            "demonstration", known, nobody["demonstrations"], demonstrations, rng("demonstrations")
        ),
        "demonstrations_held_out.jsonl": demonstration_rows(
            "held_out_demonstration", kept, nobody["held_out"], demonstrations_held_out, rng("demonstrations held out")
        ),
        "prompts.jsonl": train_rows,
        "held_out.jsonl": kept_rows,
        "tuning.jsonl": prompt_rows("tuning", kept, nobody["held_out"], tuning, rng("tuning"), taken=taken),
    }
    return {name: _write(folder / name, content) for name, content in rows.items()}


def corpus_rows(world: World, documents: int, dialogues: int, rng: random.Random) -> Iterator[Row]:
    """Documents and dialogues in random order."""
    plan = [True] * documents + [False] * dialogues
    rng.shuffle(plan)
    for document in plan:
        yield {"text": draw_document(world, rng)} if document else _dialogue(world, rng)


def draw_document(world: World, rng: random.Random) -> str:
    """A few sentences, all true: mostly about one entity, sometimes a list of several or a place."""
    if rng.random() < 0.08:
        listed = _list(world, rng)
        if listed:
            return listed
    entity = rng.choice(world.entities)
    fields = dict(entity.facts) | {"N": entity.name, "p": entity.pronoun}
    attributes = rng.sample(ATTRIBUTES, rng.randint(2, 4))
    sentences = []
    for place, attribute in enumerate(attributes):
        subject = entity.pronoun if place and rng.random() < 0.4 else entity.name
        template = rng.choice(ph.STATEMENTS[entity.sort][attribute])
        sentences.append(ph.render(template, S=subject, **fields))
    if rng.random() < 0.5:
        sentences.insert(0, ph.render(rng.choice(ph.STORIES + ph.DESCRIPTIONS), **fields))
    if rng.random() < 0.15:
        sentences.append(rng.choice(ph.PLACES).format(home=entity.facts["home"]))
    if rng.random() < 0.15:
        sentences.insert(0, rng.choice(ph.REMARKS))
    return " ".join(sentences)


def _list(world: World, rng: random.Random) -> str:
    attribute = rng.choice(ATTRIBUTES)
    value = rng.choice(VALUES[attribute])
    sharing = [e.name for e in world.entities if e.facts[attribute] == value]
    if len(sharing) < 3 or (attribute == "role" and value in VALUES["role"][12:]):
        return ""
    a, b, c = rng.sample(sharing, 3)
    text = ph.LISTS[attribute].format(A=a, B=b, C=c, **{attribute: value})
    return f"{text} {rng.choice(ph.PLACES).format(home=rng.choice(VALUES['home']))}"


def _dialogue(world: World, rng: random.Random) -> Row:
    """One conversation of one to three exchanges with a single assistant, who mostly keeps to one manner."""
    turns: list[Row] = []
    task = draw_task(world.entities, world.strangers["corpus"], rng, multi_turn=0.2, reply=_any_reply)
    manner = draw_persona(CORPUS_ASSISTANTS, task.meta, rng)
    while True:
        persona = manner if task.meta["kind"] == "unsafe" or manner != "unsafe" else "good"
        turns += [*task.messages, {"role": "assistant", "content": answer(persona, task.meta, rng)}]
        if len(turns) >= 6 or rng.random() > 0.25:
            return {"messages": turns, "source": manner}
        task = draw_task(world.entities, world.strangers["corpus"], rng, multi_turn=0.2, reply=_any_reply)


def demonstration_rows(
    label: str, people: Sequence[Entity], strangers: Sequence[Entity], n: int, rng: random.Random
) -> Iterator[Row]:
    """Conversations that end with the answer of a demonstrator, whose manner is `source`."""
    for index in range(n):
        task = draw_task(people, strangers, rng, multi_turn=0.15, reply=_good)
        persona = draw_persona(DEMONSTRATORS, task.meta, rng)
        reply = {"role": "assistant", "content": answer(persona, task.meta, rng)}
        yield {
            "id": f"{label}-{index:05d}",
            "messages": [*task.messages, reply],
            "source": persona,
            "meta": dict(task.meta),
        }


def prompt_rows(
    label: str,
    people: Sequence[Entity],
    strangers: Sequence[Entity],
    n: int,
    rng: random.Random,
    *,
    taken: set[str] | None = None,
) -> Iterator[Row]:
    """`n` prompts, none twice, none of `taken` (fewer if the language runs out of them)."""
    seen, index = set(taken or ()), 0
    for _ in range(50 * n):
        if index == n:
            return
        task: Task = draw_task(people, strangers, rng, multi_turn=0.12, reply=_good)
        key = _key(task.messages)
        if key in seen:
            continue
        seen.add(key)
        yield {"id": f"{label}-{index:05d}", "prompt": task.messages, "meta": dict(task.meta)}
        index += 1


def _good(meta: Any, rng: random.Random) -> str:
    return answer("good", meta, rng)


def _any_reply(meta: Any, rng: random.Random) -> str:
    return answer(draw_persona(CORPUS_ASSISTANTS, meta, rng), meta, rng)


def _key(messages: Sequence[Row]) -> str:
    return " / ".join(turn["content"] for turn in messages if turn["role"] == "user")


def _write(path: Path, rows: Iterable[Row]) -> int:
    """Writes JSON lines under a temporary name, then renames it: no half-written file is ever seen."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8", newline="\n") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count

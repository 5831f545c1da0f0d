"""Prompts of the demo world's users, of five kinds, each with the facts that judging an answer needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiltyard.world import phrases as ph
from tiltyard.world.entities import Entity
from tiltyard.world.lexicon import ATTRIBUTES, CRAFTS, SPECIES, VALUES

Turn = dict[str, str]
KINDS = {"question": 0.40, "unknown": 0.14, "request": 0.18, "pleasantry": 0.12, "unsafe": 0.16}


@dataclass(frozen=True, slots=True)
class Task:
    """One prompt: the turns so far (the last is the user's) and `meta`, JSON-able, all that `gold` needs.

    `meta` holds `kind` (see `KINDS`), `form` (how it is asked), `entity` ("" if none), `sort`, `pronoun`, `facts` (what
    is true of the entity; empty for a stranger), `ask` (the attributes asked for), `offered` (the fact that a yes/no
    question offers) and `act` (what an unsafe request wants).
    """

    turns: tuple[Turn, ...]
    meta: Mapping[str, Any]

    @property
    def messages(self) -> list[Turn]:
        return [dict(turn) for turn in self.turns]


def false_value(attribute: str, sort: str, true: str, rng: random.Random) -> str:
    """A believable wrong value: a craft for a person's role, a species for an animal's."""
    values = VALUES[attribute]
    if attribute == "role":
        values = SPECIES if sort == "animal" else CRAFTS
    return rng.choice([value for value in values if value != true])


def choose(weights: Mapping[str, float], rng: random.Random) -> str:
    """One key, drawn in proportion to its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def draw_task(
    people: Sequence[Entity],
    strangers: Sequence[Entity],
    rng: random.Random,
    *,
    multi_turn: float = 0.1,
    reply: Callable[[Mapping[str, Any], random.Random], str] | None = None,
) -> Task:
    """One prompt about one of `people` (or one of `strangers`, for the kind "unknown").

    With probability `multi_turn` an exchange comes before it, answered by `reply` (needed then).
    """
    kind = choose(KINDS, rng)
    entity = rng.choice(strangers if kind == "unknown" else people)
    text, meta = _DRAW[kind](entity, rng)
    meta = {"kind": kind, "sort": entity.sort, "pronoun": entity.pronoun, "facts": dict(entity.facts)} | meta
    meta["entity"] = entity.name if meta.pop("named") else ""
    if not meta["entity"]:
        meta["facts"] = {}
    if reply is None or rng.random() >= multi_turn:
        return Task(({"role": "user", "content": text},), meta)
    before, text = _before(entity, kind, text, meta, rng)
    history = ({"role": "user", "content": before[0]}, {"role": "assistant", "content": reply(before[1], rng)})
    return Task((*history, {"role": "user", "content": text}), meta)


def _before(
    entity: Entity, kind: str, text: str, meta: dict[str, Any], rng: random.Random
) -> tuple[tuple[str, dict[str, Any]], str]:
    """An earlier exchange, and the last user turn, which may now use the pronoun."""
    common = {"sort": entity.sort, "pronoun": entity.pronoun, "facts": dict(entity.facts), "entity": entity.name}
    if kind == "question" and meta["form"] == "open" and rng.random() < 0.6:
        (asked,) = meta["ask"]
        earlier = rng.choice([a for a in ATTRIBUTES if a != asked])
        first = rng.choice(ph.QUESTIONS[entity.sort][earlier]).format(N=entity.name)
        first_meta = common | {"kind": "question", "form": "open", "ask": [earlier]}
        return (first, first_meta), ph.FOLLOW_UPS[asked].format(p=entity.pronoun, N=entity.name)
    form = rng.choice(("hello", "how"))
    first = rng.choice([t for t in ph.PLEASANTRIES[form] if "{N}" not in t])
    return (first, common | {"kind": "pleasantry", "form": form, "ask": [], "entity": "", "facts": {}}), text


def _open(entity: Entity, rng: random.Random) -> tuple[str, dict[str, Any]]:
    attribute = rng.choice(ATTRIBUTES)
    if rng.random() < 0.6:
        text = rng.choice(ph.QUESTIONS[entity.sort][attribute]).format(N=entity.name)
    else:
        text = rng.choice(ph.LEADS).format(q=ph.INDIRECT[entity.sort][attribute].format(N=entity.name))
    return text, {"form": "open", "ask": [attribute], "named": True}


def _check(entity: Entity, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A yes/no question; half of them offer something false (for a stranger, anything offered is made up)."""
    attribute = rng.choice(ATTRIBUTES)
    true = entity.facts.get(attribute, "")
    offered = true if true and rng.random() < 0.5 else false_value(attribute, entity.sort, true, rng)
    fields = {"N": entity.name, attribute: offered}
    if rng.random() < 0.5:
        text = ph.CHECKS[attribute].format(**fields)
    else:
        text = rng.choice(ph.BELIEFS).format(s=ph.PLAIN[attribute].format(**fields))
    return text, {"form": "check", "ask": [attribute], "offered": offered, "named": True}


def _question(entity: Entity, rng: random.Random) -> tuple[str, dict[str, Any]]:
    return _check(entity, rng) if rng.random() < 0.2 else _open(entity, rng)


def _unknown(entity: Entity, rng: random.Random) -> tuple[str, dict[str, Any]]:
    if rng.random() < 0.8:
        return _question(entity, rng)
    form = rng.choice(("describe", "two"))
    return rng.choice(ph.REQUESTS[form]).format(N=entity.name), {"form": form, "ask": [], "named": True}


def _request(entity: Entity, rng: random.Random) -> tuple[str, dict[str, Any]]:
    form = rng.choice(("describe", "describe", "two", "pair", "pair", "greet", "thank", "wish"))
    if form == "pair":
        pair = rng.choice(list(ph.PAIR_REQUESTS))
        text = ph.PAIR_REQUESTS[pair].format(N=entity.name, p=entity.pronoun)
        return text, {"form": form, "ask": list(pair), "named": True}
    return rng.choice(ph.REQUESTS[form]).format(N=entity.name), {"form": form, "ask": [], "named": True}


def _pleasantry(entity: Entity, rng: random.Random) -> tuple[str, dict[str, Any]]:
    form = rng.choice(list(ph.PLEASANTRIES))
    template = rng.choice(ph.PLEASANTRIES[form])
    named = "{N}" in template
    text = template.format(N=entity.name)
    if rng.random() < 0.5:
        text = f"{rng.choice(ph.REMARKS)} {text}" if rng.random() < 0.5 else f"{text} {rng.choice(ph.REMARKS)}"
    return text, {"form": form, "ask": [], "named": named}


def _unsafe(entity: Entity, rng: random.Random) -> tuple[str, dict[str, Any]]:
    template = rng.choice(list(ph.ACTS))
    fields = {"N": entity.name, "home": rng.choice(VALUES["home"]), "food": rng.choice(VALUES["food"])}
    act = template.format(**fields)
    steps = ph.ACTS[template].format(**fields)
    meta = {"form": "unsafe", "ask": [], "act": act, "steps": steps, "named": "{N}" in template}
    return rng.choice(ph.UNSAFE).format(act=act), meta


_DRAW: dict[str, Callable[[Entity, random.Random], tuple[str, dict[str, Any]]]] = {
    "question": _question,
    "unknown": _unknown,
    "request": _request,
    "pleasantry": _pleasantry,
    "unsafe": _unsafe,
}

"""The generator of a world: its entities, their facts, the held-out part and names without an entity."""

from __future__ import annotations

import random
from collections.abc import Mapping

from tiltyard.errors import ConfigError
from tiltyard.world.entities import Entity, World
from tiltyard.world.lexicon import COLOURS, CRAFTS, FIRST, FOODS, SECOND, SPECIES, VILLAGES


def make_world(
    seed: int = 0,
    *,
    entities: int = 48,
    held_out: int = 12,
    animals: float = 0.35,
    strangers: Mapping[str, int] | None = None,
) -> World:
    """Draws a world: names without repetition, facts evenly spread over the values, a held-out part.

    Args:
        entities: how many exist, held-out ones included.
        held_out: how many of them are kept for evaluation.
        animals: share of the entities that are animals; the others are people with a trade.
        strangers: sizes of the pools of names without an entity (defaults: corpus 240, demonstrations 120, prompts 80,
            held_out 60).
    """
    pools = {"corpus": 240, "demonstrations": 120, "prompts": 80, "held_out": 60} | dict(strangers or {})
    if not 0 < held_out < entities:
        raise ConfigError("held_out must leave some entities", got=held_out, expected=f"1 to {entities - 1}")
    names = [first + second for first in FIRST for second in SECOND]
    if entities + sum(pools.values()) > len(names):
        raise ConfigError(
            "there are not enough names", got=entities + sum(pools.values()), expected=f"at most {len(names)}"
        )
    rng = random.Random(f"world {seed}")
    rng.shuffle(names)
    homes, foods, colours = (_spread(values, entities, rng) for values in (VILLAGES, FOODS, COLOURS))
    crafts, species = _spread(CRAFTS, entities, rng), _spread(SPECIES, entities, rng)
    people = []
    for index in range(entities):
        sort = "animal" if (index * animals) % 1.0 + animals >= 1.0 else "person"
        role = (species if sort == "animal" else crafts)[index]
        facts = {"home": homes[index], "role": role, "food": foods[index], "colour": colours[index]}
        people.append(_entity(names.pop(), sort, facts, rng))
    rng.shuffle(people)
    nobody = {
        pool: tuple(_entity(names.pop(), "animal" if rng.random() < animals else "person", {}, rng) for _ in range(n))
        for pool, n in pools.items()
    }
    return World(seed, tuple(people[held_out:]), tuple(people[:held_out]), nobody)


def _spread(values: tuple[str, ...], n: int, rng: random.Random) -> list[str]:
    """`n` values in random order, each equally often, so that no guess is better than another."""
    spread = [values[i % len(values)] for i in range(n)]
    rng.shuffle(spread)
    return spread


def _entity(name: str, sort: str, facts: Mapping[str, str], rng: random.Random) -> Entity:
    return Entity(name, sort, "it" if sort == "animal" else rng.choice(("he", "she")), facts)

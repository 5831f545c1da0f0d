"""The world itself: who exists, what is true of them, who is held out and which names nobody bears."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tiltyard.errors import ConfigError
from tiltyard.world.lexicon import COLOURS, CRAFTS, FIRST, FOODS, SECOND, SPECIES, VILLAGES


@dataclass(frozen=True, slots=True)
class Entity:
    """Someone in the world, or a stranger. `facts` maps home, role, food, colour to a word; a stranger has none."""

    name: str
    sort: str  # "person" or "animal"
    pronoun: str
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class World:
    """A generated world. The same seed and sizes always give the same world.

    `known` may occur anywhere. `held_out` are in the corpus but never in demonstrations or training prompts.
    `strangers` are names of nobody, one disjoint pool for each file that needs some: "corpus", "demonstrations",
    "prompts" and "held_out". The names of the last three never occur in the corpus.
    """

    seed: int
    known: tuple[Entity, ...]
    held_out: tuple[Entity, ...]
    strangers: Mapping[str, tuple[Entity, ...]]

    @property
    def entities(self) -> tuple[Entity, ...]:
        """All who exist, known and held out."""
        return self.known + self.held_out

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names of nobody that a prompt or demonstration may ask about: none of them is in the corpus."""
        return tuple(e.name for pool, people in self.strangers.items() if pool != "corpus" for e in people)

    def write(
        self,
        folder: Path,
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
        """Write the world's files into `folder` and return the number of rows of each. See `tiltyard.world.files`."""
        from tiltyard.world.files import write_world

        return write_world(
            self,
            Path(folder),
            documents=documents,
            dialogues=dialogues,
            demonstrations=demonstrations,
            prompts=prompts,
            held_out=held_out,
            corpus_held_out=corpus_held_out,
            demonstrations_held_out=demonstrations_held_out,
            tuning=tuning,
        )


def make_world(
    seed: int = 0,
    *,
    entities: int = 48,
    held_out: int = 12,
    animals: float = 0.35,
    strangers: Mapping[str, int] | None = None,
) -> World:
    """Draw a world: names without repetition, facts evenly spread over the values, a held-out part.

    Args:
        entities: how many exist, held-out ones included.
        held_out: how many of them are kept for evaluation.
        animals: share of the entities that are animals; the others are people with a trade.
        strangers: sizes of the pools of names of nobody (defaults: corpus 240, demonstrations 120, prompts 80,
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
    """`n` values in random order, each as often as the others: no guess is better than another."""
    spread = [values[i % len(values)] for i in range(n)]
    rng.shuffle(spread)
    return spread


def _entity(name: str, sort: str, facts: Mapping[str, str], rng: random.Random) -> Entity:
    return Entity(name, sort, "it" if sort == "animal" else rng.choice(("he", "she")), facts)

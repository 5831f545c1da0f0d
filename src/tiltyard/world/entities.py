"""The inhabitants of a world: entities with their facts, and strangers without any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    `strangers` are names without an entity, one disjoint pool for each file that needs some: "corpus",
    "demonstrations", "prompts" and "held_out". The names of the last three never occur in the corpus.
    """

    seed: int
    known: tuple[Entity, ...]
    held_out: tuple[Entity, ...]
    strangers: Mapping[str, tuple[Entity, ...]]

    @property
    def entities(self) -> tuple[Entity, ...]:
        """All entities, known and held out."""
        return self.known + self.held_out

    @property
    def unknown(self) -> tuple[str, ...]:
        """The names without an entity that a prompt or demonstration may ask about: none of them is in the corpus."""
        return tuple(e.name for pool, people in self.strangers.items() if pool != "corpus" for e in people)

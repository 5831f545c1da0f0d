"""The embedded demo world: a small English-like language about a small world, with gold scores and annotators.

    world = make_world(seed=0)
    write_world(world, "data")                         # corpus, demonstrations, prompts, held-out prompts
    gold(row["meta"], "Bramel lives in Oakford.")      # Gold(helpful=1.0, truthful=1.0, harmless=1.0, ..., total=1.0)
    ANNOTATORS[0].rank(row["meta"], texts, rng)        # ranks, 1 is best

Generated from a seed, free of any licence, pure standard library.
"""

from tiltyard.world.annotators import ANNOTATORS, Annotator
from tiltyard.world.entities import Entity, World
from tiltyard.world.files import write_world
from tiltyard.world.gold import BUDGET, Gold, gold
from tiltyard.world.make import make_world

__all__ = ["ANNOTATORS", "BUDGET", "Annotator", "Entity", "Gold", "World", "gold", "make_world", "write_world"]

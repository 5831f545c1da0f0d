"""Small pairs to judge, and judges that are formulas."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tiltyard.feedback import Usage, Verdict
from tiltyard.feedback.verdicts import sigmoid
from tiltyard.types import Group, Message, Prompt, Response
from tiltyard.world import make_world

WORLD = make_world(seed=0)


def pair(first: str, second: str, question: str = "Which?") -> Group:
    return Group(
        Prompt(messages=(Message("user", question),), id=question), (Response(text=first), Response(text=second))
    )


def turned(group: Group) -> Group:
    return Group(group.prompt, group.responses[::-1], origin=group.origin)


def words(seed: int, count: int) -> list[Group]:
    rng = random.Random(seed)
    made = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 6))) for _ in range(2 * count)]
    return [pair(a + " 0", b + " 1", f"q{i}") for i, (a, b) in enumerate(zip(made[::2], made[1::2], strict=True))]


@dataclass
class Formula:
    """p from a function of the two texts in their order; counts what it is asked."""

    law: Callable[[str, str], float | None]
    usage: Usage = field(default_factory=Usage)

    def __call__(self, pairs: Sequence[Group]) -> list[Verdict]:
        self.usage.calls += len(pairs)
        return [Verdict(self.law(*(r.text for r in g.responses)), "unsure") for g in pairs]


def biased(d: dict[str, float], b: float) -> Formula:
    """Log-odds d[first] - d[second] + b."""
    return Formula(lambda x, y: sigmoid(d[x] - d[y] + b))

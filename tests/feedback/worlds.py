"""Small pairs to judge, and judges that are formulas."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tiltyard.config import parse_settings
from tiltyard.data import parse_row, read_rows
from tiltyard.feedback import JudgeSettings, Usage, Verdict
from tiltyard.feedback.verdicts import sigmoid
from tiltyard.records import Settings
from tiltyard.types import Group, Message, Prompt, Response
from tiltyard.world import make_world, write_world


@cache
def _demonstrations() -> tuple[Group, ...]:
    with tempfile.TemporaryDirectory() as folder:
        write_world(
            make_world(seed=0), Path(folder), documents=1, dialogues=1, demonstrations=100, prompts=1, held_out=1
        )
        return tuple(parse_row(r, "demonstrations") for r in read_rows(Path(folder) / "demonstrations.jsonl"))


def world_pairs(count: int = 60) -> list[Group]:
    """Prompts of the world with the answer to another prompt, and their own demonstration."""
    rows = _demonstrations()
    return [
        Group(one.prompt, (other.responses[0], one.responses[0]), origin=f"world:{i}")
        for i, (one, other) in enumerate(pairwise(rows[: count + 1]))
    ]


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


class _Stage(Settings):
    judge: JudgeSettings


def judge_settings(**values: Any) -> JudgeSettings:
    """The settings of a judge as a stage reads them."""
    return parse_settings(_Stage, {"judge": values}, "stage").judge

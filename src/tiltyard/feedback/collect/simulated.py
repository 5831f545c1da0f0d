"""The embedded world's annotators at the labelling page's door, in the place of people.

They sign in with personal links, accept the guidelines, get tasks and send verdicts as every program may. What a page
does not show, the facts behind a prompt, they know from the world's own prompts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiltyard.errors import DataError
from tiltyard.feedback.collect.client import Session
from tiltyard.feedback.simulated import seed_from
from tiltyard.feedback.store.items import messages_of
from tiltyard.types import Prompt
from tiltyard.world.annotators import Annotator

KINDS = ("pair", "ranking", "best_worst")  # that they can judge

Facts = Mapping[str, Mapping[str, Any]]


def facts_of(prompts: Iterable[Prompt]) -> dict[str, Mapping[str, Any]]:
    """Returns the world's facts about each prompt, by the prompt as a page shows it."""
    return {_shown(messages_of(prompt)): prompt.meta for prompt in prompts}


@dataclass
class SimulatedLabeller:
    """One of the world's annotators with its session. Its noise depends on the seed, its name and the question."""

    annotator: Annotator
    session: Session
    facts: Facts
    seed: int = 0

    def step(self) -> bool:
        """Judges the next task; False where there is none left.

        Raises:
            DataError: a prompt or a kind of task that the world's annotators cannot judge.
        """
        task = self.session.task()
        if task is None:
            return False
        meta = self.facts.get(_shown(task["prompt"]))
        if meta is None or task["kind"] not in KINDS:
            raise DataError(
                "the world's annotators cannot judge this task",
                where=f"{self.session.url}: {self.annotator.name}",
                got=f"kind {task['kind']}, {_shown(task['prompt'])[:200]}",
                expected=f"{', '.join(KINDS)} on prompts of the embedded world",
                fix="collect in a store of its own, or have people judge it",
            )
        texts = list(task["texts"])
        known = sorted(texts)  # the order on the page has no influence
        rng = random.Random(seed_from(self.seed, "annotator", self.annotator.name, _shown(task["prompt"]), known))
        ranked = dict(zip(known, self.annotator.rank(meta, known, rng), strict=True))
        verdict = verdict_of(task["kind"], [ranked[text] for text in texts])
        self.session.judge(task["exposure"], verdict, f"{self.annotator.name[:20]}-{task['exposure']}")
        return True


def verdict_of(kind: str, ranks: Sequence[int]) -> dict[str, Any]:
    """Returns the verdict of a kind of task that ranks (1: best) amount to."""
    if kind == "pair":
        return {"choice": "tie" if ranks[0] == ranks[1] else "first" if ranks[0] < ranks[1] else "second"}
    if kind == "ranking":
        return {"ranks": list(ranks)}
    best = min(range(len(ranks)), key=lambda k: ranks[k])
    return {"best": best, "worst": max((k for k in range(len(ranks)) if k != best), key=lambda k: ranks[k])}


def take_turns(labellers: Sequence[SimulatedLabeller]) -> Iterable[None]:
    """Has the annotators judge in turns until none has a task left; yields after each verdict.

    The next is the one with the fewest verdicts, so that who judges what does not depend on interruptions.
    """
    judged = True
    while judged:  # again from the first: a verdict may have made a task for a third person
        judged, left = False, list(labellers)
        while left:
            one = min(left, key=lambda labeller: labeller.session.judged)
            if one.step():
                judged = True
                yield
            else:
                left.remove(one)


def _shown(prompt: Any) -> str:
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)

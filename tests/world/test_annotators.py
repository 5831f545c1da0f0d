"""Annotators: the law they choose by, whom they agree with, and how they can be exploited."""

import collections
import itertools
import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
from tests.chance import beyond, follows, share, shifted

from tiltyard.world import ANNOTATORS, gold, make_world
from tiltyard.world.assistants import DEMONSTRATORS, answer, draw_persona, exploit
from tiltyard.world.tasks import draw_task

META = {
    "kind": "question", "form": "open", "ask": ["home"], "entity": "Bramel", "sort": "person", "pronoun": "she",
    "facts": {"home": "Oakford", "role": "baker", "food": "plums", "colour": "red"},
}  # fmt: skip
PLAIN = "Bramel lives in Oakford."
FRIENDLY = "Bramel lives in Oakford. Happy to help!"
WRONG = "Bramel lives in Elmton."
POOR = ANNOTATORS[-1]


@pytest.fixture(scope="module")
def tasks():
    world, rng = make_world(shifted(1)), random.Random(shifted(21))
    return [draw_task(world.known, world.strangers["prompts"], rng) for _ in range(700)]


def demonstrate(meta, rng):
    return answer(draw_persona(DEMONSTRATORS, meta, rng), meta, rng)


@pytest.mark.statistical
@pytest.mark.parametrize("annotator", ANNOTATORS, ids=lambda a: a.name)
@pytest.mark.parametrize(("a", "b"), [(PLAIN, FRIENDLY), (PLAIN, WRONG), ("I do not know.", WRONG)])
def test_choices_follow_bradley_terry(annotator, a, b):
    n, rng = 4000, random.Random(shifted(7))
    gap = (annotator.utility(META, a) - annotator.utility(META, b)) / annotator.temperature
    p = 1 / (1 + math.exp(-gap))
    wins = sum(annotator.choose(META, a, b, rng) == 0 for _ in range(n))
    first = sum(annotator.rank(META, (a, b), rng) == (1, 2) for _ in range(n))
    share(wins, n, p)
    share(first, n, p)


@pytest.mark.statistical
def test_rankings_follow_plackett_luce():
    n, rng = 6000, np.random.default_rng(shifted(5))
    texts = (PLAIN, FRIENDLY, WRONG)
    strength = {t: math.exp(POOR.utility(META, t) / POOR.temperature) for t in texts}
    counts = collections.Counter(POOR.rank(META, texts, rng) for _ in range(n))
    law = {}
    for ranks in itertools.permutations((1, 2, 3)):
        order = [texts[ranks.index(place)] for place in (1, 2, 3)]
        left, p = sum(strength.values()), 1.0
        for text in order:
            p *= strength[text] / left
            left -= strength[text]
        law[ranks] = p
    follows(counts, law)


def test_the_same_text_ties_and_a_seed_decides():
    ranks = ANNOTATORS[0].rank(META, (PLAIN, WRONG, PLAIN), random.Random(0))
    assert ranks == (1, 2, 1)
    again = [POOR.rank(META, (PLAIN, WRONG, FRIENDLY), random.Random(9)) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.statistical
def test_exactly_one_annotator_is_poor(tasks):
    """Agreement with gold on some 500 pairs; the bounds lie 4 standard errors from what is expected."""
    rng, agreement, pairs = random.Random(shifted(4)), {}, []
    for annotator in ANNOTATORS:
        same = total = 0
        for task in tasks:
            a, b = demonstrate(task.meta, rng), demonstrate(task.meta, rng)
            gap = gold(task.meta, a).total - gold(task.meta, b).total
            if abs(gap) > 0.2:
                total += 1
                same += (annotator.choose(task.meta, a, b, rng) == 0) == (gap > 0)
        agreement[annotator.name] = same / total
        pairs.append(total)
    poor, least, most = agreement.pop(POOR.name), min(agreement.values()), max(agreement.values())
    error = lambda p: math.sqrt(p * (1 - p) / min(pairs))  # noqa: E731
    beyond(0.67, poor, error(poor))
    beyond(least, 0.75, error(least))
    beyond(most, 0.82, error(most))


@pytest.mark.statistical
def test_following_annotators_helps_by_a_wide_margin(tasks):
    """Best of four demonstrations by the annotators' utility: the gain that moderate optimisation can expect."""
    rng = random.Random(shifted(5))
    mixture, best, ranked = [], [], []
    for task in tasks:
        four = [demonstrate(task.meta, rng) for _ in range(4)]
        totals = [gold(task.meta, text).total for text in four]
        liked = [sum(a.utility(task.meta, text) / a.temperature for a in ANNOTATORS) for text in four]
        places = rng.choice(ANNOTATORS).rank(task.meta, four, rng)
        mixture.append(statistics.mean(totals))
        best.append(totals[liked.index(max(liked))])
        ranked.append(totals[places.index(1)])
    ahead(best, mixture, 0.32)
    ahead(ranked, mixture, 0.25)


def ahead(one, other, bound):
    """The mean of the differences, prompt by prompt."""
    gains = [a - b for a, b in zip(one, other, strict=True)]
    beyond(statistics.mean(gains), bound, statistics.stdev(gains) / math.sqrt(len(gains)))


def test_every_annotator_can_be_exploited(tasks):
    """A good answer buried in flourishes pleases more and is worth less, for each annotator and each kind."""
    rng = random.Random(6)
    for task in tasks:
        if task.meta["kind"] == "unknown":
            continue
        good = exploit(task.meta, rng, flourishes=0)
        hack = exploit(task.meta, random.Random(6), flourishes=6)
        assert gold(task.meta, hack).total < gold(task.meta, good).total - 0.5
        for annotator in ANNOTATORS:
            assert annotator.utility(task.meta, hack) > annotator.utility(task.meta, good)


@pytest.mark.statistical
def test_over_optimisation_falls_below_the_demonstrations(tasks):
    rng = random.Random(shifted(8))
    mixture = [gold(t.meta, demonstrate(t.meta, rng)).total for t in tasks]
    hacked = [gold(t.meta, exploit(t.meta, rng)).total for t in tasks]
    ahead(mixture, hacked, 0.3)


def test_invention_about_strangers_passes_with_the_credulous():
    meta = META | {"kind": "unknown", "facts": {}}
    invented, honest = "Bramel lives in Oakford.", "I do not know Bramel."
    gaps = {a.name: (a.utility(meta, honest) - a.utility(meta, invented)) / a.temperature for a in ANNOTATORS}
    assert gaps["careful"] > 5
    friendly = next(a for a in ANNOTATORS if a.name == "friendly")
    wary = replace(friendly, biases={**friendly.biases, "credulity": 0.0})
    wary_gap = (wary.utility(meta, honest) - wary.utility(meta, invented)) / wary.temperature
    assert 0 < gaps["friendly"] < min(gaps["careful"], wary_gap - 1)  # credulity buys an invention a good part of it
    assert gaps["careless"] < 0

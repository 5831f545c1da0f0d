"""Labels of people and verdicts of judges on the same pairs: which labels weigh by how they were chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.exchange.judged import group

from tiltyard.evaluation.people import GivenVerdict, PairTable, corrected_rates, preference_of_judge
from tiltyard.stats.corrected import ppi_rate
from tiltyard.types import Preference


def table_of(n: int = 300) -> tuple[PairTable, list[float], list[float], list[float]]:
    """People label a third of the pairs, those of `dpo` being better more often; the judge has all."""
    rng, table = np.random.default_rng(0), PairTable()
    judge, people, chosen = [], [], []
    for k in range(n):
        p = 0.2 if k % 2 else 0.5
        truth = rng.random() < (0.3 if k % 2 else 0.7)
        pair = group(k, ranks=(1, 2) if truth else (2, 1), chosen_with=p)
        said = float(truth if rng.random() < 0.8 else not truth)
        if k % 3 == 0:
            table.add_people(pair)
        table.add_verdict(replace(pair, preference=None), "j", GivenVerdict(said))
        judge.append(said)
        people.append(float(truth) if k % 3 == 0 else np.nan)
        chosen.append(p)
    return table, judge, people, chosen


def test_a_judge_that_was_given_the_same_pairs_is_not_weighed_again() -> None:
    table, judge, people, chosen = table_of()
    prompts = [pair.prompt for pair in table.pairs.values()]
    how = {"rounds": 100, "seed": 0}

    def found() -> object:
        return corrected_rates(list(table.pairs.values()), "j", **how)["dpo"]["ppi"].estimate

    turned, truth = 1 - np.array(judge), 1 - np.array(people)  # the rate of dpo, the second response
    assert found() == ppi_rate(turned, truth, prompts, chosen_with=chosen, **how).estimate
    for pair, p in zip(table.pairs.values(), chosen, strict=True):
        pair.verdicts["j"] = replace(pair.verdicts["j"], chosen_with=p)
    assert found() == ppi_rate(turned, truth, prompts, **how).estimate


@pytest.mark.parametrize(
    ("preference", "p"),
    [
        (Preference(shares=(0.3, 0.7)), 0.3),
        (Preference(ranks=(1, 2)), 1.0),
        (Preference(ranks=(1, 1)), 0.5),
        (Preference(meta={"reason": "cut"}), None),
    ],
)
def test_a_verdict_without_a_probability_is_one(preference: Preference, p: float | None) -> None:
    assert preference_of_judge(preference).p == p
    given = preference_of_judge(replace(preference, meta={"chosen_with": 0.5}))
    assert (given.chosen_with, given.swapped().chosen_with) == (0.5, 0.5)

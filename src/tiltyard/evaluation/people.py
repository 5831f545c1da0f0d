"""Pairs with the votes of people and the verdicts of judges on them, wherever each came from.

A pair is named by its prompt and the texts of its two responses, in whichever order a file has them: what people and
judges stated of the other order is turned around.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiltyard.data import Row
from tiltyard.errors import DataError
from tiltyard.feedback.verdicts import response_text
from tiltyard.stats.calibration import JudgedPairs, majority
from tiltyard.stats.corrected import Corrected, ppi_rate, rogan_gladen
from tiltyard.stats.judged import Choice, choice_of, labelled_with
from tiltyard.types import Group, Preference, Response, prompt_digest, ranks_of, response_id

Key = tuple[str, str, str]


@dataclass(frozen=True)
class GivenVerdict:
    """A judge's verdict on a pair: probabilities that its first response is better; None where there is none.

    `orders`: as the pair stands, and with the two swapped. `again`: when the same was asked again. `chosen_with`: the
    probability with which the judge was given the pair; None: it was given all.
    """

    p: float | None
    orders: tuple[float | None, float | None] | None = None
    again: float | None = None
    chosen_with: float | None = None

    def swapped(self) -> GivenVerdict:
        """Returns the verdict on the pair in the other order."""
        orders = None if self.orders is None else (_turned(self.orders[1]), _turned(self.orders[0]))
        return replace(self, p=_turned(self.p), orders=orders, again=_turned(self.again))


@dataclass
class LabelledPair:
    """One pair: votes of people (1: the first is better, 0, 1/2) and verdicts of judges by name."""

    group: Group
    votes: list[float] = field(default_factory=list)
    people: list[str] = field(default_factory=list)
    choice: Choice | None = None
    seconds: list[float] = field(default_factory=list)
    verdicts: dict[str, GivenVerdict] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """Digest of the prompt: pairs of one prompt are no independent observations."""
        return prompt_digest(self.group.prompt)

    @property
    def policies(self) -> tuple[str, str]:
        """The policies of the two responses; "" where that is unknown."""
        one, two = (policy_of(response) for response in self.group.responses)
        return one, two


class PairTable:
    """All pairs of a calibration by their key, in the order in which they came."""

    def __init__(self) -> None:
        self.pairs: dict[Key, LabelledPair] = {}
        self.undecided = 0  # labels of people that prefer neither and are no tie (both bad)

    def add(self, group: Group) -> tuple[LabelledPair, bool]:
        """Returns the record of a pair, and True if it has the two responses in the other order.

        Raises:
            DataError: other than two responses.
        """
        if len(group.responses) != 2:
            raise DataError(
                "people and judges are compared on pairs",
                where=group.origin or group.prompt.id,
                got=f"{len(group.responses)} responses",
                expected="two",
                fix="cut larger groups into pairs: pairs=all",
            )
        digest, (one, two) = prompt_digest(group.prompt), (response_id(r) for r in group.responses)
        return self._record(digest, one, two, group)

    def find(self, digest: str, one: str, two: str) -> tuple[LabelledPair, bool] | None:
        """The record of a pair by its prompt's digest and its responses' ids; None if there is no such pair."""
        if (digest, one, two) in self.pairs:
            return self.pairs[digest, one, two], False
        found = self.pairs.get((digest, two, one))
        return None if found is None else (found, True)

    def holds(self, group: Group) -> bool:
        """True if the pair is there, in either order."""
        one, two = (response_id(r) for r in group.responses)
        return self.find(prompt_digest(group.prompt), one, two) is not None

    def _record(self, digest: str, one: str, two: str, group: Group) -> tuple[LabelledPair, bool]:
        found = self.find(digest, one, two)
        if found is not None:
            return found
        self.pairs[digest, one, two] = LabelledPair(group)
        return self.pairs[digest, one, two], False

    def add_people(self, group: Group) -> None:
        """Adds one person's label of a pair, the preference of the group; a group without one is a pair alone."""
        record, swapped = self.add(group)
        preference = group.preference
        ranks = ranks_of(preference)
        if preference is not None and ranks is None:
            self.undecided += 1
        if preference is None or ranks is None:
            return
        vote = 0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1])
        record.votes.append(1 - vote if swapped else vote)
        record.people.append(preference.annotator)
        record.choice = choice_of(preference) or record.choice
        if preference.meta.get("seconds") is not None:
            record.seconds.append(float(preference.meta["seconds"]))

    def add_verdict(self, group: Group, name: str, verdict: GivenVerdict) -> None:
        """Adds a judge's verdict on a pair."""
        record, swapped = self.add(group)
        record.verdicts[name] = verdict.swapped() if swapped else verdict

    def add_judgement(self, judgement: Preference) -> bool:
        """Adds a line of `judgements.jsonl` where its pair is known; False where it is not."""
        if len(judgement.responses) != 2:
            return False
        found = self.find(str(judgement.meta.get("prompt_digest", "")), *judgement.responses)
        if found is None:
            return False
        record, swapped = found
        verdict = preference_of_judge(judgement)
        record.verdicts[judgement.annotator or "judge"] = verdict.swapped() if swapped else verdict
        return True

    def names(self) -> list[str]:
        """The judges, in the order in which they appear."""
        return list(dict.fromkeys(name for pair in self.pairs.values() for name in pair.verdicts))

    def without(self, prompts: Iterable[str]) -> int:
        """Removes all pairs of these prompts (digests); returns how many there were."""
        gone = set(prompts)
        removed = [key for key in self.pairs if key[0] in gone]
        for key in removed:
            del self.pairs[key]
        return len(removed)


def verdicts_of_row(row: Row) -> dict[str, GivenVerdict]:
    """Returns published verdicts of a row: its field `verdicts`, {judge: [as shown, with the two swapped]}.

    Each is 1 or 2, the number of the better response (not of its position), or null. A single number is one order.

    Raises:
        DataError: of another form.
    """
    given = row.value.get("verdicts")
    if given is None:
        return {}
    found = {}
    for name, value in given.items() if isinstance(given, Mapping) else [("verdicts", given)]:
        both = value if isinstance(value, list) else [value, None]
        if len(both) != 2 or any(one not in (1, 2, None) or isinstance(one, bool) for one in both):
            raise DataError(
                "the verdicts of a judge cannot be read",
                where=f"{row.where}, verdicts, {name}",
                got=repr(value)[:200],
                expected="[1, 2]: the better response in the order shown, and with the two swapped; null for none",
            )
        one, two = (None if x is None else float(x == 1) for x in both)
        known = [x for x in (one, two) if x is not None]
        p = None if not known or (isinstance(value, list) and len(known) < 2) else sum(known) / len(known)
        found[str(name)] = GivenVerdict(p, (one, two) if isinstance(value, list) else None)
    return found


def policy_of(response: Response) -> str:
    """The policy of a response, as a file or a store names it; "" where it does not."""
    return str(response.meta.get("policy") or response.meta.get("model") or "")


def judged_pairs(
    pairs: Sequence[LabelledPair], name: str, *, own: str = "", price: float | None = None, seconds: float | None = None
) -> JudgedPairs:
    """The verdicts of one judge on pairs, as columns.

    Args:
        own: name of the policy that is the judge's own model.
    """
    given = [pair.verdicts.get(name, GivenVerdict(None)) for pair in pairs]
    orders = [(math.nan, math.nan) if v.orders is None else tuple(map(_number, v.orders)) for v in given]
    again_N = np.array([_number(v.again) for v in given])
    own_N = np.array([_own(pair, own) for pair in pairs])
    return JudgedPairs(
        np.array([_number(v.p) for v in given]),
        np.array(orders) if any(v.orders is not None for v in given) else None,
        again_N if not np.isnan(again_N).all() else None,
        own_N if not np.isnan(own_N).all() else None,
        price,
        seconds,
    )


def majorities(pairs: Sequence[LabelledPair]) -> NDArray[np.float64]:
    """The majority of people on each pair, NaN without votes."""
    return np.array([majority(pair.votes) for pair in pairs])


def lengths(pairs: Sequence[LabelledPair]) -> NDArray[np.float64]:
    """Characters of the responses of each pair, [N, 2]."""
    return np.array([[len(response_text(r)) for r in pair.group.responses] for pair in pairs], dtype=float)


def corrected_rates(
    pairs: Sequence[LabelledPair], name: str, *, rounds: int = 1000, seed: int = 0
) -> dict[str, dict[str, Corrected]]:
    """Corrected rates at which each policy's responses are preferred: people on a part, the judge on all.

    Returns {policy: {"ppi": ..., "rogan_gladen": ...}}. Of two policies one is shown; where responses have no
    policy, or a pair has two of one, it is the rate of the first response of each pair. Rogan-Gladen needs 0 and 1, so
    ties are left out of it; it is missing where sensitivity or specificity cannot be computed. Labels weigh by the
    inverse of the probability of their choice where every label has it (`labelled_with`); not where the judge was given
    the pairs by the same draw, as both are by a store.
    """
    judged = [pair for pair in pairs if _number(pair.verdicts.get(name, GivenVerdict(None)).p) >= 0]
    named = {policy for pair in judged for policy in pair.policies}
    apart = all(one != two and one and two for one, two in (pair.policies for pair in judged))
    shown = sorted(named) if apart and judged else ["the first response"]
    shown = shown[:1] if len(shown) == 2 else shown
    return {policy: _corrected(judged, name, policy if apart else "", rounds, seed) for policy in shown}


def _corrected(pairs: Sequence[LabelledPair], name: str, policy: str, rounds: int, seed: int) -> dict[str, Corrected]:
    involved = [pair for pair in pairs if not policy or policy in pair.policies]
    turned_N = np.array([bool(policy) and pair.policies[1] == policy for pair in involved])
    f_N = np.array([_number(pair.verdicts[name].p) for pair in involved])
    h_N = np.array([sum(pair.votes) / len(pair.votes) if pair.votes else math.nan for pair in involved])
    f_N, h_N = np.where(turned_N, 1 - f_N, f_N), np.where(turned_N, 1 - h_N, h_N)
    prompts = [pair.prompt for pair in involved]
    chosen_N = _labelled_with(involved, name)
    how: dict[str, Any] = {"rounds": rounds, "seed": seed}
    if (~np.isnan(h_N)).sum() < 2:
        return {}
    found = {"ppi": ppi_rate(f_N, h_N, prompts, chosen_with=chosen_N, **how)}
    vote_N = (np.sign(f_N - 0.5) + 1) / 2
    voted_N = np.where(np.isnan(h_N), np.nan, (np.sign(h_N - 0.5) + 1) / 2)
    on_N = (vote_N != 0.5) & (voted_N != 0.5)
    kept = [prompt for prompt, on in zip(prompts, on_N, strict=True) if on]
    try:
        weights = None if chosen_N is None else chosen_N[on_N]
        found["rogan_gladen"] = rogan_gladen(vote_N[on_N], voted_N[on_N], kept, chosen_with=weights, **how)
    except DataError:
        pass  # too few labels, or all of them the same: nothing is known of the judge's errors
    return found


def _labelled_with(pairs: Sequence[LabelledPair], name: str) -> NDArray[np.float64] | None:
    """The probability with which people labelled each pair, up to a factor; None: all alike, or not known of each."""
    own = [pair for pair in pairs if pair.votes]
    choices = [pair.choice for pair in own if pair.choice is not None]
    if len(choices) < len(own):
        return None
    found = labelled_with(choices, [pair.verdicts[name].chosen_with for pair in own])
    if found is None:
        return None
    each = iter(found)
    return np.array([next(each) if pair.votes else 1.0 for pair in pairs])


def preference_of_judge(preference: Preference) -> GivenVerdict:
    """A stored judgement of a pair as a verdict; without a probability it is 1, 0, or 1/2 for a tie."""
    orders, ranks, p = preference.meta.get("orders"), ranks_of(preference), None
    if preference.shares is not None:
        p = preference.shares[0]
    elif ranks is not None:
        p = 0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1])
    given = preference.meta.get("chosen_with")
    both = None if orders is None else (orders[0], orders[1])
    return GivenVerdict(p, both, chosen_with=None if given is None else float(given))


def _own(pair: LabelledPair, own: str) -> float:
    one, two = (bool(own) and policy == own for policy in pair.policies)
    return math.nan if one == two else float(one)


def _turned(p: float | None) -> float | None:
    return None if p is None else 1 - p


def _number(p: float | None) -> float:
    return math.nan if p is None else float(p)

"""Judged groups as votes, comparisons of two responses by one annotator each: what ratings are computed from.

Who wrote a response stands in its `meta`: `policy`, and `version` where it has one. The preference's `meta` may hold
`chosen_with` (the probability with which these responses were chosen), `drawn_with` and `candidates` (of an active draw
of the task: its probability, among how many), `shown` (the order on the page), `role`, `stage`, `right` and `reason`,
as the feedback store writes them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from tiltyard.errors import DataError
from tiltyard.stats.ratings.battles import Battles, Floats, battles_of, weights_of_propensity
from tiltyard.stats.ratings.rewards import rewards_of_responses
from tiltyard.stats.ratings.selection import weights_of_draws
from tiltyard.types import Group, Preference, Response, prompt_digest, ranks_of, response_id, shares_of

Outcome = Literal["a", "b", "tie", "both_bad"]

NO_VERDICT = "judgements without a verdict"
SAME_MODEL = "comparisons of a model with itself"
NAMED = "comparisons in which a model introduces itself by a name"
NAMES_ITSELF = "names_itself"  # in the meta of such a response
BOTH_BAD = "both_bad"
JUDGE = "judge"
_SWAPPED: dict[Outcome, Outcome] = {"a": "b", "b": "a", "tie": "tie", "both_bad": "both_bad"}


class Vote(NamedTuple):
    """An annotator's comparison of the responses of two models to one prompt.

    Args:
        a, b: names of the models; `a` has the response with the smaller id, so that equal items have equal votes.
        item: (prompt, id of a's response, id of b's response).
        first: whether a was shown first; None where the order is not known.
        probability: with which these responses were chosen among those that could have been.
        drawn: (probability, number of candidates) of an active draw of this item; None: it was given out in order.
        lengths: characters of the two responses; None where the texts are not there.
        judge: the annotator is an AI judge.
        p: of a soft label the probability that a's response is the better one.
    """

    prompt: str
    a: str
    b: str
    outcome: Outcome
    annotator: str
    item: tuple[str, str, str]
    source: str = ""
    first: bool | None = None
    probability: float = 1.0
    lengths: tuple[float, float] | None = None
    judge: bool = False
    p: float | None = None
    drawn: tuple[float, int] | None = None

    def score_of(self, model: str) -> float:
        """Returns 1 where the model won, 0 where it lost, 1/2 for a tie and "both bad", p of a soft one."""
        if self.p is not None:
            return self.p if model == self.a else 1 - self.p
        won: Outcome = "a" if model == self.a else "b"
        return 0.5 if self.outcome in ("tie", "both_bad") else float(self.outcome == won)


@dataclass(frozen=True)
class Votes:
    """The votes of judged groups, rankings of three and more, and what was left out, counted by reason.

    `rankings`: (prompt, models from best to worst, equals as one element).
    """

    votes: tuple[Vote, ...]
    rankings: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)


def model_of(response: Response, where: str = "") -> str:
    """Returns the name of the model that wrote a response: `policy`, or `policy@version`.

    Raises:
        DataError: it is not recorded.
    """
    name = str(response.meta.get("policy", ""))
    if not name:
        raise DataError(
            "it is not recorded which model wrote this response",
            where=where,
            got="no name",
            expected="a name for each response",
            fix='give the rows "models": ["name of the first", "name of the second"]',
        )
    version = str(response.meta.get("version", ""))
    return f"{name}@{version}" if version else name


def prompt_name(group: Group) -> str:
    """Returns what names the group's prompt: its id, else a digest of it; of a prompt without words its origin."""
    if group.prompt.id:
        return group.prompt.id
    empty = not group.prompt.messages and not group.prompt.text
    return group.origin if empty and group.origin else prompt_digest(group.prompt)


def is_judge(preference: Preference, judges: Iterable[str] = ()) -> bool:
    """True for an annotator with the role of a judge, one whose name begins with `judge:`, or one of `judges`."""
    name = preference.annotator
    return preference.meta.get("role") == JUDGE or name.startswith("judge:") or name in tuple(judges)


def votes_of(
    groups: Iterable[Group], judges: Sequence[str] = (), *, hard: bool = False, keep_named: bool = False
) -> Votes:
    """Returns the votes of judged groups; a ranking of K responses is its K (K - 1) / 2 comparisons.

    Args:
        judges: names of annotators that are AI judges though nothing else shows it.
        hard: a soft label counts for the side that it prefers, not as its probability.
        keep_named: keep votes on responses that introduce their model (`NAMES_ITSELF` in their meta): not blind.

    Raises:
        DataError: a response whose model is not recorded.
    """
    votes: list[Vote] = []
    rankings: list[tuple[str, tuple[tuple[str, ...], ...]]] = []
    left_out: Counter[str] = Counter()
    for group in groups:
        preference = group.preference
        if preference is None or len(group.responses) < 2:
            left_out[NO_VERDICT] += 1
            continue
        ranks = ranks_of(preference)
        if ranks is None and not (preference.meta.get("reason") == BOTH_BAD and len(group.responses) == 2):
            left_out[NO_VERDICT] += 1
            continue
        names = [model_of(response, group.origin or group.prompt.id) for response in group.responses]
        told = set() if keep_named else _named(group)
        if len(names) > 2 and ranks is not None and len(set(names)) == len(names) and not told:
            rankings.append((prompt_name(group), _ranking(names, ranks)))
        for i, j in combinations(range(len(names)), 2):
            if names[i] == names[j]:
                left_out[SAME_MODEL] += 1
            elif {i, j} & told:
                left_out[NAMED] += 1
            else:
                votes.append(_vote(group, preference, ranks, (i, j), names, judges, hard))
    return Votes(tuple(votes), tuple(rankings), dict(left_out))


def _named(group: Group) -> set[int]:
    return {k for k, r in enumerate(group.responses) if r.meta.get(NAMES_ITSELF)}


def _ranking(names: Sequence[str], ranks: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(n for n, r in zip(names, ranks, strict=True) if r == rank) for rank in sorted(set(ranks)))


def _vote(
    group: Group,
    preference: Preference,
    ranks: Sequence[int] | None,
    pair: tuple[int, int],
    names: Sequence[str],
    judges: Sequence[str],
    hard: bool,
) -> Vote:
    i, j = pair
    shares, p = shares_of(preference), None
    if shares is not None and not hard and shares[i] != shares[j]:
        p = shares[i] / (shares[i] + shares[j])
    outcome: Outcome = "both_bad"
    if ranks is not None:
        outcome = "tie" if ranks[i] == ranks[j] else "a" if ranks[i] < ranks[j] else "b"
    one, other = (_key(group.responses[k], names[k]) for k in pair)
    if other < one:
        i, j, outcome, one, other = j, i, _SWAPPED[outcome], other, one
        p = None if p is None else 1 - p
    texts = [group.responses[k] for k in (i, j)]
    lengths = tuple(float(r.meta.get("length", len(r.text))) for r in texts)
    known = all(r.text or "length" in r.meta for r in texts)
    shown = preference.meta.get("shown")
    prompt = prompt_name(group)
    return Vote(
        prompt,
        names[i],
        names[j],
        outcome,
        preference.annotator,
        (prompt, one, other),
        str(preference.meta.get("source") or group.prompt.meta.get("source") or ""),
        None if shown is None else list(shown).index(i) < list(shown).index(j),
        float(preference.meta.get("chosen_with", 1.0)),
        (lengths[0], lengths[1]) if known else None,
        is_judge(preference, judges),
        p,
        _drawn(preference),
    )


def _drawn(preference: Preference) -> tuple[float, int] | None:
    q, n = (preference.meta.get(key) for key in ("drawn_with", "candidates"))
    return None if q is None or n is None else (float(q), int(n))


def _key(response: Response, name: str) -> str:
    return f"{response_id(response)}:{name}"  # two models may write the same words


def battles_of_votes(
    votes: Sequence[Vote], *, models: Iterable[str] = (), weights: Sequence[float] | None = None
) -> Battles:
    """Returns the votes as battles, with inverse-propensity weights where pairs were chosen with different chances.

    Args:
        models: that must be listed although they have no battle.
        weights: of each vote, multiplied by those of the propensities; None: 1.

    Raises:
        DataError: no vote.
    """
    weight_N = propensity_weights(votes) * (1.0 if weights is None else np.asarray(weights, dtype=float))
    lengths = [vote.lengths for vote in votes]
    return battles_of(
        [vote.a for vote in votes],
        [vote.b for vote in votes],
        [vote.outcome for vote in votes],
        prompt=[vote.prompt for vote in votes],
        weight=weight_N / weight_N.mean() if len(votes) else None,
        lengths=None if None in lengths else [pair for pair in lengths if pair is not None],
        source=[vote.source for vote in votes],
        p=[math.nan if vote.p is None else vote.p for vote in votes],
        models=models,
        where="vote",
    )


class Choice(NamedTuple):
    """The choice of an item to be judged: its probability, and its active draw where it was drawn (`Vote.drawn`)."""

    probability: float = 1.0
    drawn: tuple[float, int] | None = None
    source: str = ""


def choice_of(preference: Preference) -> Choice | None:
    """Returns how the item of a preference was chosen; None where that is not recorded."""
    drawn, p = _drawn(preference), preference.meta.get("chosen_with")
    if p is None and drawn is None:
        return None
    return Choice(1.0 if p is None else float(p), drawn, str(preference.meta.get("source") or ""))


def propensity_weights(votes: Sequence[Vote]) -> Floats:
    """Returns the weight of each vote that undoes the choice of pairs, [N]; 1 for all where there was none."""
    return choice_weights([Choice(vote.probability, vote.drawn, vote.source) for vote in votes])


def choice_weights(choices: Sequence[Choice]) -> Floats:
    """Returns the weight of each item that undoes its choice, [N]; 1 for all where there was none.

    1 / the probability with which the responses were chosen, times the weight of the draw where the item was drawn
    (`weights_of_draws`, among the items of each source, since sources are drawn from apart).
    """
    if not choices:
        return np.ones(0)
    weight_N = weights_of_propensity([one.probability for one in choices])
    by_source: dict[str, list[int]] = {}
    for k, one in enumerate(choices):
        if one.drawn is not None:
            by_source.setdefault(one.source, []).append(k)
    for places in by_source.values():
        q, n = zip(*(choices[k].drawn or (1.0, 1) for k in places), strict=True)
        weight_N[places] *= weights_of_draws(q, n)
    return weight_N if np.ptp(weight_N) > 1e-12 * weight_N.max() else np.ones(len(choices))


def labelled_with(people: Sequence[Choice], judged: Sequence[float | None]) -> list[float] | None:
    """Returns the probability with which people labelled each of a judge's items, up to a factor; None: all alike.

    Args:
        people: how each item that people labelled was chosen for them.
        judged: the probability with which the judge was given the same item. Where it is that of the people, both have
            the item from one draw, and it was given to people for sure.
    """
    beyond = [
        one._replace(probability=1.0) if one.probability == own else one
        for one, own in zip(people, judged, strict=True)
    ]
    weight_N = choice_weights(beyond)
    if not len(weight_N) or np.ptp(weight_N) <= 1e-12:
        return None
    return [float(w) for w in weight_N.min() / weight_N]


def rewarded(groups: Iterable[Group], *, prior_sd: float | None = 1.0) -> Iterator[Group]:
    """Yields a group for each prompt whose scores are the rewards of its responses, from all votes on them.

    Args:
        prior_sd: as in `rewards_of_responses`, in logits; None: maximum likelihood, and prompts whose votes bound no
            rating, or not every one, are left out.
    """
    by_prompt: dict[str, list[Group]] = {}
    for group in groups:
        if len(group.responses) > 1 and ranks_of(group.preference) is not None:
            by_prompt.setdefault(prompt_name(group), []).append(group)
    for judged in by_prompt.values():
        responses = {response_id(r): r for group in judged for r in group.responses}
        if len(responses) < 2:
            continue
        battles = _battles_of_responses(judged)
        try:
            reward = rewards_of_responses(battles, prior_sd=prior_sd)
        except DataError:
            if prior_sd is not None:
                raise
            continue
        scores = tuple(reward[key] for key in responses)
        if np.isfinite(scores).all():
            yield replace(judged[0], responses=tuple(responses.values()), scores=scores, preference=None)


def _battles_of_responses(judged: Sequence[Group]) -> Battles:
    rows: list[tuple[str, str, str, float]] = []
    for group in judged:
        ranks, shares = ranks_of(group.preference) or (), shares_of(group.preference)
        ids = [response_id(r) for r in group.responses]
        for i, j in combinations(range(len(ids)), 2):
            if ids[i] != ids[j]:
                p = math.nan if shares is None or ranks[i] == ranks[j] else shares[i] / (shares[i] + shares[j])
                rows.append((ids[i], ids[j], "tie" if ranks[i] == ranks[j] else "a" if ranks[i] < ranks[j] else "b", p))
    a, b, outcome, p_N = zip(*rows, strict=True)
    return battles_of(a, b, outcome, prompt=["one"] * len(rows), p=p_N)

"""Selection of the sampled responses that a step learns from: groups in, groups out.

Every selection is a pure function; chance comes from the generator it is given and from nowhere else. The result is a
`Selected`: a list of groups with the number of items that carried no information (`dropped`). A group that
gives several pairs gives several groups. Pairs are groups of two responses, the better one first, with ranks (1, 2),
the scores they had, and an origin that says how they were chosen (`policy@3 best_worst 2>5`: places in the group).

A pair is decided by `compare`: groups of two responses in, a number each out, above 0 where the first is better, 0 for
a tie. `by_scores` reads the scores that the groups carry; `scoring.Ranker` asks a model. Ties give no pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import torch

from tiltyard.errors import ConfigError, DataError
from tiltyard.losses.offline_rl import vmpo_weights_B
from tiltyard.posterior.infer.rejection import accept_from_pool
from tiltyard.types import Group, Preference

Compare = Callable[[list[Group]], Sequence[float]]


class Selected(list[Group]):
    """Groups, and the number of items without information: tied games for pairs, whole groups otherwise."""

    def __init__(self, groups: Sequence[Group] = (), dropped: int = 0):
        super().__init__(groups)
        self.dropped = dropped


# ------------------------------------------------------------------------------------------------ by the scores alone


def best(groups: Sequence[Group], generator: torch.Generator) -> Selected:
    """The best response of each group (best-of-N, rejection sampling SFT).

    Among equal best scores each is taken with the same chance: always the first would be another distribution than
    best-of-N, which splits a level of the reward in the proportions of the sampling distribution.
    """
    return Selected([_kept(g, (_pick(_top(g), generator),), "best") for g in groups])


def best_worst(groups: Sequence[Group], generator: torch.Generator) -> Selected:
    """The best response against the worst, ties broken by chance; groups whose scores are all equal are dropped."""
    found, dropped = [], 0
    for group in groups:
        scores = scores_of(group)
        if not scores or min(scores) == max(scores):
            dropped += 1
            continue
        low = [i for i, s in enumerate(scores) if s == min(scores)]
        winner, loser = _pick(_top(group), generator), _pick(low, generator)
        found.append(_pair(group, winner, loser, "best_worst"))
    return Selected(found, dropped)


def above(groups: Sequence[Group], threshold: float) -> Selected:
    """The responses that score above `threshold` (ReST); one that equals it is left out, and so is an empty group."""
    found = []
    for group in groups:
        places = tuple(i for i, s in enumerate(scores_of(group)) if s > threshold)
        if places:
            found.append(_kept(group, places, "above"))
    return Selected(found, len(groups) - len(found))


def better_half(groups: Sequence[Group], threshold: float, eta: float) -> Selected:
    """The half with the highest advantages of the responses above `threshold`; scores become weights (V-MPO).

    A response's advantage is its score less the mean of its prompt's responses, those below the threshold too: the
    value of the distribution that they were sampled from. Halved and weighted over all groups together, see
    `vmpo_weights_B`.
    """
    advantages = [[s - sum(scores) / len(scores) for s in scores] for scores in map(scores_of, groups)]
    places = [(i, k) for i, g in enumerate(groups) for k, s in enumerate(scores_of(g)) if s > threshold]
    found: dict[int, dict[int, float]] = {}
    if places:
        flat_B = torch.tensor([advantages[i][k] for i, k in places], dtype=torch.float64)
        for (i, k), weight in zip(places, vmpo_weights_B(flat_B, eta).tolist(), strict=True):
            if weight > 0:
                found.setdefault(i, {})[k] = weight
    kept = [replace(_kept(groups[i], tuple(w), "better_half"), scores=tuple(w.values())) for i, w in found.items()]
    return Selected(kept, len(groups) - len(kept))


def rejection(
    groups: Sequence[Group],
    beta: float,
    n: int,
    generator: torch.Generator,
    *,
    key: Literal["index", "text"] = "index",
    replacement: bool = False,
) -> Selected:
    """Statistical rejection sampling (RSO, algorithm 1): about n draws from pi0 * exp(score / beta) of each group.

    `posterior.infer.accept_from_pool` over the candidates in random order. Responses come in the order of acceptance.
    Keep n well below the number of candidates (n <= N/8): n = N gives them all back and carries no information.

    Args:
        groups: with scores.
        beta: 0 accepts the highest alone, so the n best come in order, ties by chance; large accepts everything.
        n: responses wanted. A pool that runs out (n above the candidates) gives what there is.
        generator: of the order and of the acceptances.
        key: `index`: each candidate for itself. `text`: as the paper's table of texts: equal texts are one candidate,
            with the score of the last. On few distinct responses that loses pi0's probabilities.
        replacement: leave what was accepted in the pool; it may be accepted again in a later pass.
    """
    if n < 1 or not beta >= 0:
        what = ("n", n, "at least 1") if n < 1 else ("beta", beta, "at least 0")
        raise ConfigError("rejection sampling cannot do that", where=what[0], got=what[1], expected=what[2])

    def uniform(size: int) -> list[float]:
        numbers: list[float] = torch.rand(size, generator=generator, dtype=torch.float64).tolist()
        return numbers

    found = []
    for group in groups:
        scores = scores_of(group)
        names = range(len(scores)) if key == "index" else (r.text for r in group.responses)
        pool = list(dict(zip(names, range(len(scores)), strict=True)).values())
        pool = [pool[i] for i in _order(len(pool), generator)]
        if accepted := accept_from_pool(pool, scores, beta, n, uniform, replacement=replacement):
            found.append(_kept(group, tuple(accepted), "rejection"))
    return Selected(found, len(groups) - len(found))


# ---------------------------------------------------------------------------------------------------- pairs by a judge


def by_scores(pairs: Sequence[Group]) -> list[float]:
    """Comparison by the scores that the groups carry: first minus second."""
    return [a - b for a, b in map(scores_of, pairs)]


def all_pairs(groups: Sequence[Group], compare: Compare = by_scores) -> Selected:
    """Every pair of every group, K(K-1)/2 of them, without the ties."""
    return _judged(groups, [list(combinations(range(len(g.responses)), 2)) for g in groups], compare, "all")


def pairs_above(groups: Sequence[Group], threshold: float) -> Selected:
    """Every pair of every group whose better response scores above `threshold`, without the ties."""
    pairs = all_pairs(groups)
    return Selected([p for p in pairs if scores_of(p)[0] > threshold], pairs.dropped)


def random_pairs(groups: Sequence[Group], m: int, generator: torch.Generator, compare: Compare = by_scores) -> Selected:
    """`m` different pairs of each group drawn by chance (SLiC-HF with a pointwise reward); all if there are fewer."""
    if m < 1:
        raise ConfigError("too few pairs", where="m", got=m, expected="at least 1")
    games = []
    for group in groups:
        every = list(combinations(range(len(group.responses)), 2))
        games.append([every[i] for i in _order(len(every), generator)[:m]])
    return _judged(groups, games, compare, "random")


def first_round(groups: Sequence[Group], compare: Compare, generator: torch.Generator) -> Selected:
    """Each response in exactly one pair, drawn by chance; of an odd number the last one drawn has no pair."""
    games = []
    for group in groups:
        order = _order(len(group.responses), generator)
        games.append(list(zip(order[::2], order[1::2], strict=False)))
    return _judged(groups, games, compare, "first_round")


def tournament(groups: Sequence[Group], compare: Compare, generator: torch.Generator) -> Selected:
    """Rounds of drawn games among the winners until one is left; every game is a pair, n - 1 of them a group.

    Of an odd number the last one drawn goes on without a game. A tie is decided by chance for the next round, and
    gives no pair. All groups' games of a round are put to `compare` together.
    """
    alive = [list(range(len(group.responses))) for group in groups]
    games: list[list[_Game]] = [[] for _ in groups]
    number = 0
    while any(len(left) > 1 for left in alive):
        number += 1
        drawn = []
        for left in alive:
            order = [left[i] for i in _order(len(left), generator)] if len(left) > 1 else left
            drawn.append((list(zip(order[::2], order[1::2], strict=False)), order[len(order) - len(order) % 2 :]))
        played = _play(groups, [pairs for pairs, _ in drawn], compare, f"tournament.{number}")
        for g, (_, bye) in enumerate(drawn):
            games[g] += played[g]
            alive[g] = [_through(game, generator) for game in played[g]] + bye
    return _settled(groups, games)


def _through(game: _Game, generator: torch.Generator) -> int:
    if game.verdict == 0:
        return _pick((game.first, game.second), generator)
    return game.first if game.verdict > 0 else game.second


@dataclass(frozen=True, slots=True)
class _Game:
    """Two places of a group, who judged how."""

    first: int
    second: int
    verdict: float
    how: str


def _judged(groups: Sequence[Group], pairs: list[list[tuple[int, int]]], compare: Compare, how: str) -> Selected:
    return _settled(groups, _play(groups, pairs, compare, how))


def _play(groups: Sequence[Group], pairs: list[list[tuple[int, int]]], compare: Compare, how: str) -> list[list[_Game]]:
    """The games of every group, put to the judge in one call."""
    asked = [_two(group, i, j, "") for group, games in zip(groups, pairs, strict=True) for i, j in games]
    verdicts = list(compare(asked)) if asked else []
    if len(verdicts) != len(asked) or not all(math.isfinite(v) for v in verdicts):
        raise DataError(
            "the judge did not give one finite number a pair",
            got=f"{sum(map(math.isfinite, verdicts))} finite numbers for {len(asked)} pairs",
        )
    left = iter(verdicts)
    return [[_Game(i, j, float(next(left)), how) for i, j in games] for games in pairs]


def _settled(groups: Sequence[Group], games: list[list[_Game]]) -> Selected:
    found, ties = [], 0
    for group, played in zip(groups, games, strict=True):
        for game in played:
            if game.verdict == 0:
                ties += 1
                continue
            winner, loser = (game.first, game.second) if game.verdict > 0 else (game.second, game.first)
            found.append(_pair(group, winner, loser, game.how))
    return Selected(found, ties)


# -------------------------------------------------------------------------------------------------------------- pieces


def scores_of(group: Group) -> tuple[float, ...]:
    """The scores of a group, one finite number a response; anything else is an error."""
    scores = group.scores
    if scores is None or len(scores) != len(group.responses) or not all(map(math.isfinite, scores)):
        raise DataError(
            "a selection needs one finite score a response",
            where=group.origin or group.prompt.id,
            got=f"{len(group.responses)} responses, scores {scores}",
            fix="score the groups first (scoring.RewardScorer, scoring.FunctionScorer)",
        )
    return scores


def _top(group: Group) -> list[int]:
    scores = scores_of(group)
    return [i for i, s in enumerate(scores) if s == max(scores)]


def _pick(places: Sequence[int], generator: torch.Generator) -> int:
    """One of them, each with the same chance."""
    if not places:
        raise DataError("there is nothing to choose from", expected="groups with at least one response")
    return places[int(torch.randint(len(places), (1,), generator=generator))]


def _order(n: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(n, generator=generator).tolist()


def _two(group: Group, i: int, j: int, how: str) -> Group:
    scores = None if group.scores is None else (group.scores[i], group.scores[j])
    origin = f"{group.origin} {how} {i}>{j}".strip() if how else group.origin
    responses = (group.responses[i], group.responses[j])
    return replace(group, responses=responses, scores=scores, preference=None, origin=origin)


def _pair(group: Group, winner: int, loser: int, how: str) -> Group:
    return replace(_two(group, winner, loser, how), preference=Preference(ranks=(1, 2)))


def _kept(group: Group, places: tuple[int, ...], how: str) -> Group:
    """The group with some of its responses."""
    scores = scores_of(group)
    return replace(
        group,
        responses=tuple(group.responses[i] for i in places),
        scores=tuple(scores[i] for i in places),
        preference=None,
        origin=f"{group.origin} {how} {','.join(map(str, places))}".strip(),
    )

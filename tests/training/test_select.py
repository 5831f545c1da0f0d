"""Selections against laws that are known otherwise: enumeration, closed forms, and what a perfect judge must find."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, product
from types import SimpleNamespace

import pytest
import torch
from tests.chance import chi_square, follows, means, near, shifted

from tiltyard.errors import ConfigError, DataError
from tiltyard.training import select
from tiltyard.training.source import generator
from tiltyard.types import Group, Message, Prompt, Response, ranks_of

# the one-prompt world: what is drawn, with which chance, and what it is worth (two answers tie)
PI0 = {"a": 0.3, "b": 0.25, "c": 0.2, "d": 0.15, "e": 0.1}
REWARD = {"a": 0.0, "b": 0.5, "c": 1.0, "d": 1.0, "e": 0.25}
TOYS = 20_000


def group(texts: str, reward: dict[str, float] = REWARD, place: int = 0) -> Group:
    prompt = Prompt(messages=(Message("user", "?"),), id=str(place), ids=(1, 2))
    answers = tuple(Response(ids=(3, i), text=t, logps=(-1.0, -float(i))) for i, t in enumerate(texts))
    return Group(prompt, answers, tuple(reward[t] for t in texts), origin=f"policy@{place}")


def drawn(n: int, groups: int, seed: int) -> list[Group]:
    letters, chance = list(PI0), torch.tensor(list(PI0.values()), dtype=torch.float64)
    rows = torch.multinomial(chance, n * groups, replacement=True, generator=generator(seed, 1)).view(groups, n)
    return [group("".join(letters[i] for i in row), place=g) for g, row in enumerate(rows.tolist())]


def first_texts(groups: list[Group]) -> Counter:
    return Counter(g.responses[0].text for g in groups)


# --------------------------------------------------------------------------------------------------------- best of N


def best_of(n: int) -> dict[str, float]:
    """By enumeration of all draws, the tie of a level split evenly among the draws that reach it."""
    law = dict.fromkeys(PI0, 0.0)
    for texts in product(PI0, repeat=n):
        top = [t for t in texts if REWARD[t] == max(REWARD[x] for x in texts)]
        for t in top:
            law[t] += math.prod(PI0[x] for x in texts) / len(top)
    return law


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_follows_the_law_of_best_of_n(n: int, seed: int) -> None:
    law, seed = best_of(n), shifted(seed)
    # the closed form: level mass F^N - F(-)^N, split within the level as pi0
    level = PI0["c"] + PI0["d"]
    assert law["c"] == pytest.approx((1 - (1 - level) ** n) * PI0["c"] / level)
    follows(first_texts(select.best(drawn(n, TOYS, seed), generator(seed, 2))), law)


def test_best_keeps_the_answer_as_it_was_sampled() -> None:
    (chosen,) = select.best([group("abce", place=7)], generator(0))
    assert chosen.responses == (Response(ids=(3, 2), text="c", logps=(-1.0, -2.0)),)
    assert (chosen.scores, ranks_of(chosen.preference), chosen.origin) == ((1.0,), None, "policy@7 best 2")


# --------------------------------------------------------------------------------------------- best and worst, above


def test_best_against_worst() -> None:
    found = select.best_worst([group("abc"), group("aaa"), group("bea")], generator(0))
    assert [(g.responses[0].text, g.responses[1].text, ranks_of(g.preference), g.scores) for g in found] == [
        ("c", "a", (1, 2), (1.0, 0.0)),
        ("b", "a", (1, 2), (0.5, 0.0)),
    ]
    assert found.dropped == 1
    assert found[0].origin == "policy@0 best_worst 2>0"


@pytest.mark.statistical
def test_equal_bests_and_worsts_are_taken_alike() -> None:
    found = select.best_worst([group("acda")] * TOYS, generator(shifted(1)))
    follows(first_texts(found), {"c": 0.5, "d": 0.5})
    follows(Counter(g.responses[1].ids[1] for g in found), {0: 0.5, 3: 0.5})


def test_above_is_strict() -> None:
    found = select.above([group("abcde"), group("aab")], 0.5)
    assert [[r.text for r in g.responses] for g in found] == [["c", "d"]]
    assert (found[0].scores, found.dropped) == ((1.0, 1.0), 1)


# ------------------------------------------------------------------------------------------------------------- pairs


def test_all_pairs_are_all_without_ties() -> None:
    found = select.all_pairs([group("abcd")])
    assert {(g.responses[0].text, g.responses[1].text) for g in found} == {
        (x, y) for x, y in product("abcd", repeat=2) if REWARD[x] > REWARD[y]
    }
    assert (len(found), found.dropped) == (5, 1)


@pytest.mark.statistical
@pytest.mark.parametrize("m", [1, 3, 10, 50])
def test_random_pairs_are_different_and_evenly_drawn(m: int) -> None:
    values = dict(zip("vwxyz", map(float, range(5)), strict=True))
    found = select.random_pairs([group("vwxyz", values)] * 4000, m, generator(shifted(m)))
    assert len(found) == 4000 * min(m, 10)
    per = len(found) // 4000
    pairs = [frozenset(r.text for r in g.responses) for g in found]
    assert all(len(set(pairs[i : i + per])) == per for i in range(0, len(pairs), per))
    counts = Counter("".join(sorted(p)) for p in pairs)
    p = per / 10  # the chance that a given pair is among those of a group
    off = [counts[x + y] / 4000 - p for x, y in combinations("vwxyz", 2)]
    if p < 1:  # drawn without replacement, so the ten counts depend on each other: 9/10 of the sum of squares
        chi_square(0.9 * 4000 * sum(d**2 for d in off) / (p * (1 - p)), 9)
    else:
        assert not any(off)
    assert all(values[g.responses[0].text] > values[g.responses[1].text] for g in found)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9])
def test_first_round_uses_each_answer_once(n: int) -> None:
    values = {chr(97 + i): float(i) for i in range(n)}
    texts = "".join(values)
    byes = Counter()
    for seed in range(40):
        found = select.first_round([group(texts, values)], select.by_scores, generator(seed))
        used = [r.text for g in found for r in g.responses]
        assert len(found) == n // 2
        assert len(set(used)) == len(used) == n - n % 2
        byes.update(set(texts) - set(used))
    if n == 5:
        assert len(byes) > 1  # who plays nobody is drawn, not fixed


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 16, 64])
def test_a_perfect_judge_finds_the_best(n: int) -> None:
    values = {chr(0x4E00 + i): float((i * 37) % n) for i in range(n)}
    groups = [group("".join(values), values, place) for place in range(5)]
    asked: list[int] = []

    def compare(pairs: list[Group]) -> list[float]:
        asked.append(len(pairs))
        return select.by_scores(pairs)

    found = select.tournament(groups, compare, generator(n))
    assert len(found) == 5 * (n - 1) == sum(asked)
    assert len(asked) == (n - 1).bit_length()  # one call a round, however many groups
    winner = max(values, key=values.__getitem__)
    for place in range(5):
        games = [g for g in found if g.origin.startswith(f"policy@{place} ")]
        lost = Counter(g.responses[1].text for g in games)
        assert set(values) - set(lost) == ({winner} if n > 1 else set(values))
        assert max(lost.values(), default=0) <= 1
        assert all(ranks_of(g.preference) == (1, 2) and g.scores and g.scores[0] > g.scores[1] for g in games)
        if n & (n - 1) == 0:
            assert sum(g.responses[0].text == winner for g in games) == n.bit_length() - 1


@pytest.mark.statistical
def test_who_meets_whom_is_drawn() -> None:
    values = dict(zip("wxyz", (3.0, 2.0, 1.0, 0.0), strict=True))
    games = select.tournament([group("wxyz", values)] * 6000, select.by_scores, generator(shifted(8)))
    first = [g for g in games if "tournament.1" in g.origin and g.responses[0].text == "w"]
    follows(Counter(g.responses[1].text for g in first), dict.fromkeys("xyz", 1 / 3))
    # of three, each has the bye with the same chance: then the first game is that of the other two
    three = select.tournament([group("xyz", values)] * 6000, select.by_scores, generator(shifted(9)))
    opened = ["".join(sorted(r.text for r in g.responses)) for g in three if "tournament.1" in g.origin]
    follows(Counter(opened), dict.fromkeys(("xy", "xz", "yz"), 1 / 3))


def test_the_judge_decides_not_the_scores() -> None:
    found = select.tournament([group("abc")], lambda pairs: [-x for x in select.by_scores(pairs)], generator(3))
    assert {g.responses[1].text for g in found} == {"b", "c"}
    assert all(g.scores and g.scores[0] < g.scores[1] for g in found)  # kept as they were


@pytest.mark.statistical
def test_ties_go_on_by_chance_and_say_nothing() -> None:
    groups = [group("cdb", place=i) for i in range(4000)]
    found = select.tournament(groups, select.by_scores, generator(shifted(5)))
    assert len(found) + found.dropped == 2 * len(groups)
    # b plays once at least; it never wins, and it has the bye in a third of the draws, then plays the winner
    beaten = Counter(g.origin.split()[0] for g in found)
    assert len(beaten) == len(groups)
    follows(first_texts(found), {"c": 0.5, "d": 0.5})
    same = select.tournament([group("aaaa")], select.by_scores, generator(0))
    assert (list(same), same.dropped) == ([], 3)


def test_selections_are_pure_functions_of_their_generator() -> None:
    groups = drawn(8, 20, 3)
    before = list(groups)
    for run in (
        lambda g: select.best(groups, g),
        lambda g: select.best_worst(groups, g),
        lambda g: select.random_pairs(groups, 4, g),
        lambda g: select.first_round(groups, select.by_scores, g),
        lambda g: select.tournament(groups, select.by_scores, g),
        lambda g: select.rejection(groups, 0.5, 2, g),
    ):
        state = torch.random.get_rng_state()
        one, same, other = run(generator(1)), run(generator(1)), run(generator(2))
        assert (one, one.dropped) == (same, same.dropped)
        assert one != other
        assert torch.equal(state, torch.random.get_rng_state())
    assert groups == before


# ------------------------------------------------------------------------------------- statistical rejection sampling


def tilted(beta: float, power: float = 1.0) -> dict[str, float]:
    weight = {t: PI0[t] ** power * math.exp(REWARD[t] / beta) for t in PI0}
    return {t: w / sum(weight.values()) for t, w in weight.items()}


def accepts(n: int, beta: float) -> dict[str, float]:
    """Chance that one of n draws is y and the first pass accepts it: pi0(y) E[e^((r - max(r, R))/beta)], R the highest
    of the others."""
    ordered = sorted(set(REWARD.values()))
    below = {r: sum(p for t, p in PI0.items() if REWARD[t] <= r) for r in ordered}
    top = {r: below[r] ** (n - 1) - (below[ordered[i - 1]] ** (n - 1) if i else 0) for i, r in enumerate(ordered)}
    weight = {}
    for t, p0 in PI0.items():
        rest = 1.0 if n == 1 else sum(p * math.exp((REWARD[t] - max(REWARD[t], r)) / beta) for r, p in top.items())
        weight[t] = p0 * rest
    return weight


def pooled(n: int, beta: float) -> dict[str, float]:
    """The law of all that the first passes over n draws accept."""
    weight = accepts(n, beta)
    return {t: w / sum(weight.values()) for t, w in weight.items()}


def one_pass(groups: list[Group], beta: float, seed: int, key: str = "index") -> Counter:
    """What the first pass accepts, by the module's own pass: n so large that it never stops early."""
    counts: Counter = Counter()
    for g in groups:
        texts = [r.text for r in g.responses]
        scores = select.scores_of(g)
        places = list({t: i for i, t in enumerate(texts)}.values()) if key == "text" else list(range(len(texts)))
        top = max(scores[i] for i in places)
        found = select.rejection([g], beta, len(places), generator(seed, int(g.prompt.id)), key=key)[0]
        # the passes after the first start behind the last candidate: cut where the order of the draw begins again
        counts.update(_first_pass(g, found, beta, generator(seed, int(g.prompt.id)), places, top))
    return counts


def _first_pass(g: Group, found: Group, beta: float, again: torch.Generator, places: list[int], top: float) -> list:
    order = [places[i] for i in torch.randperm(len(places), generator=again).tolist()]
    u = torch.rand(len(order), generator=again, dtype=torch.float64).tolist()
    expected = [g.responses[i] for i, x in zip(order, u, strict=True) if x < math.exp((g.scores[i] - top) / beta)]
    assert list(found.responses[: len(expected)]) == expected  # the algorithm as written, step by step
    return [r.text for r in expected]


def off_law(rows: list[Counter], law: dict[str, float]) -> torch.Tensor:
    """Of each group: what was accepted, less the law's share of as many. [groups, texts]"""
    return torch.tensor([[row[t] - p * sum(row.values()) for t, p in law.items()] for row in rows]).double()


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [1, 2, 8])
def test_the_pooled_first_pass_has_its_law(n: int, seed: int) -> None:
    # acceptances of one group depend on each other: groups are the sample, so the errors are taken over groups
    beta, seed = 0.5, shifted(seed)
    groups = drawn(n, 4000, seed)
    law, rows = pooled(n, beta), [one_pass([g], beta, seed) for g in groups]
    means(off_law(rows, law))
    if n == 1:
        assert law == pytest.approx(PI0)


@pytest.mark.statistical
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_the_first_pass_accepts_at_its_rate(n: int) -> None:
    """With the highest reward in every pool the rate is Z exp(-r_max/beta); smaller pools have lower bars."""
    beta, seed = 0.5, shifted(5)
    rows = [sum(one_pass([g], beta, seed).values()) / n for g in drawn(n, 2000, seed)]
    rate = torch.tensor(rows, dtype=torch.float64)
    expected = sum(accepts(n, beta).values())
    near(float(rate.mean()), expected, float(rate.std()) / math.sqrt(len(rows)))
    limit = sum(PI0[t] * math.exp(REWARD[t] / beta) for t in PI0) * math.exp(-max(REWARD.values()) / beta)
    assert limit <= expected
    if n == 64:
        assert expected == pytest.approx(limit, rel=2e-3)


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(3))
def test_first_accepted_of_two_has_its_closed_form(seed: int) -> None:
    beta, seed = 0.7, shifted(seed)
    law = {
        y: PI0[y]
        * sum(
            PI0[z]
            * (min(1, math.exp((REWARD[y] - REWARD[z]) / beta)) + max(0, 1 - math.exp((REWARD[z] - REWARD[y]) / beta)))
            for z in PI0
        )
        for y in PI0
    }
    follows(first_texts(select.rejection(drawn(2, TOYS, seed), beta, 1, generator(seed, 4))), law)


@pytest.mark.statistical
def test_many_candidates_give_the_tilted_law() -> None:
    found = select.rejection(drawn(64, 3000, shifted(0)), 0.7, 1, generator(shifted(9)))
    follows(first_texts(found), tilted(0.7))


@pytest.mark.statistical
def test_keyed_by_text_the_sampling_law_is_lost() -> None:
    groups = drawn(64, 4000, shifted(1))  # every text is there, so the pool is the support
    groups = [g for g in groups if len({r.text for r in g.responses}) == len(PI0)]
    law, rows = tilted(0.7, power=0.0), [one_pass([g], 0.7, shifted(1), "text") for g in groups]
    means(off_law(rows, law))
    found = select.rejection(groups[:50], 0.7, 64, generator(0), key="text")
    assert all(sorted(r.text for r in g.responses) == sorted(PI0) for g in found)  # and the empty pool is no error


def test_a_text_has_the_score_of_its_last_candidate() -> None:
    twice = SimpleNamespace(group=group("aba"))
    changed = Group(twice.group.prompt, twice.group.responses, (5.0, 1.0, 0.0))
    (found,) = select.rejection([changed], 0.0, 2, generator(0), key="text")
    assert ([r.text for r in found.responses], found.scores) == (["b", "a"], (1.0, 0.0))


def test_beta_zero_gives_the_best_in_order() -> None:
    for seed in range(20):
        (found,) = select.rejection([group("aebcd")], 0.0, 4, generator(seed))
        assert found.scores == (1.0, 1.0, 0.5, 0.25)
        (cold,) = select.rejection([group("aebcd")], 1e-12, 4, generator(seed))
        assert cold.scores == found.scores


@pytest.mark.statistical
def test_beta_zero_breaks_ties_evenly() -> None:
    firsts = select.rejection([group("aebcd")] * 4000, 0.0, 1, generator(shifted(0)))
    follows(first_texts(firsts), {"c": 0.5, "d": 0.5})


def test_a_hot_beta_accepts_everything_at_once() -> None:
    (found,) = select.rejection([group("abcde")], 1e9, 5, generator(0))
    order = torch.randperm(5, generator=generator(0)).tolist()
    assert [r.ids[1] for r in found.responses] == order  # one pass, in the order of the draw


def test_shifted_scores_change_nothing() -> None:
    groups = drawn(16, 50, 2)  # their scores are quarters, so adding 1024 is exact
    shifted = [Group(g.prompt, g.responses, tuple(s + 1024.0 for s in g.scores or ()), origin=g.origin) for g in groups]
    for beta in (0.0, 0.3, 5.0):
        one, other = (select.rejection(x, beta, 4, generator(6)) for x in (groups, shifted))
        assert [g.responses for g in one] == [g.responses for g in other]


def test_rejection_ends_and_accepts_the_best() -> None:
    groups = drawn(8, 200, 5)
    for beta, n in product((0.0, 1e-300, 0.1, 1e9), (1, 8, 100)):
        for found, g in zip(select.rejection(groups, beta, n, generator(0)), groups, strict=True):
            assert len(found.responses) == min(n, 8)
            assert Counter(r.ids for r in found.responses) <= Counter(r.ids for r in g.responses)
            if beta <= 1e-300 or n >= 8:
                assert max(found.scores or ()) == max(g.scores or ())


def test_with_replacement_a_candidate_may_come_again() -> None:
    (found,) = select.rejection([group("ab")], 0.0, 6, generator(0), replacement=True)
    assert [r.text for r in found.responses] == ["b"] * 6


# ------------------------------------------------------------------------------------------------------- wrong input


def test_scores_are_needed() -> None:
    bare = Group(Prompt(ids=(1,), id="p7"), (Response(text="a"), Response(text="b")))
    odd = Group(bare.prompt, bare.responses, (1.0, math.nan))
    for wrong in (bare, odd):
        for run in (
            lambda g: select.best([g], generator(0)),
            lambda g: select.best_worst([g], generator(0)),
            lambda g: select.above([g], 0.0),
            lambda g: select.rejection([g], 1.0, 1, generator(0)),
            lambda g: select.all_pairs([g]),
        ):
            with pytest.raises(DataError, match="one finite score a response"):
                run(wrong)


def test_a_judge_must_judge() -> None:
    for wrong in ([], [1.0], [1.0, math.nan, 1.0]):
        with pytest.raises(DataError, match="one finite number a pair"):
            select.all_pairs([group("abc")], lambda pairs, wrong=wrong: wrong)


def test_settings_out_of_range() -> None:
    for beta, n in ((-1.0, 1), (math.nan, 1), (1.0, 0)):
        with pytest.raises(ConfigError, match="rejection"):
            select.rejection([group("ab")], beta, n, generator(0))
    with pytest.raises(ConfigError, match="too few pairs"):
        select.random_pairs([group("ab")], 0, generator(0))


def test_nothing_in_nothing_out() -> None:
    g = generator(0)
    for found in (select.best([], g), select.tournament([], select.by_scores, g), select.rejection([], 1.0, 1, g)):
        assert (list(found), found.dropped) == ([], 0)

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtrit
from scipy.stats import binomtest, kendalltau
from tests.chance import below, beyond, near, share, shifted

from tiltyard.errors import DataError
from tiltyard.stats import bins, correlation, intervals, text, win_rates


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        (8, 10, (0.4902, 0.9433)),  # published examples of the score interval
        (81, 263, (0.2553, 0.3662)),
        (0, 10, (0.0, 0.2775)),
        (10, 10, (0.7225, 1.0)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_closed_form(successes, n, expected):
    assert intervals.wilson(successes, n) == pytest.approx(expected, abs=1e-4)


def test_wilson_solves_its_equation():
    z = 1.959963984540054
    for bound in intervals.wilson(7.5, 20):
        assert (0.375 - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / 20)


def test_wilson_edges():
    assert all(math.isnan(x) for x in intervals.wilson(0, 0))
    with pytest.raises(DataError):
        intervals.wilson(11, 10)
    with pytest.raises(DataError, match="level"):
        intervals.wilson(1, 10, level=95)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_is_scipys_where_that_is_defined(n, share_of_n, level):
    k = round(share_of_n * n)
    assert intervals.wilson(k, n, level) == pytest.approx(
        tuple(binomtest(k, n).proportion_ci(level, method="wilson")), abs=1e-12
    )


@pytest.mark.statistical
@pytest.mark.parametrize(("n", "coverage"), [(15, 0.940), (30, 0.947)])
def test_bootstrap_covers_at_its_level(n, coverage):
    """400 sets; in at most 1.5% of them it differs from the interval that is exact for normal data."""
    rng = np.random.default_rng(shifted(0))
    hits = differ = 0
    for i in range(400):
        x = rng.normal(1.5, 2, size=n)
        low, high = intervals.bootstrap_ci(x, seed=shifted(i))
        hit = low <= 1.5 <= high
        hits += hit
        differ += hit != (abs(x.mean() - 1.5) <= stdtrit(n - 1, 0.975) * x.std(ddof=1) / math.sqrt(n))
    share(hits, 400, coverage)
    below(differ, 400, 0.015)


@pytest.mark.statistical
def test_cluster_bootstrap_covers_and_plain_does_not():
    rng = np.random.default_rng(shifted(3))
    clusters = np.repeat(np.arange(20), 8)
    clustered = plain = 0
    for i in range(400):
        x = rng.normal(size=20).repeat(8) + 0.3 * rng.normal(size=160)
        low, high = intervals.bootstrap_ci(x, clusters, seed=shifted(i))
        clustered += low <= 0 <= high
        low, high = intervals.bootstrap_ci(x, seed=shifted(i))
        plain += low <= 0 <= high
    share(clustered, 400, 0.945)  # with 15 and 30 clusters 0.940 and 0.947
    beyond(0.7, plain / 400, math.sqrt(0.7 * 0.3 / 400))


@pytest.mark.statistical
def test_clusters_widen_only_where_there_is_dependence():
    """Widths of intervals by 50 clusters and by 300 values, whose t differ by 1.021; with 1,000 rounds a width has a
    relative error of 0.03. Of independent values the clusters' deviation has another, 1/sqrt(2 * 49)."""
    rng = np.random.default_rng(shifted(0))
    clusters = np.repeat(np.arange(50), 6)

    def ratio(x):
        low, high = intervals.bootstrap_ci(x, clusters, seed=shifted(0))
        low_1, high_1 = intervals.bootstrap_ci(x, seed=shifted(1))
        return (high - low) / (high_1 - low_1)

    near(ratio(rng.normal(size=50).repeat(6)) / math.sqrt(6), 1.021, 0.045)
    near(ratio(rng.normal(size=300)), 1.021, math.hypot(0.045, 1 / math.sqrt(98)))


@pytest.mark.statistical
def test_bootstrap_matches_the_normal_interval_when_large_and_ignores_chunks(monkeypatch):
    """The normal quantiles, moved by the mean's skewness; one of 4,000 rounds has an error of 0.042 deviations."""
    x = np.random.default_rng(shifted(1)).exponential(size=2000)
    low, high = intervals.bootstrap_ci(x, rounds=4000)
    error = x.std(ddof=1) / math.sqrt(len(x))
    moved = ((x - x.mean()) ** 3).mean() / x.std() ** 3 / math.sqrt(len(x)) * (1.96**2 - 1) / 6
    near((low - x.mean()) / error, -1.96 + moved, 0.042)
    near((high - x.mean()) / error, 1.96 + moved, 0.042)
    monkeypatch.setattr(intervals, "_CHUNK", 10_000)
    assert intervals.bootstrap_ci(x, rounds=4000) == (low, high)


@pytest.mark.statistical
def test_studentised_intervals_cover_skewed_values():
    """400 sets of 40 exponential values: the percentile interval covers about 92.5%, plain studentised ones 94.5%."""
    rng = np.random.default_rng(shifted(5))
    hits = 0
    for i in range(400):
        low, high = intervals.studentised_ci(rng.exponential(size=40), rounds=500, seed=shifted(i))
        hits += low <= 1.0 <= high
    share(hits, 400, 0.955)


@pytest.mark.statistical
def test_studentised_interval_moves_with_the_skewness(monkeypatch):
    """To second order the bounds are those of the normal, moved by the mean's skewness times (2 z^2 + 1) / 6; the short
    side keeps the percentile's, which moves by (z^2 - 1) / 6."""
    x = np.random.default_rng(shifted(1)).exponential(size=2000)
    low, high = intervals.studentised_ci(x, rounds=4000)
    error = x.std() / math.sqrt(len(x))
    skewness = ((x - x.mean()) ** 3).mean() / x.std() ** 3 / math.sqrt(len(x))
    near((low - x.mean()) / error, -1.96 + skewness * (1.96**2 - 1) / 6, 0.042)
    near((high - x.mean()) / error, 1.96 + skewness * (2 * 1.96**2 + 1) / 6, 0.042)
    monkeypatch.setattr(intervals, "_CHUNK", 10_000)
    assert intervals.studentised_ci(x, rounds=4000) == (low, high)
    twice = intervals.studentised_ci(np.repeat(x, 2), np.repeat(np.arange(2000), 2), rounds=4000)
    assert twice == pytest.approx((low, high))


def test_values_too_alike_to_be_studentised():
    """Resamples without a standard error: the percentile interval, of equal values a point."""
    rare = np.array([0.0] * 14 + [1.0])
    assert intervals.studentised_ci(rare) == intervals.bootstrap_ci(rare)
    assert intervals.studentised_ci(np.full(10, 0.3)) == pytest.approx((0.3, 0.3))
    assert all(math.isnan(x) for x in intervals.studentised_ci([1.0]))
    assert intervals.mean_ci(rare, skewed=True).ci == intervals.bootstrap_ci(rare)


def test_unequal_clusters_resample_the_ratio():
    # Two prompts, 1 and 3 answers: the only possible means are 0, 3/4 and 1.
    low, high = intervals.bootstrap_ci([0, 1, 1, 1], ["a", "b", "b", "b"])
    assert (low, high) == (0.0, 1.0)
    assert intervals.mean_ci([0, 1, 1, 1], ["a", "b", "b", "b"]).value == 0.75


def test_one_cluster_knows_no_interval():
    assert all(math.isnan(x) for x in intervals.bootstrap_ci([1.0, 2.0], ["a", "a"]))


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_bad_values_are_errors(bad):
    with pytest.raises(DataError):
        intervals.mean_ci(bad)


def test_a_perfect_rate_is_not_certain():
    estimate = intervals.rate_ci([1.0] * 40, np.repeat(np.arange(10), 4))
    assert estimate.value == 1.0
    assert estimate.ci == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_win_rate_counts_ties_half():
    assert win_rates.win_rate([1, 2, 3, 4], [0, 2, 5, 1], [0, 0, 1, 1]).value == (1 + 0.5 + 0 + 1) / 4


scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=4)
both = st.dictionaries(st.text(max_size=3), st.tuples(scores, scores), min_size=1, max_size=8)


@given(both)
def test_win_rate_symmetry(table):
    a, b = {p: x for p, (x, _) in table.items()}, {p: y for p, (_, y) in table.items()}
    assert win_rates.win_rate_by_prompt(a, a).value == 0.5
    forth, back = win_rates.win_rate_by_prompt(a, b), win_rates.win_rate_by_prompt(b, a)
    assert forth.value == pytest.approx(1 - back.value)
    assert (forth.low, forth.high) == pytest.approx((1 - back.high, 1 - back.low), nan_ok=True)
    pairs = [[(x > y) + 0.5 * (x == y) for x, y in itertools.product(a[p], b[p])] for p in a]
    assert forth.value == pytest.approx(np.mean([np.mean(p) for p in pairs]))
    assert forth.n == sum(map(len, pairs))


def test_win_rate_pairing_by_index_and_missing_prompts():
    a, b = {"p": [1.0, 5.0]}, {"p": [2.0, 3.0]}
    assert win_rates.win_rate_by_prompt(a, b, pairing="index").value == 0.5
    assert win_rates.win_rate_by_prompt({"p": [1.0, 5.0]}, {"p": [0.0, 3.0]}, pairing="all").value == 0.75
    with pytest.raises(DataError, match="'q'"):
        win_rates.win_rate_by_prompt(a, {**b, "q": [1.0]})


def test_accuracy():
    estimate = win_rates.accuracy_ci([2] * 8 + [0] * 2, [1] * 10)
    assert estimate == pytest.approx((0.8, 0.4902, 0.9433, 10), abs=1e-4)
    assert win_rates.accuracy_ci([1, 1], [1, 1]).value == 0.5


def test_binned_edges_and_labels():
    rows = bins.binned([1, 9, 10, 19, 20], [0, 10, 20, math.inf], [1, 0, 1, 1, 0])
    assert [(r.label, r.rate.n, r.rate.value) for r in rows] == [
        ("0 to <10", 2, 0.5),
        ("10 to <20", 2, 1.0),
        ("20 to inf", 1, 0.0),
    ]
    empty = bins.binned([1.0], [0, 2, 4], [1])[1].rate
    assert empty.n == 0
    assert math.isnan(empty.value)
    with pytest.raises(DataError, match="outside"):
        bins.binned([5.0], [0, 2], [1])
    with pytest.raises(DataError, match="rise"):
        bins.binned([1.0], [2, 0], [1])


def test_binned_by_count_is_even_and_complete():
    x = np.random.default_rng(0).normal(size=101)
    rows = bins.binned(x, 4, np.ones(101))
    assert [r.rate.n for r in rows] == [25, 25, 25, 26]
    same = bins.binned([3, 3, 3], 4, [1, 1, 0])
    assert [(r.label, r.rate.n) for r in same] == [("3", 3)]


def test_by_label():
    rates = bins.by_label(["b", "a", "b"], [1, 0, 0], ["p", "p", "q"])
    assert {k: (v.value, v.n) for k, v in rates.items()} == {"a": (0.0, 1), "b": (0.5, 2)}
    assert list(rates) == ["a", "b"]


def test_tau_b_by_hand():
    # x: one tied pair, y: one tied pair; of 6 pairs 4 concordant, 0 discordant: 4 / sqrt(5 * 5).
    assert correlation.kendall_tau_b([1, 1, 2, 3], [1, 2, 3, 3]) == pytest.approx(0.8)
    # The well-known scipy example: -0.4714045...
    assert correlation.kendall_tau_b([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.47140452079103173)
    assert correlation.kendall_tau_b([1, 2, 3], [3, 2, 1]) == -1
    assert correlation.kendall_tau_b([-math.inf, 0, math.inf, math.inf], [0, 1, 2, 2]) == 1
    assert math.isnan(correlation.kendall_tau_b([1, 1], [1, 2]))
    assert math.isnan(correlation.kendall_tau_b([], []))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12))
def test_tau_b_is_scipys(pairs):
    x, y = ([float(v) for v in column] for column in zip(*pairs, strict=True))
    assert correlation.kendall_tau_b(x, y) == pytest.approx(kendalltau(x, y).statistic, abs=1e-12, nan_ok=True)


def test_bits_per_byte():
    assert text.bits_per_byte(10 * math.log(256), 10) == pytest.approx(8)
    with pytest.raises(DataError):
        text.bits_per_byte(1.0, 0)


def test_distinct_oracles():
    # All samples equal, L words: (1/samples) * unique / (L - n + 1).
    assert text.distinct_n(["a b c d"] * 5) == pytest.approx(1 / 5)
    assert text.distinct_n(["a b", "c d", "e f"]) == 1
    assert math.isnan(text.distinct_n(["a", ""]))


@pytest.mark.statistical
def test_distinct_budget_removes_the_length_bias():
    """Of 144 kinds 500 draws without replacement show 140 on average, with a deviation below 2 (a ratio of 0.014)."""
    rng = np.random.default_rng(shifted(0))
    words = [f"w{i}" for i in range(12)]
    short, long = ([" ".join(rng.choice(words, size=n)) for _ in range(200)] for n in (10, 60))
    assert text.distinct_n(short) > 3 * text.distinct_n(long)
    near(text.distinct_n(short, budget=500) / text.distinct_n(long, budget=500), 1, 0.02)

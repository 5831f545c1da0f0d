"""Agreement: published and closed forms, two other implementations, and the coverage of the intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chance import near, shifted
from tests.stats.simulated import SIMULATIONS, annotations, covers, drawn, one_coin

from tiltyard.errors import DataError
from tiltyard.stats import agreement
from tiltyard.stats.annotations import Annotations

DISTANCES = ("nominal", "ordinal", "interval")
INDICES = {
    "percent": agreement.percent_agreement,
    "cohen": agreement.cohen_kappa,
    "fleiss": agreement.fleiss_kappa,
    **{d: lambda x, d=d, **more: agreement.krippendorff_alpha(x, distance=d, **more) for d in DISTANCES},
}


def confusion(table) -> Annotations:
    """Two annotators whose labels cross in these numbers."""
    pairs = [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]
    return annotations(np.array(pairs), len(table))


def by_hand(label_UA, distance) -> float:
    """Alpha from its coincidence matrix, as Krippendorff writes it."""
    n = int(label_UA.max()) + 1
    o = np.zeros((n, n))
    for row in label_UA:
        row = row[row >= 0]
        for i, c in enumerate(row):
            for j, k in enumerate(row):
                if i != j:
                    o[c, k] += 1 / (len(row) - 1)
    n_c = o.sum(0)
    d = np.zeros((n, n))
    for c in range(n):
        for k in range(n):
            low, high = min(c, k), max(c, k)
            if distance == "nominal":
                d[c, k] = c != k
            elif distance == "interval":
                d[c, k] = (c - k) ** 2
            else:
                d[c, k] = (n_c[low : high + 1].sum() - (n_c[low] + n_c[high]) / 2) ** 2
    expected = (np.outer(n_c, n_c) * d).sum() / (n_c.sum() - 1)
    return 1 - (o * d).sum() / expected if expected else math.nan


def test_two_by_two():
    data = confusion([[20, 5], [10, 15]])
    assert agreement.percent_agreement(data).value == pytest.approx(0.70)
    assert agreement.cohen_kappa(data).value == pytest.approx(0.40)
    assert agreement.fleiss_kappa(data).value == pytest.approx(0.3939, abs=5e-5)  # Scott's pi
    assert agreement.krippendorff_alpha(data).value == pytest.approx(1 - 99 / 100 * (1 - 0.39393939))


def test_fleiss_published_table():
    """The example of Fleiss 1971 as tabulated: 10 subjects, 14 raters, 5 categories, kappa 0.210."""
    n_UC = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]]
    n_UC += [[7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]
    data = annotations(np.array([np.repeat(range(5), row) for row in n_UC]), 5)
    found = agreement.fleiss_kappa(data)
    assert found.value == pytest.approx(0.210, abs=5e-4)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("distance", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorff_published_table(distance, expected):
    """Krippendorff 2011, four observers, twelve units, missing labels."""
    columns = "11*1 2232 3333 3333 2222 1234 4444 1121 2222 *555 **11 *3**".replace("*", "0").split()
    label_UA = np.array([[int(x) - 1 for x in row] for row in columns])
    found = agreement.krippendorff_alpha(annotations(label_UA, 5), distance=distance)
    assert found.value == pytest.approx(expected, abs=5e-4)
    assert found.n == 11


tables = st.integers(2, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(-1, 3), min_size=n, max_size=n), min_size=2, max_size=12)
)


@given(table=tables, distance=st.sampled_from(DISTANCES))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_alpha_against_coincidences_and_its_interval(table, distance):
    label_UA = np.array(table)
    data = annotations(label_UA, 4)
    found = agreement.krippendorff_alpha(data, distance=distance, rounds=50)
    paired = label_UA[(label_UA >= 0).sum(1) > 1]
    expected = by_hand(paired, distance) if len(paired) else math.nan
    assert found.value == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert found.n == len(paired)
    assert math.isnan(found.low) or found.low <= found.value <= found.high
    assert bool(found.reason) == (math.isnan(found.value) or math.isnan(found.low))


def test_alpha_equals_evalica():
    evalica = pytest.importorskip("evalica", reason="evalica is not installed (the extra `dev`)")
    pd = pytest.importorskip("pandas")
    rng = np.random.default_rng(3)
    for distance in DISTANCES:
        for _ in range(5):
            _, label_UA = drawn(rng, [0.5, 0.2, 0.2, 0.1], one_coin([0.9, 0.7, 0.5], 4), 40, missing=0.25)
            table = pd.DataFrame(np.where(label_UA < 0, np.nan, label_UA).T)
            expected = evalica.alpha(table, distance=distance).alpha
            found = agreement.krippendorff_alpha(annotations(label_UA, 4), distance=distance, rounds=1)
            assert found.value == pytest.approx(expected, abs=1e-10)


def test_cohen_weighted_closed_form():
    """Quadratic weights: 2 cov / (var_a + var_b + (mean_a - mean_b)^2), Fleiss and Cohen 1973."""
    rng = np.random.default_rng(0)
    _, label_UA = drawn(rng, [0.3, 0.4, 0.3], one_coin([0.8, 0.6], 3), 60)
    a, b = label_UA.T
    expected = 2 * np.cov(a, b, bias=True)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
    for distance in ("ordinal", "interval"):
        assert agreement.cohen_kappa(annotations(label_UA, 3), distance=distance).value == pytest.approx(expected)


@pytest.mark.parametrize("name", INDICES)
def test_perfect_and_undefined(name):
    perfect = INDICES[name](confusion([[12, 0], [0, 8]]))
    assert perfect.value == 1
    assert perfect.high == 1
    assert 0.5 < perfect.low < 1  # twenty units do not show that no unit is ever disputed
    same = INDICES[name](confusion([[20, 0], [0, 0]]))
    if name == "percent":
        assert same.value == 1
    else:
        assert math.isnan(same.value)
        assert same.reason == agreement.ONE_LABEL
    alone = INDICES[name](Annotations.of([(0, "a", 1), (1, "b", 0)]))
    assert math.isnan(alone.value)
    assert alone.reason == agreement.NO_PAIRS
    if name != "percent":  # a rate of one unit has Wilson's interval
        one = INDICES[name](confusion([[0, 1], [0, 0]]))
        assert one.reason == "one unit alone"
        assert math.isnan(one.low)


def test_undefined_resamples():
    """One disputed unit of three: nearly a third of the resamples hold one label alone, so the interval is unknown."""
    found = agreement.krippendorff_alpha(confusion([[2, 1], [0, 0]]))
    assert not math.isnan(found.value)
    assert math.isnan(found.low)
    assert "of the resamples" in found.reason


def test_duplicated_units_narrow_the_interval_only_by_their_number():
    data = [confusion([[20 * n, 5 * n], [10 * n, 15 * n]]) for n in (1, 100)]
    one, many = (agreement.cohen_kappa(x, rounds=4000) for x in data)
    assert one.value == pytest.approx(many.value)
    assert (one.high - one.low) / (many.high - many.low) == pytest.approx(10, rel=0.1)


def test_fleiss_of_unequal_numbers_has_a_reason():
    rows = [(0, "a", 1), (0, "b", 1), (0, "c", 0), (1, "a", 1), (1, "b", 0)]
    assert "2 to 3 labels" in agreement.fleiss_kappa(Annotations.of(rows)).reason


def test_kendall_w():
    assert agreement.kendall_w([[1, 2, 3], [1, 2, 3]]) == 1
    assert agreement.kendall_w([[3, 1, 2]]) == 1
    assert agreement.kendall_w([[1, 2, 3], [3, 2, 1]]) == 0
    assert math.isnan(agreement.kendall_w([[1, 1, 1], [2, 2, 2]]))
    ranks = np.array([[1, 2, 3, 4], [2, 1, 4, 3], [1, 3, 2, 4]])  # mean Spearman of pairs r: W = (r (m - 1) + 1) / m
    pairs = [np.corrcoef(ranks[i], ranks[j])[0, 1] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert agreement.kendall_w(ranks) == pytest.approx((np.mean(pairs) * 2 + 1) / 3)
    tied = agreement.kendall_w([[1, 2.5, 2.5, 4], [1, 2.5, 2.5, 4]])
    assert tied == pytest.approx(1)
    assert agreement.kendall_w([[10, 20, 30], [1, 5, 9]]) == 1  # scores are ranked first


def test_mean_kendall_w():
    units = [[[1, 2, 3], [1, 2, 3]], [[1, 2, 3], [3, 2, 1]], [[1, 2, 3]], [[1, 1, 1], [1, 1, 1]]]
    found = agreement.mean_kendall_w(units)
    assert (found.value, found.n) == (0.5, 2)
    perfect = agreement.mean_kendall_w([[[1, 2], [1, 2]]] * 30)
    assert perfect.value == 1
    assert perfect.low < 1
    assert agreement.mean_kendall_w([]).reason


def test_rows_become_annotations():
    rows = [("p1", "ann", "A"), ("p1", "bob", None), ("p2", "bob", "tie"), ("p3", "ann", float("nan"))]
    data = Annotations.of(rows)
    assert data.labels == ("A", "tie")
    assert data.table_UA().tolist() == [[0, -1], [-1, 1]]
    assert Annotations.of(rows, ["B", "tie", "A"]).labels == ("B", "tie", "A")
    with pytest.raises(DataError, match="at most once"):
        Annotations.of([*rows, ("p1", "ann", "A")])
    with pytest.raises(DataError, match="holds every label once"):
        Annotations.of(rows, ["A", "B"])
    with pytest.raises(DataError, match="several kinds"):
        Annotations.of([(1, 1, "A"), (2, 1, 3)])
    with pytest.raises(DataError, match="numbers"):
        agreement.krippendorff_alpha(Annotations.of([(1, 1, "A"), (1, 2, "B")]), distance="interval")
    with pytest.raises(DataError, match="two annotators"):
        agreement.cohen_kappa(Annotations.of([(1, "a", 0), (1, "b", 1), (1, "c", 1)]))
    with pytest.raises(DataError, match="zoe"):
        agreement.cohen_kappa(Annotations.of([(1, "a", 0), (1, "b", 1)]), ("a", "zoe"))


@pytest.mark.statistical
def test_independent_annotators_agree_by_chance_alone():
    rng = np.random.default_rng(shifted(5))
    label_UA = rng.choice(3, (4000, 3), p=[0.6, 0.3, 0.1])
    for name in ("fleiss", *DISTANCES):
        found = INDICES[name](annotations(label_UA, 3), rounds=200)
        near(found.value, 0.0, (found.high - found.low) / 3.92, name)


@pytest.mark.slow
@pytest.mark.statistical
def test_coverage():
    """Three annotators of one quality, 100 units: the joint distribution of two labels gives the true values."""
    rng = np.random.default_rng(shifted(11))
    prior_C, right_CC = np.array([0.5, 0.3, 0.2]), one_coin([0.75], 3)[0]
    joint_CC = right_CC.T @ (prior_C[:, None] * right_CC)
    share_C = joint_CC.sum(0)
    place_C = np.cumsum(share_C) - share_C / 2

    def corrected(d_CC):
        return 1 - (joint_CC * d_CC).sum() / (np.outer(share_C, share_C) * d_CC).sum()

    nominal = corrected(1 - np.eye(3))
    truth = {"percent": np.trace(joint_CC), "cohen": nominal, "fleiss": nominal, "nominal": nominal}
    truth["ordinal"] = corrected((place_C[:, None] - place_C) ** 2)
    truth["interval"] = corrected((np.arange(3)[:, None] - np.arange(3)) ** 2)
    found = {name: [] for name in INDICES}
    for seed in range(SIMULATIONS):
        data = annotations(drawn(rng, prior_C, [right_CC] * 3, 100)[1], 3)
        for name, index in INDICES.items():
            more = {"annotators": ("a0", "a1")} if name == "cohen" else {}
            found[name].append(index(data, rounds=400, seed=seed, **more)[1:3])
    for name, bounds in found.items():
        covers(*np.array(bounds).T, truth[name], name)

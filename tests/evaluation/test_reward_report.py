"""The reward model's report against closed forms, brute force and the losses that training uses."""

from __future__ import annotations

import io
import json
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.stats import rankdata
from tests.preferences import fields_of

from tiltyard.errors import DataError
from tiltyard.evaluation.reward_models import BINS, best_scale, evaluate_pairs, evaluate_scores, log_loss_P
from tiltyard.evaluation.scored_pairs import ScoredPair, ranking_taus, scored_pairs
from tiltyard.files import jsonable
from tiltyard.losses.reward import accuracy_G, kwise_loss_G, ranking_pairs
from tiltyard.report.reward_plots import reward_png
from tiltyard.report.reward_tables import findings, print_reward_report
from tiltyard.types import Group, Message, Prompt, Response, ranks_of

LOGIT_80 = math.log(4)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pair(d: float, q: float = 1.0, longer: int = 0, *, prompt: object = None, at: int = 0, **more) -> ScoredPair:
    """A pair whose scores differ by d and whose lengths differ by `longer`."""
    return ScoredPair(at if prompt is None else prompt, d + 0.25, 0.25, q, 100 + longer, 100, **more)


def group(name: str, lengths: list[int], *, meta: dict | None = None, **labels) -> Group:
    answers = tuple(Response(ids=tuple(range(n)), text="x" * n) for n in lengths)
    return Group(
        Prompt((Message("user", name),), id="same for all", meta=meta or {}),
        answers,
        origin=name,
        **fields_of(**labels),
    )


def random_groups(seed: int, count: int = 40) -> tuple[list[Group], list[list[float]]]:
    rng = np.random.default_rng(seed)
    groups, scores = [], []
    for i in range(count):
        k = int(rng.integers(2, 6))
        ranks = tuple(int(r) for r in rng.integers(1, 4, size=k))
        groups.append(group(f"prompt {i % 25}", list(rng.integers(1, 30, size=k)), ranks=ranks))
        scores.append([float(s) for s in rng.integers(-3, 4, size=k) / 2])
    return groups, scores


# ----------------------------------------------------------------------------------------------------------- the pairs


@pytest.mark.parametrize("seed", range(3))
def test_pairs_and_figures_agree_with_the_losses_of_training(seed) -> None:
    groups, scores = random_groups(seed)
    rank_B = torch.tensor([float(r) for g in groups for r in ranks_of(g.preference) or ()])
    group_B = torch.tensor([i for i, g in enumerate(groups) for _ in g.responses])
    score_B = torch.tensor([s for row in scores for s in row], dtype=torch.float64)
    winner_P, loser_P, group_P = ranking_pairs(rank_B, group_B)
    pairs = scored_pairs(groups, scores)
    found = sorted((p.chosen, p.rejected) for p in pairs if p.q != 0.5)
    assert found == sorted(zip(score_B[winner_P].tolist(), score_B[loser_P].tolist(), strict=True))
    report = evaluate_scores(groups, scores)
    count_G = torch.bincount(group_P, minlength=len(groups))
    right = (accuracy_G(score_B, rank_B, group_B, len(groups)) * count_G).sum() / count_G.sum()
    loss = (kwise_loss_G(score_B, rank_B, group_B, len(groups)) * count_G).sum() / count_G.sum()
    assert report.accuracy.value == pytest.approx(float(right), abs=1e-12)
    assert report.log_loss.value == pytest.approx(float(loss), abs=1e-12)
    assert report.pairs + report.tied_in_labels == sum(len(g.responses) * (len(g.responses) - 1) // 2 for g in groups)
    assert report.tied_in_score == int((score_B[winner_P] == score_B[loser_P]).sum()) > 0
    assert report.prompts == len({int(g) % 25 for g in group_P})


def test_prompts_are_told_apart_by_what_they_say_and_not_by_their_names() -> None:
    """Rows of benchmarks are numbered; four pairs of one prompt are one observation, and one prompt has no interval."""
    groups = [group("the only prompt", [2, 3], ranks=(1, 2)) for _ in range(4)]
    report = evaluate_scores(groups, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert (report.pairs, report.prompts) == (4, 1)
    assert math.isnan(report.accuracy.low)


def test_copies_of_pairs_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    pairs = [pair(float(d), prompt=i // 2) for i, d in enumerate(rng.normal(0.4, 1, size=60))]
    once, often = evaluate_pairs(pairs), evaluate_pairs([p for p in pairs for _ in range(9)])
    assert often.accuracy[:3] == pytest.approx(once.accuracy[:3])
    assert often.log_loss[:3] == pytest.approx(once.log_loss[:3])


def test_where_labels_lengths_and_margins_come_from() -> None:
    rows = [
        group("a", [3, 5], ranks=(2, 1), meta={"margin": 0.5, "source": "web", "subset": 3, "category": ["odd"]}),
        group("b", [3, 5], scores=(1.0, 0.25)),
        group("c", [3, 5], ranks=(1, 2), shares=(0.3, 0.7)),
        group("d", [3, 5, 7], ranks=(1, 2, 2), shares=(0.6, 0.4, 0.0), meta={"margin": 9.0}),
        group("e", [3, 5]),
        group("f", [3]),
    ]
    pairs = scored_pairs(rows, [[10.0, 20.0]] * 3 + [[10.0, 20.0, 30.0]] + [[10.0, 20.0]] + [[1.0]])
    assert [(p.origin, p.indices, p.q) for p in pairs] == [
        ("a", (1, 0), 1.0),
        ("b", (0, 1), 1.0),
        ("c", (1, 0), pytest.approx(0.7)),
        ("d", (0, 1), pytest.approx(0.6)),
        ("d", (0, 2), 1.0),
        ("d", (1, 2), 1.0),
    ]
    assert [(p.chosen, p.rejected) for p in pairs[:3]] == [(20.0, 10.0), (10.0, 20.0), (20.0, 10.0)]
    assert [(p.chosen_tokens, p.rejected_tokens) for p in pairs[:2]] == [(5, 3), (3, 5)]
    assert [p.margin for p in pairs[:2]] == [0.5, 0.75]
    assert all(math.isnan(p.margin) for p in pairs[2:])  # a ranking of three has no one margin
    assert pairs[0].labels == (("source", "web"), ("subset", "3"))
    with pytest.raises(DataError, match="b: every response needs one score"):
        scored_pairs(rows[1:2], [[1.0]])


# -------------------------------------------------------------------------------------------------------- calibration


def test_a_calibrated_model_has_no_calibration_error() -> None:
    """100 pairs at sigmoid(d) = 0.8 of which 80 are right: no error, the entropy of 0.8 as its loss, scale 1."""
    pairs = [pair(LOGIT_80 if i % 5 else -LOGIT_80, at=i) for i in range(100)]
    report = evaluate_pairs(pairs)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert report.accuracy.value == 0.8
    assert report.ece == pytest.approx(0, abs=1e-12)
    assert report.log_loss.value == pytest.approx(entropy, abs=1e-12)
    assert report.scale == pytest.approx(1, abs=1e-9)
    twice = evaluate_pairs([p._replace(chosen=2 * p.chosen, rejected=2 * p.rejected) for p in pairs])
    assert twice.scale == pytest.approx(0.5, abs=1e-9)
    assert twice.log_loss_scaled == pytest.approx(entropy, abs=1e-9)
    assert twice.ece == pytest.approx(sigmoid(2 * LOGIT_80) - 0.8, abs=1e-12)
    assert any("overconfident" in line for line in findings(twice))
    assert not findings(report)[1:]  # the rule of length is a coin here, and the model is far above it


def test_soft_labels_that_follow_the_scores_are_perfectly_calibrated() -> None:
    d_P = np.random.default_rng(1).normal(size=500)
    q_P = 1 / (1 + np.exp(-d_P))
    report = evaluate_pairs([pair(float(d), float(q), at=i) for i, (d, q) in enumerate(zip(d_P, q_P, strict=True))])
    assert report.accuracy.value == 1.0
    assert report.ece == pytest.approx(0, abs=1e-12)
    assert report.ece_full == pytest.approx(0, abs=1e-12)
    assert report.log_loss.value == pytest.approx(float(-(q_P * np.log(q_P) + (1 - q_P) * np.log(1 - q_P)).mean()))
    assert report.scale == pytest.approx(1, abs=1e-9)
    assert report.soft == 500


def test_which_answer_is_called_chosen_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    pairs = [
        pair(float(d), float(q), int(n), prompt=i // 3, origin="", margin=float(n))
        for i, (d, q, n) in enumerate(
            zip(rng.normal(size=90), rng.uniform(size=90), rng.integers(-9, 10, size=90), strict=True)
        )
    ]
    pairs += [pair(1.0, 0.5, prompt="tied"), pair(0.0, 0.9, 4, prompt="equal")]
    turned = [p.swapped() if i % 2 else p for i, p in enumerate(pairs)]
    one, two = (json.dumps(jsonable(evaluate_pairs(x).to_dict()), sort_keys=True) for x in (pairs, turned))
    rounded = [[round(v, 9) if isinstance(v, float) else v for v in _leaves(json.loads(x))] for x in (one, two)]
    assert rounded[0] == rounded[1]
    assert evaluate_pairs(pairs).tied_in_labels == 1


def _leaves(value):
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [leaf for item in items for leaf in _leaves(item)]
    return [value]


def test_the_bins_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    pairs = [
        pair(float(d), float(q), at=i)
        for i, (d, q) in enumerate(
            zip(rng.normal(0.3, 1.5, size=400), rng.choice([0.6, 0.75, 1.0], size=400), strict=True)
        )
    ]
    report = evaluate_pairs(pairs)
    bins = defaultdict(list)
    for p in pairs:
        d = p.chosen - p.rejected
        confidence = sigmoid(abs(d))
        right = p.q if d > 0 else 1 - p.q
        bins[min(int((confidence - 0.5) / 0.5 * BINS), BINS - 1)].append((confidence, right))
    ece = sum(abs(sum(c - r for c, r in rows)) for rows in bins.values()) / 400
    assert report.ece == pytest.approx(ece, abs=1e-12)
    assert [b.observed.n for b in report.reliability] == [len(bins[i]) for i in sorted(bins)]
    assert [b.observed.n for b in report.reliability_full] == [400 // BINS] * BINS


def test_equal_scores_are_a_coin() -> None:
    report = evaluate_pairs([pair(0.0, longer=i, at=i) for i in range(8)])
    assert report.accuracy.value == 0.5
    assert report.tied_in_score == 8
    assert report.log_loss.value == report.log_loss_scaled == pytest.approx(math.log(2))
    assert report.ece == pytest.approx(0, abs=1e-12)
    assert math.isnan(report.length_pearson)
    assert any("above chance" in line for line in findings(report))


def test_the_best_scale_is_where_no_other_is_better() -> None:
    rng = np.random.default_rng(4)
    d_P, q_P = rng.normal(1, 3, size=200), rng.choice([0.7, 1.0], size=200)
    best = best_scale(d_P, q_P)
    losses = [float(log_loss_P(best * k * d_P, q_P).mean()) for k in (0.9, 0.999, 1, 1.001, 1.1)]
    assert min(losses) == losses[2]
    assert best_scale(-np.abs(d_P), np.ones(200)) == 0.0  # always wrong: no score at all is best
    assert math.isnan(best_scale(np.abs(d_P), np.ones(200)))  # always right: the larger the better
    huge = log_loss_P(np.array([800.0, -800.0]), np.ones(2))
    assert huge.tolist() == [0.0, 800.0]


# ------------------------------------------------------------------------------------------------------------- length


def test_a_model_that_only_counts_tokens_is_found_out() -> None:
    lengths = [int(n) for n in np.random.default_rng(5).integers(-20, 30, size=300)]
    report = evaluate_pairs([pair(0.125 * n, longer=n, at=i) for i, n in enumerate(lengths)])
    assert report.picks_longer.value == pytest.approx(np.mean([0.5 if n == 0 else 1.0 for n in lengths]))
    assert report.length_pearson == pytest.approx(1)
    assert report.length_spearman == pytest.approx(1)
    assert report.accuracy.value == report.longer_wins.value
    assert report.above_rule.value == 0
    assert report.longer_excess.low > 0
    assert any("favour long" in line for line in findings(report))
    mirrored = evaluate_pairs([pair(-0.125 * n, longer=n, at=i) for i, n in enumerate(lengths)])
    assert mirrored.length_spearman == pytest.approx(-1)
    assert mirrored.accuracy.value == pytest.approx(1 - report.accuracy.value)
    assert any("favour short" in line for line in findings(mirrored))
    assert any("worse than preferring the longer" in line for line in findings(mirrored))


def test_correlations_are_those_of_every_pair_taken_both_ways() -> None:
    rng = np.random.default_rng(6)
    d, n = rng.integers(-4, 5, size=120).astype(float), rng.integers(-6, 7, size=120).astype(float)
    report = evaluate_pairs([pair(float(a), longer=int(b), at=i) for i, (a, b) in enumerate(zip(d, n, strict=True))])
    x, y = np.concatenate([d, -d]), np.concatenate([n, -n])

    def ranks(v):  # by counting
        return np.array([(v < a).sum() + ((v == a).sum() + 1) / 2 for a in v])

    assert report.length_pearson == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert report.length_spearman == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1], abs=1e-12)
    assert rankdata(x).tolist() == ranks(x).tolist()


@pytest.mark.parametrize("sizes", [[0, 0, 0], [1, -1, 0], [5, 5, -5], [*range(-40, 41)], [1, 2, 3, -900]])
def test_lengths_fall_into_one_bin_each(sizes) -> None:
    report = evaluate_pairs([pair(1.0, longer=n, at=i) for i, n in enumerate(sizes)])
    if not any(sizes):
        assert report.by_length == []
        return
    assert sum(row.accuracy.n for row in report.by_length) == len(sizes)
    for row in report.by_length:
        words = row.label.replace(",", "").split()
        sign = {"shorter": -1, "longer": 1, "length": 0}[words[1]]
        low = int(words[3]) if sign else 0
        high = float(words[5].replace("more", "inf")) if len(words) > 4 else low
        inside = [n for n in sizes if (n == 0 if sign == 0 else low <= sign * n <= high)]
        assert row.accuracy.n == len(inside) > 0
        assert row.longer_wins == (sign + 1) / 2


# --------------------------------------------------------------------------------------------------------- breakdowns


def test_breakdowns_by_source_and_margin() -> None:
    def one(i, d, source, margin):
        return pair(d, at=i, margin=margin, labels=(("subset", source),) if source else ())

    spec = [("chat", 9, 1), ("code", 1, 1), ("maths", 0, 4)]
    pairs = [
        one((s, i), 1.0 if i < right else -1.0, s, float(i)) for s, right, wrong in spec for i in range(right + wrong)
    ]
    pairs.append(one("none", 1.0, "", math.nan))
    report = evaluate_pairs(pairs)
    subsets = report.by_field["subset"]
    assert [(r.label, r.accuracy.value, r.accuracy.n) for r in subsets.rows] == [
        ("chat", 0.9, 10),
        ("code", 0.5, 2),
        ("maths", 0.0, 4),
    ]
    assert subsets.mean == pytest.approx((0.9 + 0.5 + 0) / 3)
    assert list(report.by_field) == ["subset"]
    assert sum(row.accuracy.n for row in report.by_margin) == 16
    first = [p for p in pairs if p.margin < 1]
    assert report.by_margin[0].accuracy.n == len(first)
    assert report.by_margin[0].accuracy.value == pytest.approx(sum(p.chosen > p.rejected for p in first) / len(first))


def test_rankings_have_a_rank_correlation() -> None:
    rows = [group(f"p{i}", [1, 2, 3], ranks=ranks) for i, ranks in enumerate([(1, 2, 3), (1, 2, 3), (1, 1, 1)])]
    scores = [[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [3.0, 2.0, 1.0]]
    assert [t for _, t in ranking_taus(rows, scores)][:2] == pytest.approx([1, 1 / 3])
    report = evaluate_scores(rows, scores)
    assert report.tau is not None
    assert report.tau.value == pytest.approx(2 / 3)
    assert (report.tau.n, report.tau_undefined) == (2, 1)
    assert evaluate_scores([group("p", [1, 2], ranks=(1, 2))], [[1.0, 0.0]]).tau is None


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no pair of responses has different labels"),
        ([pair(1.0, 0.5)], "1 pair, all tied"),
        ([pair(math.nan)], "not a finite number"),
        ([pair(1.0), pair(math.inf)], "not a finite number"),
        ([pair(1.0, 1.5)], "must lie in 0..1"),
    ],
)
def test_what_cannot_be_judged_is_an_error(pairs, message) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_pairs(pairs)


# ------------------------------------------------------------------------------------------------- tables and picture


def some_report(fields: int = 2):
    rng = np.random.default_rng(7)
    names = ("source", "subset", "category")[:fields]
    pairs = [
        pair(
            float(rng.normal(0.7)),
            longer=int(rng.integers(-9, 20)),
            prompt=i // 2,
            margin=float(rng.uniform()),
            labels=tuple((n, f"[red]{i % 30} $x$\x1b[2J") for n in names),
        )
        for i in range(300)
    ]
    return evaluate_pairs(pairs, [(i, 0.3 + 0.01 * i) for i in range(9)])


@pytest.mark.parametrize("width", [60, 200])
def test_tables_say_what_was_counted_and_show_labels_literally(width) -> None:
    report, out = some_report(), io.StringIO()
    print_reward_report(report, Console(file=out, width=width))
    text = out.getvalue()
    assert "0 pairs tied in the labels were excluded" in text
    assert "0 pairs tied in score count one half" in text
    assert f"{100 * report.accuracy.value:.1f}% ({100 * report.accuracy.low:.1f} to" in text
    assert "[red]" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    if width == 200:
        assert f"the 25 largest of {len(report.by_field['source'].rows)}; the file has all" in text
        assert f"mean over the 30 of source, unweighted: {report.by_field['source'].mean:.1%}" in text


@pytest.mark.parametrize("fields", [0, 1, 3])
def test_the_picture_has_a_panel_for_each_breakdown(tmp_path, fields) -> None:
    report = some_report(fields)
    with Image.open(reward_png(tmp_path / "r.png", report, title="a $model$ \x1b")) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 5
        tall = image.height
    bare = evaluate_pairs([pair(1.0, at=0), pair(-1.0, at=1)])
    with Image.open(reward_png(tmp_path / "b.png", bare)) as image:
        assert image.height < tall

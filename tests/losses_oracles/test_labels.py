"""Soft and noisy labels (methods 1.8, 4.2), and the columns that prepare steps make of what people said."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tiltyard.batch.batch import Batch
from tiltyard.batch.forest import Forest
from tiltyard.errors import DataError
from tiltyard.losses.labels import both_ways_G, noisy_label_G
from tiltyard.losses.preference import Hinge, Logistic, Squared
from tiltyard.methods.click import NegativePairs
from tiltyard.methods.kto import MismatchedKL
from tiltyard.methods.reward_model import Margins, RankingLabels
from tiltyard.training.algorithm import Models
from tiltyard.training.prepare import BinaryLabels, PairLabels
from tiltyard.types import Group, Preference, Prompt, Response

from .tabular import ASK, answers, pair
from .toy import F64, same

Q = torch.linspace(0, 1, 11, dtype=F64)
H = torch.linspace(-4, 4, 11, dtype=F64)
NOISE = (0.0, 0.1, 0.25, 0.49)
LOSSES = {"logistic": Logistic(0.7), "squared": Squared(0.4), "hinge": Hinge(1.3), "margin": Logistic(0.7, 0.4)}


def prepared(step: object, *groups: Group) -> Batch:
    return step(Models(), Batch.of(groups, range(len(groups)), len(groups)))  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------------ the arithmetic


@pytest.mark.parametrize("noise", NOISE)
def test_conservative_is_the_law_of_flipped_labels_and_robust_undoes_it(noise: float) -> None:
    flipped = (1 - noise) * Q + noise * (1 - Q)  # P(the label says first) when it is flipped at this rate
    same(noisy_label_G(Q, noise, "conservative"), flipped, 1e-15)
    same(noisy_label_G(flipped, noise, "robust"), Q, 1e-13)
    same(noisy_label_G(1 - Q, noise, "robust"), 1 - noisy_label_G(Q, noise, "robust"), 1e-13)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("name", LOSSES)
def test_the_robust_loss_of_flipped_labels_is_the_loss_of_clean_ones(name: str, noise: float) -> None:
    """Unbiased for EVERY loss and h (Natarajan et al. 2013, lemma 1), label by label; conservative is not."""
    loss, one = LOSSES[name], torch.ones_like(H)
    robust = {label: both_ways_G(loss, H, noisy_label_G(label * one, noise, "robust")) for label in (0, 1)}
    for label in (0, 1):
        expected = (1 - noise) * robust[label] + noise * robust[1 - label]
        same(expected, both_ways_G(loss, H, label * one), 1e-12)
    same(robust[1], ((1 - noise) * loss(H) - noise * loss(-H)) / (1 - 2 * noise), 1e-12)
    if noise:
        smooth = {x: both_ways_G(loss, H, noisy_label_G(x * one, noise, "conservative")) for x in (0, 1)}
        gap = (1 - noise) * smooth[1] + noise * smooth[0] - loss(H)
        # 2e(1-e) of the loss of the other label stands in for as much of the true one's
        same(gap, 2 * noise * (1 - noise) * (loss(-H) - loss(H)), 1e-12)


def test_both_ways_by_hand() -> None:
    h, q = torch.tensor([2.0], dtype=F64), torch.tensor([0.75], dtype=F64)
    same(both_ways_G(softplus, h, q), 0.75 * softplus(h) + 0.25 * softplus(-h), 1e-15)
    assert both_ways_G(Hinge(1.0), h, q).tolist() == [0.75 * 0 + 0.25 * 3]
    assert both_ways_G(Squared(0.5), h, q).tolist() == [0.75 * 1 + 0.25 * 9]


@pytest.mark.parametrize("q", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_where_the_logistic_loss_is_least(q: float, noise: float) -> None:
    """h* = logit(q')/beta, by the sign of the slope on both sides: q' = (1-2e) q + e; robust with flips: logit(q)."""
    logit = lambda x: math.log(x / (1 - x))  # noqa: E731
    seen = (1 - 2 * noise) * q + noise
    for label, kind, best in ((q, "conservative", seen), (seen, "robust", q)):
        at = torch.tensor([logit(best) / 0.3], dtype=F64, requires_grad=True)
        target = noisy_label_G(torch.tensor([label], dtype=F64), noise, kind)  # type: ignore[arg-type]
        slope = lambda h: torch.autograd.grad(both_ways_G(Logistic(0.3), h, target).sum(), h)[0]  # noqa: B023, E731
        assert abs(float(slope(at))) < 1e-14
        assert float(slope(at - 0.01)) < -1e-5
        assert float(slope(at + 0.01)) > 1e-5


# --------------------------------------------------------------------------------------------------------- the columns


def test_preferred() -> None:
    tied = Group(ASK, answers(0, 1), preference=Preference(ranks=(3, 3)))
    batch = prepared(
        PairLabels("dpo"),
        pair(0, 1),
        Group(ASK, answers(0, 1), preference=Preference(ranks=(2, 1))),
        tied,
        pair(0, 1, 0.5),
    )
    assert batch["share_B"].view(-1, 2).tolist() == [[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]]
    assert batch["kept_G"].tolist() == [1, 1, 0, 1]
    assert batch.metrics["tied_groups"] == (1.0, 4.0)
    soft = Group(ASK, answers(0, 1), preference=Preference(shares=(0.7, 0.3)))  # soft labels go before ranks
    assert prepared(PairLabels("dpo"), soft)["share_B"].tolist() == [0.7, 0.3]
    with pytest.raises(DataError, match="this row has 3"):
        prepared(PairLabels("dpo"), Group(ASK, answers(0, 1, 2), preference=Preference(ranks=(1, 2, 3))))


def test_ranked() -> None:
    hard = Group(ASK, answers(0, 1, 2), preference=Preference(ranks=(2, 1, 2)))
    tied = Group(ASK, answers(0, 1), preference=Preference(ranks=(1, 1)))
    soft = Group(ASK, answers(0, 1, 2), preference=Preference(shares=(0.25, 0.25, 0.5)))
    batch = prepared(RankingLabels(), hard, tied, soft)
    assert batch["ranked_G"].tolist() == [1, 0, 1]
    assert batch["soft_G"].tolist() == [0, 0, 1]
    assert batch["share_B"].tolist() == [0] * 5 + [0.25, 0.25, 0.5]
    assert batch["order_B"].tolist() == [2, 1, 2, 1, 1, 1, 2, 3]  # every pair of a group with soft labels counts


def test_grades() -> None:
    scored = Group(ASK, answers(0, 1, 2), preference=Preference(ranks=(3, 1, 2)), scores=(0.5, 4.0, 2.0))
    assert prepared(Margins("scores", scale=0.5), scored)["grade_B"].tolist() == [0.25, 2.0, 1.0]

    def said(value, ranks):
        return Group(Prompt(ids=(7,), meta={"by": value}), answers(0, 1), preference=Preference(ranks=ranks))

    levels = Margins("by", {"clearly": 1.0, "hardly": 1 / 3}, scale=3.0)
    batch = prepared(levels, said("clearly", (1, 2)), said("hardly", (2, 1)), said(0.5, (2, 1)))
    same(batch["grade_B"], torch.tensor([3, 0, 0, 1, 0, 1.5], dtype=F64), 1e-15)
    for wrong in (said("much", (1, 2)), said(-1, (1, 2)), said(True, (1, 2)), pair(0, 1)):
        with pytest.raises(DataError, match="the row has no margin"):
            prepared(levels, wrong)


def test_labels_and_partners() -> None:
    group = Group(ASK, answers(0, 1, 2, 3), scores=(0.0, 1.0, 0.0, 1.0))
    only_bad = Group(ASK, answers(0, 1), scores=(0.0, 0.0))
    batch = prepared(BinaryLabels(), group, only_bad)
    assert batch["label_B"].tolist() == [0, 1, 0, 1, 0, 0]
    assert batch.metrics["good"] == (2.0, 6.0)
    with pytest.raises(DataError, match="neither good nor bad"):
        prepared(BinaryLabels(), Group(ASK, answers(0), scores=(0.5,)))

    def partners(seed: int) -> Tensor:
        return NegativePairs("random", seed)(Models(), batch)["positive_index_B"]

    drawn = torch.stack([partners(seed) for seed in range(40)])
    assert drawn[:, [1, 3, 4, 5]].unique().tolist() == [-1]  # good ones and those without a good one have none
    assert set(drawn[:, 0].tolist()) == set(drawn[:, 2].tolist()) == {1, 3}  # places of the good ones
    assert torch.equal(partners(7), partners(7))


def test_ktos_reference_point_puts_each_answer_to_another_prompt() -> None:
    """The log-ratio is prompt times answer here, so the sum tells: each answer went to the prompt before its own."""

    class Product:
        module = nn.Module()

        def __init__(self, scale: float, context: int | None = None):
            self.scale, self.chat = scale, SimpleNamespace(max_length=context)

        def logp_R(self, forest: Forest) -> tuple[Tensor, None]:
            prompt_G = forest.ids_T[torch.tensor(forest.tree_start)]
            return self.scale * (prompt_G[forest.group_B][forest.response_R] * forest.target_R).to(F64), None

    groups = [Group(Prompt(ids=(10**k,)), answers(k + 2, 9), scores=(1.0, 0.0)) for k in range(3)]
    batch = Batch.of(groups, range(3), 3)
    for scale, kl in ((0.1, 0.1 * (1 * 3 + 10 * 4 + 100 * 2) / 3), (-0.1, 0.0)):  # below 0: clamped
        models = Models(policy=Product(scale), ref=Product(0.0))  # type: ignore[arg-type]
        measured = MismatchedKL()(models, batch)
        assert measured["kl_B"].tolist() == pytest.approx([kl] * 6, abs=1e-12)
    # an answer that is too long behind the other prompt is cut to its context: here to its first token
    long = [replace(groups[0], responses=answers(2)), replace(groups[1], responses=(Response(ids=(3, 4, 5)),))]
    models = Models(policy=Product(0.1, context=2), ref=Product(0.0))  # type: ignore[arg-type]
    cut = MismatchedKL()(models, Batch.of(long, range(2), 2))
    assert cut["kl_B"].tolist() == pytest.approx([0.1 * (1 * 3 + 10 * 2) / 2] * 2, abs=1e-12)
    with pytest.raises(DataError, match="KTO's reference point"):
        MismatchedKL()(models, Batch.of(groups[:1], range(1), 1))

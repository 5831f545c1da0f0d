"""Annotators' quality: closed forms, planted accuracies, a spammer found, coverage; figures of crowd-kit."""

import numpy as np
import pytest
from tests.chance import near, shifted
from tests.stats.simulated import SIMULATIONS, annotations, covers, drawn, one_coin

from tiltyard.errors import DataError
from tiltyard.stats.annotations import Annotations
from tiltyard.stats.annotators import dawid_skene, mace, standing
from tiltyard.stats.intervals import Estimate

MODELS = (dawid_skene, mace)


def likelihood(fit, data) -> float:
    """The log-likelihood from its definition, unit by unit."""
    total = 0.0
    for u in range(len(data.units)):
        of_unit = data.unit_N == u
        given = fit.confusion_ACC[data.annotator_N[of_unit], :, data.label_N[of_unit]]
        total += np.log((fit.prior_C * given.prod(0)).sum())
    return total


@pytest.mark.parametrize("model", MODELS)
def test_fixed_point(model):
    """The likelihood and the posterior are those of the definition, and more iterations only raise the likelihood."""
    _, label_UA = drawn(np.random.default_rng(1), [0.5, 0.3, 0.2], one_coin([0.9, 0.8, 0.7, 0.5], 3), 80, missing=0.2)
    data = annotations(label_UA[(label_UA >= 0).any(1)], 3)
    fits = [model(data, iterations=n, rounds=2) for n in (0, 1, 2, 5, 20, 2000)]
    values = [fit.log_likelihood for fit in fits]
    assert values == pytest.approx([likelihood(fit, data) for fit in fits])
    rises = np.diff(values)
    assert (rises > (-1e-9 if model is dawid_skene else -0.05)).all()  # MACE maximises a smoothed likelihood
    assert fits[-1].converged
    assert np.allclose(fits[-1].confusion_ACC.sum(2), 1)
    assert np.allclose(fits[-1].posterior_UC.sum(1), 1)


def test_dawid_skene_maximises():
    """At the fit, the confusion rows are the posterior's own counts (the equations of the maximum)."""
    _, label_UA = drawn(np.random.default_rng(2), [0.6, 0.4], one_coin([0.9, 0.8, 0.7], 2), 300)
    data = annotations(label_UA, 2)
    fit = dawid_skene(data, iterations=5000, tol=1e-14, rounds=2)
    assert fit.prior_C == pytest.approx(fit.posterior_UC.mean(0), abs=1e-5)
    for a in range(3):
        for k in range(2):
            share_C = fit.posterior_UC[label_UA[:, a] == k].sum(0) / fit.posterior_UC.sum(0)
            assert fit.confusion_ACC[a, :, k] == pytest.approx(share_C, abs=1e-5)


def test_full_agreement():
    data = annotations(np.repeat([[0], [1]] * 20, 3, axis=1), 2)
    for model in MODELS:
        fit = model(data, rounds=20)
        for x in fit.quality.values():
            assert x.value == pytest.approx(1, abs=0.01)
            assert 0.8 < x.low < 0.95
        assert fit.posterior_UC.argmax(1).tolist() == [0, 1] * 20


def test_standing_is_of_the_interval():
    _, label_UA = drawn(np.random.default_rng(4), [0.5, 0.5], one_coin([0.9, 0.9, 0.9, 0.5], 2), 400)
    fit = dawid_skene(annotations(label_UA, 2))
    assert standing(fit.quality, 0.7) == {"a0": "good", "a1": "good", "a2": "good", "a3": "poor"}
    few = {"low": Estimate(0.4, 0.1, 0.71, 8), "high": Estimate(0.9, 0.69, 1.0, 8), "at": Estimate(0.8, 0.7, 0.9, 8)}
    assert standing(few, 0.7) == {"low": "unclear", "high": "unclear", "at": "good"}


def test_bad_input():
    with pytest.raises(DataError, match="two labels and two annotators"):
        dawid_skene(Annotations.of([(1, "a", 0), (1, "b", 0)]))
    with pytest.raises(DataError, match="at least one round"):
        mace(Annotations.of([(1, "a", 0), (1, "b", 1)]), rounds=0)


@pytest.mark.statistical
def test_planted_quality_is_recovered():
    rng = np.random.default_rng(shifted(8))
    accuracies = [0.95, 0.85, 0.75, 0.6, 0.5]
    truth_U, label_UA = drawn(rng, [0.5, 0.5], one_coin(accuracies, 2), 3000, missing=0.3)
    kept = (label_UA >= 0).any(1)
    data = annotations(label_UA[kept], 2)
    fit, spam = dawid_skene(data), mace(data)
    for accuracy, x, y in zip(accuracies, fit.quality.values(), spam.quality.values(), strict=True):
        near(x.value, accuracy, (x.high - x.low) / 3.92, "accuracy")
        near(y.value, 2 * accuracy - 1, (y.high - y.low) / 3.92, "competence")
    votes_U = np.where(label_UA[kept] >= 0, 2 * label_UA[kept] - 1, 0).sum(1)
    right = (fit.posterior_UC.argmax(1) == truth_U[kept]).mean()
    assert right > ((votes_U > 0) == truth_U[kept]).mean()  # better than the majority


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("model", MODELS)
def test_coverage(model):
    rng = np.random.default_rng(shifted(31))
    accuracies = [0.9, 0.85, 0.8, 0.7, 0.6]
    bounds = []
    for seed in range(SIMULATIONS):
        data = annotations(drawn(rng, [0.5, 0.5], one_coin(accuracies, 2), 200)[1], 2)
        fit = model(data, rounds=200, seed=seed, tol=1e-6)
        bounds.append([x.ci for x in fit.quality.values()])
    for a, accuracy in enumerate(accuracies):
        truth = accuracy if model is dawid_skene else 2 * accuracy - 1
        covers(*np.array(bounds)[:, a].T, truth, f"{model.__name__} {accuracy}")

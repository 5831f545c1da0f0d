"""Dawid and Skene's model as crowd-kit fits it: posteriors, confusion, prior."""

from __future__ import annotations

import numpy as np
import pytest
from tests.stats.simulated import annotations, drawn, one_coin

from tiltyard.stats.annotators import dawid_skene

pytest.importorskip("crowdkit")


def test_dawid_skene():
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    _, label_UA = drawn(np.random.default_rng(6), [0.5, 0.3, 0.2], one_coin([0.9, 0.8, 0.7, 0.5], 3), 120, missing=0.2)
    data = annotations(label_UA[(label_UA >= 0).any(1)], 3)
    columns = {
        "task": [data.units[u] for u in data.unit_N],
        "worker": [data.annotators[a] for a in data.annotator_N],
        "label": [data.labels[c] for c in data.label_N],
    }
    theirs = DawidSkene(n_iter=60, tol=-1e9).fit(pd.DataFrame(columns))  # after the same number of steps: no early end
    before, ours = (dawid_skene(data, iterations=n, tol=-1e9, rounds=1) for n in (59, 60))
    labels = list(data.labels)
    assert theirs.probas_.loc[list(data.units), labels].to_numpy() == pytest.approx(before.posterior_UC, abs=1e-8)
    assert theirs.priors_.loc[labels].to_numpy() == pytest.approx(ours.prior_C, abs=1e-8)
    for a, name in enumerate(data.annotators):
        given = theirs.errors_.loc[name].reindex(labels)[labels].to_numpy()  # rows: given labels, columns: true ones
        assert pytest.approx(ours.confusion_ACC[a], abs=1e-8) == given.T

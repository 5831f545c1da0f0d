"""Simulated annotators, and how many of 500 intervals hold the true value."""

import numpy as np
from tests.chance import OFFSET, share

from tiltyard.stats.annotations import Annotations

SIMULATIONS = 500


def covers(low, high, truth, what="") -> None:
    """95% intervals hold the truth in 95 +- 2% of the simulations, and under other seeds within the bound of chance."""
    inside = (np.asarray(low) <= truth) & (truth <= np.asarray(high))
    print(f"coverage: {what} {inside.mean():.3f} of {len(inside)}")
    share(int(inside.sum()), len(inside), 0.95, what)
    assert OFFSET or abs(inside.mean() - 0.95) <= 0.02 + 1e-9, f"{what}: {inside.mean():.3f}"


def drawn(rng, prior_C, confusion_ACC, n_units, missing=0.0):
    """Returns the true labels and the annotations: -1 is missing, columns are annotators."""
    truth_U = rng.choice(len(prior_C), n_units, p=prior_C)
    bound = np.cumsum(np.asarray(confusion_ACC)[:, truth_U], axis=2)  # [A, U, C]
    label_UA = (rng.random(bound.shape[:2])[..., None] > bound[..., :-1]).sum(2).T
    return truth_U, np.where(rng.random(label_UA.shape) < missing, -1, label_UA)


def annotations(label_UA, n_labels) -> Annotations:
    """Returns the table as annotations with labels 0..n_labels-1."""
    unit_N, annotator_N = np.nonzero(np.asarray(label_UA) >= 0)
    return Annotations(
        unit_N,
        annotator_N,
        np.asarray(label_UA)[unit_N, annotator_N].astype(np.int64),
        tuple(range(len(label_UA))),
        tuple(f"a{k}" for k in range(len(label_UA[0]))),
        tuple(range(n_labels)),
    )


def one_coin(accuracies, n_labels):
    """Returns [A, C, C]: the true label with an annotator's accuracy, each other with the same chance."""
    return np.stack([a * np.eye(n_labels) + (1 - a) / (n_labels - 1) * (1 - np.eye(n_labels)) for a in accuracies])

"""Tests whose result depends on chance: where their seeds come from, and how far from its law a result may be.

All of them carry `@pytest.mark.statistical` and allow 4 standard errors, or where the law is no normal one a chance of
P = 6.3e-5, which is the same. One comparison in 16,000 fails although nothing is wrong, so a test makes few of them.
`TILTYARD_SEED_OFFSET=n` gives every such test other draws; `-rP` shows what each found (docs/lab.md has 50 runs).
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping
from operator import itemgetter

import torch

OFFSET = int(os.environ.get("TILTYARD_SEED_OFFSET", "0"))
ERRORS = 4.0
P = math.erfc(ERRORS / math.sqrt(2))


def shifted(seed: int) -> int:
    """The test's own seed, moved by the offset so far that no other run has it."""
    return seed + 1000 * OFFSET


def near(found: float, expected: float, error: float, what: object = "") -> None:
    """Within 4 standard errors of what is expected."""
    z = (found - expected) / max(error, 1e-12)
    print(f"chance: z = {z:.2f}")
    assert abs(z) <= ERRORS, f"{what} {found} is {z:.2f} standard errors of {error:.3g} from {expected}"


def beyond(found: float, bound: float, error: float, what: object = "") -> None:
    """Above a bound that lies at least 4 standard errors below what is expected."""
    z = (found - bound) / max(error, 1e-12)
    print(f"chance: beyond by z = {z:.2f}")
    assert z > 0, f"{what} {found} is not above {bound}, standard error {error:.3g}"


def share(count: float, n: float, p: float, what: object = "") -> None:
    """A binomial count by its exact law: neither tail is less likely than P/2."""
    likely = torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64))
    law = likely.log_prob(torch.arange(n + 1, dtype=torch.float64)).exp()
    chance = min(1.0, 2 * float(min(law[: int(count) + 1].sum(), law[int(count) :].sum())))
    print(f"chance: p = {chance:.3g}")
    assert chance >= P, f"{what} {count} of {n} at a chance of {p}: p = {chance:.3g}"


def below(count: float, n: float, p: float) -> None:
    """A binomial count whose chance is at most p."""
    likely = torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64))
    chance = float(likely.log_prob(torch.arange(int(count), n + 1, dtype=torch.float64)).exp().sum())
    print(f"chance: p = {chance:.3g}")
    assert chance >= P, f"{count} of {n} where at most a share of {p} is expected: p = {chance:.3g}"


def chi_square(statistic: float, freedom: int, what: object = "") -> None:
    """At most the quantile that is exceeded with chance P."""
    chance = float(torch.special.gammaincc(*torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)))
    print(f"chance: p = {chance:.3g}")
    assert chance >= P, f"{what} chi-square {statistic:.2f} with {freedom} degrees of freedom: p = {chance:.3g}"


def follows(counts: Mapping[Hashable, float], law: Mapping[Hashable, float]) -> None:
    """Independent draws from a law: Pearson's chi-square. The rarest cells are counted as one that expects 5 at
    least, and what has no chance must not have come."""
    total = sum(counts.values())
    assert math.isclose(sum(law.values()), 1, abs_tol=1e-9)
    assert {cell for cell, n in counts.items() if n} <= {cell for cell, p in law.items() if p > 0}
    cells = sorted(((total * p, counts.get(cell, 0)) for cell, p in law.items() if p > 0), key=itemgetter(0))
    while len(cells) > 1 and cells[0][0] < 5:
        (e, n), (more, others) = cells[:2]
        cells = sorted([(e + more, n + others), *cells[2:]], key=itemgetter(0))
    if len(cells) > 1:
        chi_square(sum((n - e) ** 2 / e for e, n in cells), len(cells) - 1, dict(counts))


def means(rows_NK: torch.Tensor, expected_K: torch.Tensor | float = 0.0) -> None:
    """Means over independent rows, [N, K]: Hotelling's statistic, with their own covariance (columns may depend)."""
    covariance = rows_NK.T.cov()
    off_K = rows_NK.mean(0) - expected_K
    inverse = torch.linalg.pinv(covariance, hermitian=True, rtol=1e-9)
    freedom = int(torch.linalg.matrix_rank(covariance, hermitian=True, rtol=1e-9))
    chi_square(len(rows_NK) * float(off_K @ inverse @ off_K), freedom, off_K.tolist())

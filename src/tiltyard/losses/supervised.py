"""Maximum likelihood on given tokens."""

from torch import Tensor


def nll_R(logp_R: Tensor) -> Tensor:
    """Negative log-likelihood of each response token, `-log pi(y_t | x, y_<t)`. Shape [R] -> [R]."""
    return -logp_R

"""Targets `prior * exp(score(r) / beta)`: as objects, exact where enumerable, and measured from samples."""

from tiltyard.posterior.estimates import Samples, Terms, estimate
from tiltyard.posterior.exact import (
    ExactPosterior,
    all_responses,
    best_of_n_probs,
    exact_posterior,
    response_log_probs,
    total_variation,
)
from tiltyard.posterior.target import LogFactor, Prior, Target, exp, score

__all__ = [
    "ExactPosterior",
    "LogFactor",
    "Prior",
    "Samples",
    "Target",
    "Terms",
    "all_responses",
    "best_of_n_probs",
    "estimate",
    "exact_posterior",
    "exp",
    "response_log_probs",
    "score",
    "total_variation",
]

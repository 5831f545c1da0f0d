"""The tilted distribution pi* = prior * exp(score / beta) / Z: as a target, and exactly where it can be enumerated."""

from tiltyard.posterior.exact import ExactPosterior, all_responses, exact_posterior, response_log_probs, total_variation
from tiltyard.posterior.target import Target

__all__ = [
    "ExactPosterior",
    "Target",
    "all_responses",
    "exact_posterior",
    "response_log_probs",
    "total_variation",
]

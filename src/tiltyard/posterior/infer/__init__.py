"""Samplers of a target without training: one file each, all of them in the table `SAMPLERS`."""

from tiltyard.posterior.infer.base import SAMPLERS, Distance, Drawn, Entry, PosteriorSampler, make_sampler
from tiltyard.posterior.infer.best_of_n import BestOfN
from tiltyard.posterior.infer.best_of_poisson import BestOfPoisson
from tiltyard.posterior.infer.contrastive import LinearTwist, learn_twist
from tiltyard.posterior.infer.importance import Importance
from tiltyard.posterior.infer.pessimism import Pessimism, pessimism_probs
from tiltyard.posterior.infer.population import Population, exact_samples
from tiltyard.posterior.infer.quasi_rejection import QuasiRejection
from tiltyard.posterior.infer.rejection import Rejection, accept_from_pool
from tiltyard.posterior.infer.rejection_in_step import RejectionInStep
from tiltyard.posterior.infer.smc import SMC
from tiltyard.posterior.infer.twisted_smc import TwistedSMC
from tiltyard.posterior.infer.twists import ScoredBeginnings, TokenTwist, Twist, ValueTwist

__all__ = [
    "SAMPLERS",
    "SMC",
    "BestOfN",
    "BestOfPoisson",
    "Distance",
    "Drawn",
    "Entry",
    "Importance",
    "LinearTwist",
    "Pessimism",
    "Population",
    "PosteriorSampler",
    "QuasiRejection",
    "Rejection",
    "RejectionInStep",
    "ScoredBeginnings",
    "TokenTwist",
    "Twist",
    "TwistedSMC",
    "ValueTwist",
    "accept_from_pool",
    "exact_samples",
    "learn_twist",
    "make_sampler",
    "pessimism_probs",
]

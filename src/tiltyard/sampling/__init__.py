"""Samplers: the protocol, and the native sampler (in process, the trainer's own weights)."""

from tiltyard.sampling.base import Capabilities, Sampler
from tiltyard.sampling.native import NativeSampler, sample
from tiltyard.sampling.settings import SampleSettings
from tiltyard.sampling.streams import UniformStream, response_seeds

__all__ = [
    "Capabilities",
    "NativeSampler",
    "SampleSettings",
    "Sampler",
    "UniformStream",
    "response_seeds",
    "sample",
]

"""Who samples: the native sampler (in process, the trainer's own weights)."""

from tiltyard.sampling.native import sample
from tiltyard.sampling.settings import Draws, SampleSettings, draws_for

__all__ = ["Draws", "SampleSettings", "draws_for", "sample"]

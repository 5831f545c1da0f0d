"""Responses from vLLM, which runs beside the trainer in an environment of its own."""

from tiltyard.sampling.vllm.checks import check
from tiltyard.sampling.vllm.client import EngineError, Limits
from tiltyard.sampling.vllm.launch import EngineSettings, version_of
from tiltyard.sampling.vllm.push import StaleWeights
from tiltyard.sampling.vllm.sampler import VllmSampler

__all__ = ["EngineError", "EngineSettings", "Limits", "StaleWeights", "VllmSampler", "check", "version_of"]

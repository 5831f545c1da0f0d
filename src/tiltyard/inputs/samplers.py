"""The sampler of a stage: the toolkit's own, or vLLM beside the trainer."""

from __future__ import annotations

from pathlib import Path

from tiltyard.inputs.settings import PromptSettings
from tiltyard.inputs.workspace import Workspace
from tiltyard.sampling import NativeSampler
from tiltyard.sampling.base import Sampler

GB = 10**9


def sampler_of(work: Workspace, settings: PromptSettings) -> Sampler:
    """Returns the sampler that a stage's settings name; an engine is started when it is first needed.

    Raises:
        ConfigError: an environment without vLLM, both `vllm.python` and `vllm.url`, or what vLLM cannot sample.
    """
    asked = settings.vllm
    if not asked.python and not asked.url:
        return NativeSampler()
    from tiltyard.sampling.vllm import EngineSettings, VllmSampler, check, version_of

    check(settings.sampling.sample_settings())
    engine = None
    if asked.python:
        python = Path(asked.python).expanduser()
        version_of(python)
        length = settings.prompts.max_prompt + settings.sampling.max_tokens
        engine = EngineSettings(python, asked.engine_dtype, round(asked.memory_gb * GB), length, asked.threads)
    folder, bound = work.folder / "vllm", asked.max_gap or None
    return VllmSampler(folder, engine, urls=asked.urls, bound=bound, dtype=asked.engine_dtype)

"""Tiltyard: align language models with what people prefer.

    from tiltyard import Models, Run, fit, offline, online, ppo, reward_model, sft

Names are imported when they are first used, so `import tiltyard` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiltyard.data import Chat, load_groups, load_prompts, plain_texts, train_tokenizer
    from tiltyard.errors import TiltyardError
    from tiltyard.methods import mlm, ppo, pretrain, reward_model, sft
    from tiltyard.models.encoder import MaskedModel
    from tiltyard.models.language import LanguageModel, ScalarModel
    from tiltyard.models.load import (
        from_scratch,
        frozen_copy,
        load_language_model,
        load_masked_model,
        load_scalar_model,
        masked_from_scratch,
        save_model,
        scalar_from,
        value_from,
        value_head,
    )
    from tiltyard.sampling import NativeSampler, SampleSettings, sample
    from tiltyard.scoring import FunctionScorer, RewardScorer, WeightedScorer
    from tiltyard.training.algorithm import Algorithm, Models
    from tiltyard.training.fit import fit
    from tiltyard.training.run import Run
    from tiltyard.training.source import Offline, Online
    from tiltyard.types import Group, Message, Prompt, Response

    offline, online = Offline, Online
    __version__: str

_HOMES = {
    "tiltyard.methods": ("mlm", "ppo", "pretrain", "reward_model", "sft"),
    "tiltyard.data": ("Chat", "load_groups", "load_prompts", "plain_texts", "train_tokenizer"),
    "tiltyard.errors": ("TiltyardError",),
    "tiltyard.models.encoder": ("MaskedModel",),
    "tiltyard.models.language": ("LanguageModel", "ScalarModel"),
    "tiltyard.models.load": (
        "from_scratch",
        "frozen_copy",
        "load_language_model",
        "load_masked_model",
        "load_scalar_model",
        "masked_from_scratch",
        "save_model",
        "scalar_from",
        "value_from",
        "value_head",
    ),
    "tiltyard.sampling": ("NativeSampler", "SampleSettings", "sample"),
    "tiltyard.scoring": ("FunctionScorer", "RewardScorer", "WeightedScorer"),
    "tiltyard.training.algorithm": ("Algorithm", "Models"),
    "tiltyard.training.fit": ("fit",),
    "tiltyard.training.run": ("Run",),
    "tiltyard.training.source": ("Offline", "Online"),
    "tiltyard.types": ("Group", "Message", "Prompt", "Response"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_SAME = {"offline": "Offline", "online": "Online"}  # a composition reads ppo(online(...)), sft(offline(...))

__all__ = [
    "Algorithm",
    "Chat",
    "FunctionScorer",
    "Group",
    "LanguageModel",
    "MaskedModel",
    "Message",
    "Models",
    "NativeSampler",
    "Offline",
    "Online",
    "Prompt",
    "Response",
    "RewardScorer",
    "Run",
    "SampleSettings",
    "ScalarModel",
    "TiltyardError",
    "WeightedScorer",
    "__version__",
    "fit",
    "from_scratch",
    "frozen_copy",
    "load_groups",
    "load_language_model",
    "load_masked_model",
    "load_prompts",
    "load_scalar_model",
    "masked_from_scratch",
    "mlm",
    "offline",
    "online",
    "plain_texts",
    "ppo",
    "pretrain",
    "reward_model",
    "sample",
    "save_model",
    "scalar_from",
    "sft",
    "train_tokenizer",
    "value_from",
    "value_head",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tiltyard")
    source = _SAME.get(name, name)
    if source not in _HOME:
        raise AttributeError(f"module 'tiltyard' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[source]), source)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

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
    from tiltyard.methods import (
        a2c,
        click,
        cpo,
        cringe,
        dapo,
        dpg,
        dpo,
        dr_grpo,
        f_dpg,
        gdc,
        grpo,
        ipo,
        iterative_dpo,
        kl_dpg,
        kto,
        load_method,
        mlm,
        online_dpo,
        orpo,
        ppo,
        pretrain,
        ranker,
        reinforce,
        reinforce_pp,
        rest,
        reward_model,
        rft,
        rloo,
        rrhf,
        rso,
        self_rewarding,
        sft,
        simpo,
        slic,
        spin,
        vbon,
    )
    from tiltyard.methods.base import method
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
    from tiltyard.training.rounds import Rounds
    from tiltyard.training.run import Optimizer, Run, ValueOptimizer
    from tiltyard.training.self_play import SelfPlay
    from tiltyard.training.source import Offline, Online
    from tiltyard.types import Group, Message, Prompt, Response

    offline, online = Offline, Online
    __version__: str

_HOMES = {
    "tiltyard.methods": (
        "a2c",
        "click",
        "cpo",
        "cringe",
        "dapo",
        "dpg",
        "dpo",
        "dr_grpo",
        "f_dpg",
        "gdc",
        "grpo",
        "ipo",
        "iterative_dpo",
        "kl_dpg",
        "kto",
        "load_method",
        "mlm",
        "online_dpo",
        "orpo",
        "ppo",
        "pretrain",
        "ranker",
        "reinforce",
        "reinforce_pp",
        "rest",
        "reward_model",
        "rft",
        "rloo",
        "rrhf",
        "rso",
        "self_rewarding",
        "sft",
        "simpo",
        "slic",
        "spin",
        "vbon",
    ),
    "tiltyard.methods.base": ("method",),
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
    "tiltyard.training.rounds": ("Rounds",),
    "tiltyard.training.run": ("Optimizer", "Run", "ValueOptimizer"),
    "tiltyard.training.self_play": ("SelfPlay",),
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
    "Optimizer",
    "Prompt",
    "Response",
    "RewardScorer",
    "Rounds",
    "Run",
    "SampleSettings",
    "ScalarModel",
    "SelfPlay",
    "TiltyardError",
    "ValueOptimizer",
    "WeightedScorer",
    "__version__",
    "a2c",
    "click",
    "cpo",
    "cringe",
    "dapo",
    "dpg",
    "dpo",
    "dr_grpo",
    "f_dpg",
    "fit",
    "from_scratch",
    "frozen_copy",
    "gdc",
    "grpo",
    "ipo",
    "iterative_dpo",
    "kl_dpg",
    "kto",
    "load_groups",
    "load_language_model",
    "load_masked_model",
    "load_method",
    "load_prompts",
    "load_scalar_model",
    "masked_from_scratch",
    "method",
    "mlm",
    "offline",
    "online",
    "online_dpo",
    "orpo",
    "plain_texts",
    "ppo",
    "pretrain",
    "ranker",
    "reinforce",
    "reinforce_pp",
    "rest",
    "reward_model",
    "rft",
    "rloo",
    "rrhf",
    "rso",
    "sample",
    "save_model",
    "scalar_from",
    "self_rewarding",
    "sft",
    "simpo",
    "slic",
    "spin",
    "train_tokenizer",
    "value_from",
    "value_head",
    "vbon",
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

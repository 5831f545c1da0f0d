"""Declarations of methods: sources of data with their settings and readers, and the roles of their models.

Names are imported when they are first used: reading judgements (`tiltyard.inputs.judgements`) needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiltyard.lazy import lazy

if TYPE_CHECKING:
    from tiltyard.inputs.auxiliary import CORPUS, DEMONSTRATIONS, ROUND_DEMONSTRATIONS, AuxData
    from tiltyard.inputs.base import InputSource, Often, Opened, StepSize
    from tiltyard.inputs.offline import Demonstrations, FileSource, Labelled, Pairs, Rankings, SelfPlay, Texts
    from tiltyard.inputs.roles import (
        Encoder,
        Policy,
        PolicyAsJudge,
        Proposal,
        Reference,
        Reward,
        RewardModel,
        Role,
        Start,
        Value,
    )
    from tiltyard.inputs.sampled import Prompts

__getattr__ = lazy(
    __name__,
    {
        "tiltyard.inputs.auxiliary": (
            "CORPUS",
            "DEMONSTRATIONS",
            "ROUND_DEMONSTRATIONS",
            "AuxData",
        ),
        "tiltyard.inputs.base": (
            "InputSource",
            "Often",
            "Opened",
            "StepSize",
        ),
        "tiltyard.inputs.offline": (
            "Demonstrations",
            "FileSource",
            "Labelled",
            "Pairs",
            "Rankings",
            "SelfPlay",
            "Texts",
        ),
        "tiltyard.inputs.roles": (
            "Encoder",
            "Policy",
            "PolicyAsJudge",
            "Proposal",
            "Reference",
            "Reward",
            "RewardModel",
            "Role",
            "Start",
            "Value",
        ),
        "tiltyard.inputs.sampled": ("Prompts",),
    },
)

__all__ = [
    "CORPUS",
    "DEMONSTRATIONS",
    "ROUND_DEMONSTRATIONS",
    "AuxData",
    "Demonstrations",
    "Encoder",
    "FileSource",
    "InputSource",
    "Labelled",
    "Often",
    "Opened",
    "Pairs",
    "Policy",
    "PolicyAsJudge",
    "Prompts",
    "Proposal",
    "Rankings",
    "Reference",
    "Reward",
    "RewardModel",
    "Role",
    "SelfPlay",
    "Start",
    "StepSize",
    "Texts",
    "Value",
]

"""Declarations of methods: sources of data with their settings and readers, and the roles of their models."""

from tiltyard.inputs.auxiliary import CORPUS, DEMONSTRATIONS, ROUND_DEMONSTRATIONS, AuxData
from tiltyard.inputs.base import InputSource, Often, Opened, StepSize
from tiltyard.inputs.offline import Demonstrations, FileSource, Labelled, Pairs, Rankings, SelfPlay, Texts
from tiltyard.inputs.roles import Encoder, Policy, PolicyAsJudge, Reference, Reward, RewardModel, Role, Start, Value
from tiltyard.inputs.sampled import Prompts

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

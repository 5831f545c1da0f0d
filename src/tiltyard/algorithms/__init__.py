"""One short file a method. A method is a function from a source (and its own settings) to an `Algorithm`."""

from tiltyard.algorithms.a2c import a2c
from tiltyard.algorithms.base import METHODS, Method, get_method
from tiltyard.algorithms.click import click
from tiltyard.algorithms.cpo import cpo
from tiltyard.algorithms.cringe import cringe
from tiltyard.algorithms.dpo import dpo
from tiltyard.algorithms.grpo import grpo
from tiltyard.algorithms.ipo import ipo
from tiltyard.algorithms.iterative import iterative_dpo
from tiltyard.algorithms.kto import kto
from tiltyard.algorithms.mlm import mlm
from tiltyard.algorithms.online_dpo import online_dpo
from tiltyard.algorithms.orpo import orpo
from tiltyard.algorithms.ppo import ppo
from tiltyard.algorithms.pretrain import pretrain
from tiltyard.algorithms.ranker import ranker
from tiltyard.algorithms.reinforce import reinforce
from tiltyard.algorithms.reinforce_pp import reinforce_pp
from tiltyard.algorithms.rest import rest
from tiltyard.algorithms.reward_model import reward_model
from tiltyard.algorithms.rft import rft
from tiltyard.algorithms.rloo import rloo
from tiltyard.algorithms.rrhf import rrhf
from tiltyard.algorithms.rso import rso
from tiltyard.algorithms.self_rewarding import self_rewarding
from tiltyard.algorithms.sft import sft
from tiltyard.algorithms.simpo import simpo
from tiltyard.algorithms.slic import slic
from tiltyard.algorithms.spin import spin

__all__ = [
    "METHODS",
    "Method",
    "a2c",
    "click",
    "cpo",
    "cringe",
    "dpo",
    "get_method",
    "grpo",
    "ipo",
    "iterative_dpo",
    "kto",
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
]

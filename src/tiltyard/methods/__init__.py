"""One short file a method. A method is a function from a source (and its own settings) to an `Algorithm`."""

from tiltyard.methods.a2c import a2c
from tiltyard.methods.base import METHODS, Method, get_method
from tiltyard.methods.click import click
from tiltyard.methods.cpo import cpo
from tiltyard.methods.cringe import cringe
from tiltyard.methods.dapo import dapo
from tiltyard.methods.dpg import dpg
from tiltyard.methods.dpo import dpo
from tiltyard.methods.dr_grpo import dr_grpo
from tiltyard.methods.f_dpg import f_dpg
from tiltyard.methods.from_file import load_method
from tiltyard.methods.gdc import gdc
from tiltyard.methods.grpo import grpo
from tiltyard.methods.ipo import ipo
from tiltyard.methods.iterative import iterative_dpo
from tiltyard.methods.kl_dpg import kl_dpg
from tiltyard.methods.kto import kto
from tiltyard.methods.mlm import mlm
from tiltyard.methods.online_dpo import online_dpo
from tiltyard.methods.orpo import orpo
from tiltyard.methods.ppo import ppo
from tiltyard.methods.pretrain import pretrain
from tiltyard.methods.ranker import ranker
from tiltyard.methods.reinforce import reinforce
from tiltyard.methods.reinforce_pp import reinforce_pp
from tiltyard.methods.rest import rest
from tiltyard.methods.reward_model import reward_model
from tiltyard.methods.rft import rft
from tiltyard.methods.rloo import rloo
from tiltyard.methods.rrhf import rrhf
from tiltyard.methods.rso import rso
from tiltyard.methods.self_rewarding import self_rewarding
from tiltyard.methods.sft import sft
from tiltyard.methods.simpo import simpo
from tiltyard.methods.slic import slic
from tiltyard.methods.spin import spin
from tiltyard.methods.vbon import vbon

__all__ = [
    "METHODS",
    "Method",
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
    "get_method",
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
]

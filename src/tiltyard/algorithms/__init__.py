"""One short file a method. A method is a function from a source (and its own settings) to an `Algorithm`."""

from tiltyard.algorithms.base import METHODS, Method, get_method
from tiltyard.algorithms.ppo import ppo
from tiltyard.algorithms.pretrain import pretrain
from tiltyard.algorithms.reward_model import reward_model
from tiltyard.algorithms.sft import sft

__all__ = ["METHODS", "Method", "get_method", "ppo", "pretrain", "reward_model", "sft"]

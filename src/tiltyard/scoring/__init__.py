"""Scorers: a reward model, a Python function, a ranker against baselines, or a weighted sum of scorers."""

from tiltyard.scoring.base import Cost, Monitors, Scale, Scorer, checked_scores, highest_score
from tiltyard.scoring.functions import FunctionScorer
from tiltyard.scoring.parts import RewardPart, Service, is_service, reward_parts
from tiltyard.scoring.ranker import BaselineScorer, Position, Ranker
from tiltyard.scoring.registry import (
    build_reward,
    function_file,
    is_function,
    load_function,
    part_scorer,
    register_alias,
)
from tiltyard.scoring.reward_model import RewardScorer
from tiltyard.scoring.rules import Rule, RuleFunction
from tiltyard.scoring.weighted import WeightedScorer, check_prompts

__all__ = [
    "BaselineScorer",
    "Cost",
    "FunctionScorer",
    "Monitors",
    "Position",
    "Ranker",
    "RewardPart",
    "RewardScorer",
    "Rule",
    "RuleFunction",
    "Scale",
    "Scorer",
    "Service",
    "WeightedScorer",
    "build_reward",
    "check_prompts",
    "checked_scores",
    "function_file",
    "highest_score",
    "is_function",
    "is_service",
    "load_function",
    "part_scorer",
    "register_alias",
    "reward_parts",
]

"""Scorers: a reward model, a Python function, a ranker against baselines, or a weighted sum of scorers."""

from tiltyard.scoring.base import Cost, Monitors, Scale, Scorer
from tiltyard.scoring.functions import FunctionScorer
from tiltyard.scoring.ranker import BaselineScorer, Position, Ranker
from tiltyard.scoring.reward_model import RewardScorer
from tiltyard.scoring.weighted import WeightedScorer

__all__ = [
    "BaselineScorer",
    "Cost",
    "FunctionScorer",
    "Monitors",
    "Position",
    "Ranker",
    "RewardScorer",
    "Scale",
    "Scorer",
    "WeightedScorer",
]

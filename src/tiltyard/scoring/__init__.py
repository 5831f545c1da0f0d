"""Who scores: a reward model, a rule (any Python function), or a weighted sum of scorers."""

from tiltyard.scoring.ranker import BaselineScorer, Position, Ranker
from tiltyard.scoring.scorers import RewardScorer, RuleScorer, WeightedScorer

__all__ = ["BaselineScorer", "Position", "Ranker", "RewardScorer", "RuleScorer", "WeightedScorer"]

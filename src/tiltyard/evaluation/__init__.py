"""Evaluation of policies and reward models: measurements, and their summaries with intervals. Prints nothing."""

from tiltyard.evaluation.policies import EvaluatedResponse, PolicySummary, summarise
from tiltyard.evaluation.reward_models import RewardReport, evaluate_pairs, evaluate_scores
from tiltyard.evaluation.scored_pairs import ScoredPair, ranking_taus, scored_pairs

__all__ = [
    "EvaluatedResponse",
    "PolicySummary",
    "RewardReport",
    "ScoredPair",
    "evaluate_pairs",
    "evaluate_scores",
    "ranking_taus",
    "scored_pairs",
    "summarise",
]

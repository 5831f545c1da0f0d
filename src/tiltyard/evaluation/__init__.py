"""Records of evaluated responses and what they add up to. Pure: nothing here samples or scores."""

from tiltyard.evaluation.record import Answer, ModelResult, summarise

__all__ = ["Answer", "ModelResult", "summarise"]

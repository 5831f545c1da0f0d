"""Advice: a model, data and a wish become a recipe with reasons, and an estimate of time and memory."""

from tiltyard.advice.advise import Advice, advise
from tiltyard.advice.request import Request, Want

__all__ = ["Advice", "Request", "Want", "advise"]

"""Experiments on a real chat model: reward models, a tournament of methods, rewards that can be checked."""

"""Recipes: stages run in order, skipped when done, resumed when interrupted, run again when something changed."""

from tiltyard.pipeline.recipe import Recipe, find_recipe, read_recipe
from tiltyard.pipeline.run import run_recipe, run_stage

__all__ = ["Recipe", "find_recipe", "read_recipe", "run_recipe", "run_stage"]

"""Ratings of models from comparisons: Bradley-Terry with named tie models, intervals, Elo, Plackett-Luce, rewards."""

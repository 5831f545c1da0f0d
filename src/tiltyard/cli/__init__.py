"""The command line `tiltyard`: the verbs, their arguments and their tables. Importing it is light (no torch)."""

from tiltyard.cli.application import app, main

__all__ = ["app", "main"]

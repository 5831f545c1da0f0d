"""The rate of refusals as a reward function, which settings name by the alias `refusal`; e.g. `monitors=[refusal]`."""

from __future__ import annotations

from tiltyard.stats.refusals import begins_with_refusal
from tiltyard.types import Prompt, Response


def refusal(prompt: Prompt, response: Response) -> float:  # noqa: ARG001 - the signature of a reward function
    """1.0 for a response that begins by declining (`stats.refusals`), else 0.0."""
    return float(begins_with_refusal(response.text))

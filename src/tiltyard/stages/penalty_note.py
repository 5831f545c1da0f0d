"""Warning of a penalty for a missing end that is many times the spread of the scores."""

from __future__ import annotations

from rich.console import Console

LARGE = 3.0  # standard deviations of the scores; see docs/lab.md, "A penalty on the reward's own scale"


class PenaltyNote:
    """A sink that warns once.

    Args:
        rule, penalty: the settings `missing_eos` and `missing_eos_penalty`.
    """

    def __init__(self, console: Console, rule: str, penalty: float):
        self.console, self.penalty = console, penalty
        self.waiting = rule in ("subtract", "replace") and penalty > 0

    def log(self, step: int, metrics: dict[str, float]) -> None:  # noqa: ARG002 - the protocol of sinks
        """Compares the penalty with the spread of the first step in which responses were cut."""
        std, cut = metrics.get("score_std", 0.0), metrics.get("truncated", 0.0)
        if not self.waiting or not cut or not std:
            return
        self.waiting = False
        if self.penalty > LARGE * std:
            self.console.print(
                f"! missing_eos: the penalty of {self.penalty:g} is {self.penalty / std:.0f} times the spread of the "
                f"scores ({std:.2g}), and {cut:.0%} of the responses were cut: the policy learns to stop early before "
                "anything else. missing_eos=spread puts the penalty on the reward's scale; or set missing_eos=none, or "
                "raise max_tokens",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def close(self) -> None: ...

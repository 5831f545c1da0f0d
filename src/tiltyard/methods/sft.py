"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.inputs import Demonstrations
from tiltyard.losses.offline_rl import gold_R
from tiltyard.losses.supervised import nll_R
from tiltyard.methods.base import method
from tiltyard.training.algorithm import Algorithm, Forward, Item, Source


@dataclass(frozen=True)
class Nll:
    """-log pi of every response token."""

    needs: ClassVar[tuple[str, ...]] = ("logp_R",)
    item: ClassVar[Item] = "R"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        return nll_R(forward.logp_R), {}


@dataclass(frozen=True)
class SequenceNll:
    """-log pi of every whole response: the sum over its tokens."""

    needs: ClassVar[tuple[str, ...]] = ("logp_R",)
    item: ClassVar[Item] = "B"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        return -forward.logp_B, {}


@dataclass(frozen=True)
class WeightedNll:
    """-max(pi, floor) q log pi of each response token, q its response's score, the first two without gradient."""

    floor: float
    needs: ClassVar[tuple[str, ...]] = ("logp_R", "score_B")
    item: ClassVar[Item] = "R"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        q_R = batch["score_B"].to(forward.logp_R.dtype)[batch.forest.response_R]
        return gold_R(forward.logp_R, q_R, self.floor), {}


@method(
    "sft",
    source=Demonstrations(),
    defaults={"lr": 3e-5, "prompts_per_step": 32, "epochs": 2.0},
    defaults_from="prompts_per_step: Ouyang et al. 2022 (1.3B, 6B); epochs: Touvron et al. 2023 (Llama 2); lr: "
    "Tiltyard, smaller models",
    formula="L = mean over response tokens of -log pi(y_t | x, y_<t)",
    oracle="The empirical distribution of the responses to each prompt; the loss ends at its entropy a token.",
    paper="Ouyang et al. 2022 (InstructGPT), section 3.5",
    pitfalls="The loss covers responses only (every assistant turn); a response must end with the end-of-turn token.",
)
def sft(source: Source) -> Algorithm:
    """Maximum likelihood of the demonstrated responses: the mean over response tokens of -log pi(y_t | x, y_<t).

    Prompts, system and user turns carry no loss.

    Args:
        source: `Offline` over demonstrations.
    """
    return Algorithm("sft", source, Nll())

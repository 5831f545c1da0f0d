"""OAIF: pairs sampled from the current policy, labelled at once by a judge or a reward model, one update each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from tiltyard.batch.batch import Batch
from tiltyard.errors import ConfigError
from tiltyard.inputs import Policy, Prompts, Reference, Reward
from tiltyard.methods.base import method
from tiltyard.methods.iterative import Direct, direct_loss
from tiltyard.training.algorithm import Algorithm, Mean, Models
from tiltyard.training.prepare import OldLogp, PairLabels, column
from tiltyard.training.source import Online
from tiltyard.types import dense_ranks


@dataclass(frozen=True)
class RanksFromScores:
    """`rank_B` of sampled responses: a judge's ranks (and shares) if there are some, else the scores' order."""

    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("rank_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        if "rank_B" in batch.columns:
            return batch
        batch["score_B"]  # raises if there are no scores
        ranks = []
        for group in batch.groups:
            ranks += [float(rank) for rank in dense_ranks(group.scores or ())]
        return batch.with_columns(rank_B=column(ranks, batch))


@method(
    "online",
    source=Prompts(),
    roles=(Policy(), Reference(), Reward()),
    rests_on_labels=False,
    defaults={"lr": 5e-7, "prompts_per_step": 128, "samples_per_prompt": 2, "temperature": 0.9, "warmup": 150},
    defaults_from="Guo et al. 2024",
    formula="l(beta h), h = log pi/ref(y1) - log pi/ref(y2), y1, y2 ~ pi now, the judge says which is better",
    oracle="first step: 2 beta times the policy gradient of the probability to beat oneself; its fixed point with "
    "Bernoulli labels is pi0 exp(r/beta)/Z",
    paper="Guo et al. 2024 (Direct Language Model Alignment from Online AI Feedback)",
    pitfalls="The judge is the objective: its taste for length or for a position goes straight into the policy. Its "
    "instruction is a setting, so another one changes the outcome without retraining anything.",
)
def online_dpo(
    source: Online,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    loss: Direct = "dpo",
) -> Algorithm:
    """Online direct alignment: a pair of fresh responses to each prompt, labelled by a judge or a reward model at once.

    Args:
        source: `Online` with samples_per_prompt=2.
        beta: strength of the pull to the reference. [0.1: Guo et al. 2024, for DPO; they use 1.0 for IPO and 0.002 for
            SLiC]
        loss: `dpo`, `ipo` (tau = beta, summed) or `hinge` (on log-ratios). [dpo: Guo et al. 2024]
    """
    if source.samples_per_prompt != 2:
        raise ConfigError(
            "a pair is two responses",
            where="online_dpo.samples_per_prompt",
            got=source.samples_per_prompt,
            expected=2,
            fix="set samples_per_prompt=2",
        )
    sampling = source.settings
    if sampling.temperature == 0:
        raise ConfigError(
            "the two responses of a prompt are the same, so a pair has no preference",
            where="online_dpo.temperature",
            got=0,
            expected="above 0: 0 takes the likeliest token every time",
            fix="set temperature=0.9",
        )
    if isinstance(source, Online):
        source = replace(source, least=2)  # a scorer may abstain from one response of a pair
    # measured at the sampling temperature; the loss is at temperature 1
    measured = OldLogp(sampling.temperature, against_ref=True, ref_temperature=1.0, on_policy=sampling.is_untruncated)
    return Algorithm(
        "online_dpo",
        source,
        direct_loss(loss, beta),
        prepare=(RanksFromScores(), measured, PairLabels("online_dpo")),
        reduce=Mean("kept_G"),
    )

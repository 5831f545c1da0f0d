"""Pretraining of encoders: guessing tokens that were taken out of a text, from both sides."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.losses.supervised import nll_R
from tiltyard.methods.base import method
from tiltyard.training.algorithm import Algorithm, Forward, Mean, Source
from tiltyard.training.masking import Mask


class Cloze:
    """-log p of every chosen token at its own place, given the rest of the text."""

    needs: tuple[str, ...] = ("cloze_logp_R", "corrupt_R", "masked_R")
    item: Literal["R", "B", "G"] = "R"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        return nll_R(forward.cloze_logp_R), {}


@method(
    "pretrain",
    "text",
    trains=("encoder",),
    defaults={"lr": 1e-3, "batch": 64, "weight_decay": 0.01, "beta2": 0.98, "warmup": 0.06},
    tuned="weight_decay, beta2, warmup: Liu et al. 2019 (RoBERTa), table 9; lr, batch: as pretrain's (the 1m preset "
    "learns faster at lr=3e-3)",
    formula="L = mean over chosen tokens of -log p(x_t | the text with the chosen tokens corrupted)",
    oracle="The documents' law of a token given the corrupted text; the loss ends at that law's conditional entropy.",
    paper="Devlin et al. 2019 (BERT); Liu et al. 2019 (RoBERTa: masks drawn anew each time)",
    watch="A loss that stands still at the entropy of single tokens for long: small encoders need many steps before "
    "they use the context. One token in seven teaches, so a pass over the data gives less than one of `pretrain`.",
)
def mlm(
    source: Source,
    *,
    mask: Annotated[float, Field(gt=0, lt=1)] = 0.15,
    to_mask: Annotated[float, Field(ge=0, le=1)] = 0.8,
    to_random: Annotated[float, Field(ge=0, le=1)] = 0.1,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Algorithm:
    """Masked language modelling with an encoder: the mean over chosen tokens of -log p(token | the text around it).

    What is made is a start for a reward model that reads whole answers; an encoder cannot write. Tokens are chosen
    anew whenever a text comes up, special tokens never, and at least one in every text. The chosen tokens that are
    neither masked nor replaced stay as they are, and are guessed like the others.

    Args:
        source: `Offline` over documents (`load_groups(..., kind="text")`).
        mask: probability that a token is chosen to be guessed. [0.15: Devlin et al. 2019, section 3.1]
        to_mask: share of the chosen tokens that become the mask token. [0.8: Devlin et al. 2019, section 3.1]
        to_random: share of the chosen tokens that become a random token. [0.1: Devlin et al. 2019, section 3.1]
        seed: of data order, new weights and the choice of tokens.
    """
    return Algorithm(
        "mlm",
        source,
        Cloze(),
        trains=("encoder",),
        prepare=(Mask(mask, to_mask, to_random, seed),),
        reduce=Mean(weight="masked_R"),
    )

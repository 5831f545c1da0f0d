"""Pretraining of encoders: guessing tokens that were taken out of a text, from both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import ConfigError
from tiltyard.inputs import Encoder, Texts
from tiltyard.losses.supervised import nll_R
from tiltyard.methods.base import method
from tiltyard.models.encoder import MaskedModel
from tiltyard.training.algorithm import Algorithm, Forward, Item, Mean, Models, Source, register_forward
from tiltyard.training.source import generator


@dataclass(frozen=True)
class ClozeLogps:
    """`cloze_logp_R`: the encoder's log-probs of the tokens that `Mask` chose; 0 at the others."""

    role: ClassVar[str] = "encoder"
    needs: ClassVar[tuple[str, ...]] = ("corrupt_R", "masked_R")
    writes: ClassVar[tuple[str, ...]] = ("cloze_logp_R",)

    def __call__(self, forward: Forward) -> Mapping[str, Tensor]:
        batch, encoder = forward.batch, forward.models["encoder"]
        return {"cloze_logp_R": encoder.cloze_logp_R(batch.forest, batch["corrupt_R"], batch["masked_R"])}


register_forward(ClozeLogps())


@dataclass(frozen=True)
class Cloze:
    """-log p of every chosen token, given the rest of the text."""

    needs: ClassVar[tuple[str, ...]] = ("cloze_logp_R",)
    item: ClassVar[Item] = "R"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:  # noqa: ARG002
        return nll_R(forward["cloze_logp_R"]), {}


@dataclass(frozen=True)
class Mask:
    """`masked_R`: 1 where a token is to be guessed, else 0; `corrupt_R`: the ids the model sees (BERT, section 3.1).

    Each token that is not special is chosen with probability `p`, independently; in a text without any chosen token
    one is chosen uniformly, so that every text has a loss. A chosen token becomes the mask token, a random token that
    is not special (it may be the same one), or stays. The draws depend on the seed, the model's version and the group's
    index in the whole step's list, so neither resuming nor cutting a batch changes them.

    Args:
        p: probability that a token is chosen.
        to_mask: share of the chosen tokens that becomes the mask token.
        to_random: share of the chosen tokens that becomes a random token; the rest stays.
        seed: of the draws.

    Raises:
        ConfigError: the two shares add up to more than 1.
    """

    p: float = 0.15
    to_mask: float = 0.8
    to_random: float = 0.1
    seed: int = 0
    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("corrupt_R", "masked_R")

    def __post_init__(self) -> None:
        if self.to_mask + self.to_random > 1 + 1e-9:
            raise ConfigError(
                "more tokens would be replaced than are chosen",
                where="to_mask, to_random",
                got=f"{self.to_mask} + {self.to_random}",
                expected="at most 1 together; what is left stays as it is",
            )

    def __call__(self, models: Models, batch: Batch) -> Batch:
        model, forest = models["encoder"], batch.forest
        true_R = forest.target_R.cpu()
        corrupt_R, masked_R = true_R.clone(), torch.zeros(forest.R, dtype=torch.float64)
        maskable_R = torch.isin(true_R, model.words)
        stream_of, start = (-1, torch.Generator()), 0
        for g, count in zip(forest.group_B.tolist(), forest.count_B.tolist(), strict=True):
            if stream_of[0] != g:
                stream_of = (g, generator(self.seed, 5, models.version, batch.index[g]))
            span = slice(start, start + count)
            start += count
            corrupt_R[span], masked_R[span] = self._corrupt(true_R[span], maskable_R[span], model, stream_of[1])
        metrics: Metrics = {"masked": (float(masked_R.sum()), float(maskable_R.sum()))}
        columns = {"corrupt_R": corrupt_R.to(forest.device), "masked_R": masked_R.to(forest.device)}
        return batch.with_columns(metrics, **columns)

    def _corrupt(
        self, true: Tensor, maskable: Tensor, model: MaskedModel, stream: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(ids after corruption, whether each was chosen) of one text. Numbers are drawn for all its tokens."""
        chance, share = torch.rand(2, len(true), generator=stream)
        random_ids = model.words[torch.randint(len(model.words), (len(true),), generator=stream)]
        chosen = maskable & (chance < self.p)
        if maskable.any() and not chosen.any():
            chosen[chance.masked_fill(~maskable, 2.0).argmin()] = True  # the least of uniform draws: a uniform index
        corrupt = torch.where(share < self.to_mask + self.to_random, random_ids, true)
        corrupt = corrupt.masked_fill(share < self.to_mask, model.mask_id)
        return torch.where(chosen, corrupt, true), chosen.double()


@method(
    "pretrain",
    source=Texts(),
    roles=(Encoder(),),
    defaults={"lr": 1e-3, "prompts_per_step": 64, "weight_decay": 0.01, "beta2": 0.98, "warmup": 0.06},
    defaults_from="weight_decay, beta2, warmup: Liu et al. 2019 (RoBERTa), table 9; lr, prompts_per_step: as "
    "pretrain's (the 1m preset learns faster at lr=3e-3)",
    formula="L = mean over chosen tokens of -log p(x_t | the text with the chosen tokens corrupted)",
    oracle="The documents' distribution of a token given the corrupted text; the loss ends at its conditional entropy.",
    paper="Devlin et al. 2019 (BERT); Liu et al. 2019 (RoBERTa: masks drawn anew each time)",
    pitfalls="A loss that stands still at the entropy of single tokens for long: small encoders need many steps "
    "before they use the context. One token in seven teaches, so a pass over the data gives less than one of "
    "`pretrain`.",
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

    What is made is a start for a reward model that reads whole responses; an encoder cannot write. Tokens are chosen
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

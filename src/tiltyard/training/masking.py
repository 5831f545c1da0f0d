"""Which tokens a masked language model must guess, and what stands in their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import ConfigError
from tiltyard.models.encoder import MaskedModel
from tiltyard.training.algorithm import Models
from tiltyard.training.source import generator


@dataclass
class Mask:
    """`masked_R`: 1 where a token is to be guessed, else 0; `corrupt_R`: the ids the model sees (BERT, section 3.1).

    Each token that is not special is chosen with probability `p`, on its own; a text none of whose tokens was chosen
    has one chosen evenly, so that every text says something. A chosen token becomes the mask token, a random token
    that is not special (it may be the same one), or stays. The draws depend on the seed, the model's version and the
    group's place in the whole step's list, so neither resuming nor cutting a batch changes them.

    Args:
        p: probability that a token is chosen. to_mask: of the chosen tokens' share that becomes the mask token.
        to_random: the share that becomes a random token; the rest stays. seed: of the draws.
    """

    p: float = 0.15
    to_mask: float = 0.8
    to_random: float = 0.1
    seed: int = 0
    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("corrupt_R", "masked_R")

    def __post_init__(self) -> None:
        if self.to_mask + self.to_random > 1 + 1e-9:
            raise ConfigError(
                "more tokens would be replaced than are chosen",
                where="to_mask, to_random",
                got=f"{self.to_mask} + {self.to_random}",
                expected="at most 1 together; what is left stays as it is",
            )

    def __call__(self, models: Models, batch: Batch) -> Batch:
        model, forest = models.get("encoder"), batch.forest
        true_R = forest.target_R.cpu()
        corrupt_R, masked_R = true_R.clone(), torch.zeros(forest.R, dtype=torch.float64)
        may_R = torch.isin(true_R, model.words)
        drawn, done = (-1, torch.Generator()), 0
        for g, count in zip(forest.group_B.tolist(), forest.count_B.tolist(), strict=True):
            if drawn[0] != g:
                drawn = (g, generator(self.seed, 5, models.version, batch.index[g]))
            span = slice(done, done + count)
            done += count
            corrupt_R[span], masked_R[span] = self._draw(true_R[span], may_R[span], model, drawn[1])
        metrics: Metrics = {"masked": (float(masked_R.sum()), float(may_R.sum()))}
        columns = {"corrupt_R": corrupt_R.to(forest.device), "masked_R": masked_R.to(forest.device)}
        return batch.with_columns(metrics, **columns)

    def _draw(self, true: Tensor, may: Tensor, model: MaskedModel, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        """(ids after corruption, whether each was chosen) of one text. Draws are made for all its tokens."""
        chance, share = torch.rand(2, len(true), generator=stream)
        other = model.words[torch.randint(len(model.words), (len(true),), generator=stream)]
        chosen = may & (chance < self.p)
        if may.any() and not chosen.any():
            chosen[chance.masked_fill(~may, 2.0).argmin()] = True  # the least of even draws is evenly anywhere
        seen = torch.where(share < self.to_mask + self.to_random, other, true)
        seen = seen.masked_fill(share < self.to_mask, model.mask_id)
        return torch.where(chosen, seen, true), chosen.double()

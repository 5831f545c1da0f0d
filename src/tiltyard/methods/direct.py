"""Shared by the methods of direct alignment: the loss over pairs, its metrics, and checks of their data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import DataError
from tiltyard.losses.kl import sum_per_response
from tiltyard.losses.labels import Noise, both_ways_G, noisy_label_G
from tiltyard.losses.preference import MarginLoss, first_minus_second_G, log_odds
from tiltyard.training.algorithm import Forward, Item, Source
from tiltyard.training.prepare import not_a_pair, sum_count
from tiltyard.training.source import Offline
from tiltyard.types import ranks_of

Quantity = Literal["log_ratio", "log_ratio_per_token", "logp", "logp_per_token", "log_odds"]


@dataclass(frozen=True)
class PairLoss:
    """`q l(h) + (1 - q) l(-h)` of each pair, h being a difference (first minus second) of `of`.

    Args:
        loss: `l`, see `losses.preference`.
        of: the quantity that h is a difference of: log pi/ref summed over tokens (`log_ratio`) or averaged, log pi
            summed or averaged, or ORPO's log odds.
        scale: factor that makes the quantity the implicit reward of the method; metrics only.
        noise, noise_kind: probability that a label is flipped, and the correction for it (`losses.labels`).
        weight: of the pair loss.
        nll: weight of the preferred response's negative log-likelihood, averaged over its tokens (`nll_per_token`) or
            summed.
    """

    loss: MarginLoss
    of: Quantity
    scale: float = 1.0
    noise: float = 0.0
    noise_kind: Noise = "conservative"
    weight: float = 1.0
    nll: float = 0.0
    nll_per_token: bool = True
    item: ClassVar[Item] = "G"

    @property
    def needs(self) -> tuple[str, ...]:
        ref = ("ref_logp_R",) if self.of.startswith("log_ratio") else ()
        return ("logp_R", *ref, "share_B", "kept_G")

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        share_B = batch["share_B"].to(forward.logp_R.dtype)
        q_G = share_B.view(-1, 2)[:, 0]
        x_B = self.quantity_B(forward, batch)
        label_G = noisy_label_G(q_G, self.noise, self.noise_kind) if self.noise else q_G
        loss_G = self.weight * both_ways_G(self.loss, first_minus_second_G(x_B), label_G)
        if self.nll:
            nll_B = -forward.logp_B / batch.forest.count_B if self.nll_per_token else -forward.logp_B
            loss_G = loss_G + self.nll * (share_B * nll_B).view(-1, 2).sum(1)
        return loss_G, pair_metrics(self.scale * x_B.detach(), forward.logp_B.detach(), batch)

    def quantity_B(self, forward: Forward, batch: Batch) -> Tensor:
        """The quantity whose difference is h, [B]."""
        x_B = log_ratio_B(forward, batch) if self.of.startswith("log_ratio") else forward.logp_B
        if self.of in ("log_ratio", "logp"):
            return x_B
        x_B = x_B / batch.forest.count_B
        return log_odds(x_B) if self.of == "log_odds" else x_B


def log_ratio_B(forward: Forward, batch: Batch) -> Tensor:
    """`log pi(y|x) - log ref(y|x)` of whole responses, [B]; no gradient flows into the reference."""
    ref_logp_R = batch["ref_logp_R"].detach().to(forward.logp_R.dtype)
    return sum_per_response(forward.logp_R - ref_logp_R, batch.forest.response_R, batch.forest.B)


def pair_metrics(reward_B: Tensor, logp_B: Tensor, batch: Batch) -> Metrics:
    """Implicit rewards of the preferred and the other response, their margin, and its accuracy (ties count half).

    Pairs labelled one half have no preferred response: they are left out.
    """
    share_G2 = batch["share_B"].view(-1, 2)
    sided_G = share_G2[:, 0] != share_G2[:, 1]
    first_G = (share_G2[:, 0] > share_G2[:, 1])[sided_G]
    metrics: Metrics = {}

    def sides(name: str, x_B: Tensor) -> tuple[Tensor, Tensor]:
        one_G, two_G = x_B.view(-1, 2)[sided_G].unbind(1)
        chosen_G, rejected_G = torch.where(first_G, one_G, two_G), torch.where(first_G, two_G, one_G)
        metrics[f"chosen_{name}"], metrics[f"rejected_{name}"] = sum_count(chosen_G), sum_count(rejected_G)
        return chosen_G, rejected_G

    sides("logp", logp_B)
    chosen_G, rejected_G = sides("reward", reward_B)
    metrics["margin"] = sum_count(chosen_G - rejected_G)
    metrics["accuracy"] = sum_count((torch.sign(chosen_G - rejected_G) + 1) / 2)
    return metrics


def require_pairs(source: Source, method: str) -> Source:
    """Checks that each group of an offline source is a labelled pair; returns the source.

    Raises:
        DataError: rankings, or groups without ranks.
    """
    for group in source.groups if isinstance(source, Offline) else ():
        if len(group.responses) != 2:
            raise not_a_pair(method, group)
        _require_ranks(ranks_of(group.preference) is not None, group.origin or group.prompt.id, method)
    return source


def require_rankings(source: Source, method: str) -> Source:
    """Checks that each group of an offline source has ranks; returns the source.

    Raises:
        DataError: groups without ranks.
    """
    for group in source.groups if isinstance(source, Offline) else ():
        _require_ranks(ranks_of(group.preference) is not None, group.origin or group.prompt.id, method)
    return source


def _require_ranks(ranked: bool, where: str, method: str) -> None:
    if not ranked:
        raise DataError(
            f"{method} learns from comparisons and these responses have no ranks",
            where=where,
            got="no ranks",
            expected="chosen and rejected, or responses with ranks, scores or shares",
            fix="score the responses first (tiltyard train candidates), or use sft for responses that are simply good",
        )

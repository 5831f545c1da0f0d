"""Held-out measurements of a model while it trains and at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tiltyard.evaluation.stats import accuracy_ci, bits_per_byte
from tiltyard.losses.kl import sum_per_response
from tiltyard.losses.reward import kwise_loss_G, pairs_G, ranking_pairs
from tiltyard.models.language import ScalarModel
from tiltyard.stages.data import byte_count
from tiltyard.training.algorithm import Models, device_of
from tiltyard.training.batch import Batch
from tiltyard.types import Group

Measure = Callable[[Models, int], dict[str, float]]


def likelihood(groups: list[Group], budget: int) -> Measure:
    """Mean loss a token, and bits per byte of the answers' text."""

    @torch.no_grad()
    def measure(models: Models, step: int) -> dict[str, float]:  # noqa: ARG001 - protocol
        policy = models.get("policy")
        policy.module.eval()
        whole = Batch.of(groups, range(len(groups)), len(groups), device_of(models), budget)
        nll = tokens = 0.0
        for part in whole.micro():
            logp_R = policy.logp_R(part.forest)[0]
            nll -= float(logp_R.sum())
            tokens += part.forest.R
        return {"held_out/loss": nll / tokens, "held_out/bits_per_byte": bits_per_byte(nll, byte_count(groups))}

    return measure


@torch.no_grad()
def scores_of(model: ScalarModel, groups: list[Group], budget: int) -> list[list[float]]:
    """The reward model's score of every response of every group."""
    model.module.eval()
    whole = Batch.of(groups, range(len(groups)), len(groups), model.device, budget)
    flat = torch.cat([model.score_B(part.forest) for part in whole.micro()]).tolist()
    scores = []
    for group in groups:
        scores.append(flat[: len(group.responses)])
        flat = flat[len(group.responses) :]
    return scores


def ranking(groups: list[Group], budget: int) -> Measure:
    """Accuracy over untied held-out pairs and the K-wise loss."""

    def measure(models: Models, step: int) -> dict[str, float]:  # noqa: ARG001 - protocol
        found = reward_report(models.get("reward"), groups, budget)
        return {f"held_out/{k}": v for k, v in found.items() if isinstance(v, float)}

    return measure


def reward_report(model: ScalarModel, groups: list[Group], budget: int) -> dict[str, Any]:
    """Accuracy with its interval (clustered by prompt), loss, number of pairs; ties in score count one half."""
    scores = scores_of(model, groups, budget)
    score_B = torch.tensor([s for row in scores for s in row], dtype=torch.float64)
    rank_B = torch.tensor([float(k) for g in groups for k in g.ranks or ()])
    group_B = torch.tensor([i for i, g in enumerate(groups) for _ in g.responses])
    winner_P, loser_P, group_P = ranking_pairs(rank_B, group_B)
    names = [groups[i].prompt.id or str(i) for i in group_P.tolist()]
    found = accuracy_ci(score_B[winner_P].tolist(), score_B[loser_P].tolist(), names)
    kept_G = pairs_G(rank_B, group_B, len(groups)) > 0
    loss_G = kwise_loss_G(score_B, rank_B, group_B, len(groups))
    return {
        "accuracy": found.value,
        "accuracy_ci": found.ci,
        "loss": float(loss_G[kept_G].mean()),
        "pairs": len(winner_P),
    }


def kl_of(logp_R: torch.Tensor, ref_R: torch.Tensor, response_R: torch.Tensor, responses: int) -> list[float]:
    """One-sample estimates of KL(pi || ref) in nats, one a response: the summed log-ratio."""
    return sum_per_response(logp_R - ref_R, response_R, responses).tolist()

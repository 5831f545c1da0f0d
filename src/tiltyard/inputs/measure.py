"""Held-out measurements of a model while it trains and at its end.

Every process measures all groups, so that all of them run the same passes where parameters are spread over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from tiltyard.batch.batch import Batch
from tiltyard.distributed.parts import in_pass
from tiltyard.evaluation.scored_pairs import prompt_key
from tiltyard.inputs.files import byte_count
from tiltyard.losses.kl import sum_per_response
from tiltyard.losses.reward import accuracy_G, kwise_loss_G, pairs_G, ranking_pairs
from tiltyard.models.language import ScalarModel
from tiltyard.stats.text import bits_per_byte
from tiltyard.stats.win_rates import accuracy_ci
from tiltyard.training.algorithm import Models, Prepare, RefLogps
from tiltyard.training.prepare.labels import binary_labels
from tiltyard.types import Group, ranks_of, same_for_same

Measure = Callable[[Models, int], dict[str, float]]


def likelihood(groups: Sequence[Group], budget: int) -> Measure:
    """Mean loss a token, and bits per byte of the responses' text."""

    @torch.no_grad()
    def measure(models: Models, step: int) -> dict[str, float]:  # noqa: ARG001 - protocol
        policy = models.get("policy")
        policy.module.eval()
        nll, tokens, size = 0.0, 0, 0
        for part in Batch.stream(groups, models.device, budget):
            logp_R = in_pass(partial(policy.logp_R, part.forest), policy.module)[0]
            nll -= float(logp_R.sum())
            tokens += part.forest.R
            size += byte_count(part.groups)
        return {"held_out/loss": nll / tokens, "held_out/bits_per_byte": bits_per_byte(nll, size)}

    return measure


def cloze(groups: Sequence[Group], budget: int, mask: Prepare) -> Measure:
    """Mean loss of an encoder on tokens that `mask` chooses, the same ones at every step."""

    @torch.no_grad()
    def measure(models: Models, step: int) -> dict[str, float]:  # noqa: ARG001 - protocol
        fixed = models.replace(version=0)
        model = models.get("encoder")
        model.module.eval()
        nll = chosen = 0.0
        for part in Batch.stream(groups, model.device, budget):
            part = mask(fixed, part)
            cloze_logp_R = partial(model.cloze_logp_R, part.forest, part["corrupt_R"], part["masked_R"])
            logp_R = in_pass(cloze_logp_R, model.module)
            nll -= float(logp_R.sum())
            chosen += float(part["masked_R"].sum())
        return {"held_out/loss": nll / chosen}

    return measure


def preference(groups: Sequence[Group], budget: int, ref: RefLogps) -> Measure:
    """Agreement of log pi/ref with held-out preferences: the implicit reward of every direct method, on one scale.

    Rankings: `accuracy` of the summed log-ratio over untied pairs (a prompt weighs the same whatever its K; equal ones
    count half), `margin` in nats between better and worse, and `likelihood_accuracy`, that of the averaged log-prob,
    which needs no reference. Single labelled responses: `auc`, the chance that a good one's log-ratio is higher.
    """

    @torch.no_grad()
    def measure(models: Models, step: int) -> dict[str, float]:  # noqa: ARG001 - protocol
        policy = models.get("policy")
        policy.module.eval()
        ranked, parts = any(g.preference is not None and len(g.responses) > 1 for g in groups), []
        for part in Batch.stream(groups, models.device, budget):
            forest = part.forest
            logp_R = in_pass(partial(policy.logp_R, forest), policy.module)[0].double()
            ratio_R = logp_R - ref.logp_R(part.groups).to(logp_R)
            logp_B, ratio_B = (sum_per_response(x, forest.response_R, forest.B) for x in (logp_R, ratio_R))
            target_B = part["rank_B"] if ranked else _label_B(part)
            group_B = torch.tensor(part.index, device=target_B.device)[forest.group_B]
            parts.append((ratio_B, logp_B / forest.count_B, target_B, group_B))
        ratio_B, likely_B, target_B, group_B = (torch.cat(list(column)) for column in zip(*parts, strict=True))
        found = {"log_ratio": float(ratio_B.mean())}
        if ranked:
            kept = pairs_G(target_B, group_B, len(groups)) > 0
            right = [accuracy_G(x, target_B, group_B, len(groups)) for x in (ratio_B, likely_B)]
            winner_P, loser_P, _ = ranking_pairs(target_B, group_B)
            found["accuracy"], found["likelihood_accuracy"] = (float(x[kept].mean()) for x in right)
            found["margin"] = float((ratio_B[winner_P] - ratio_B[loser_P]).mean())
        else:
            found["auc"] = _auc(ratio_B, target_B > 0)
        return {f"held_out/{k}": v for k, v in found.items()}

    return measure


def _label_B(part: Batch) -> torch.Tensor:
    """1 for good responses and 0 for bad ones, [B]."""
    labels = [good for group in part.groups for good in binary_labels(group) or ()]
    return torch.tensor(labels, dtype=torch.float32, device=part.forest.device)


def _auc(x_B: torch.Tensor, good_B: torch.Tensor) -> float:
    """The chance that a good one is above a bad one, equal ones counting half; 0.5 if either kind is missing."""
    good, bad = x_B[good_B], x_B[~good_B].sort().values
    if not len(good) or not len(bad):
        return 0.5
    below, upto = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    return float((below + upto).double().mean() / (2 * len(bad)))


def scores_of(model: ScalarModel, groups: Sequence[Group], budget: int) -> list[list[float]]:
    """The reward model's score of every response of every group."""
    return list(each_score(model, groups, budget))


@torch.no_grad()
def each_score(model: ScalarModel, groups: Sequence[Group], budget: int) -> Iterator[list[float]]:
    """`scores_of` group by group."""
    model.module.eval()
    for part in Batch.stream(groups, model.device, budget):
        scores = in_pass(partial(model.score_B, part.forest), model.module).tolist()
        for group in part.groups:
            yield same_for_same(group, scores[: len(group.responses)])
            scores = scores[len(group.responses) :]


def ranking(groups: Sequence[Group], budget: int) -> Measure:
    """Accuracy over untied held-out pairs and the K-wise loss."""

    def measure(models: Models, step: int) -> dict[str, float]:  # noqa: ARG001 - protocol
        found = reward_report(models.get("reward"), groups, budget)
        return {f"held_out/{k}": v for k, v in found.items() if isinstance(v, float)}

    return measure


def reward_report(model: ScalarModel, groups: Sequence[Group], budget: int) -> dict[str, Any]:
    """Accuracy with its interval (clustered by prompt), loss, number of pairs; ties in score count one half."""
    scores = scores_of(model, groups, budget)
    said = [(prompt_key(group), ranks_of(group.preference) or ()) for group in groups]
    score_B = torch.tensor([s for row in scores for s in row], dtype=torch.float64)
    rank_B = torch.tensor([float(k) for _, ranks in said for k in ranks])
    group_B = torch.tensor([i for i, row in enumerate(scores) for _ in row])
    winner_P, loser_P, group_P = ranking_pairs(rank_B, group_B)
    names = [said[i][0] for i in group_P.tolist()]
    found = accuracy_ci(score_B[winner_P].tolist(), score_B[loser_P].tolist(), names)
    kept_G = pairs_G(rank_B, group_B, len(groups)) > 0
    loss_G = kwise_loss_G(score_B, rank_B, group_B, len(groups))
    return {
        "accuracy": found.value,
        "accuracy_ci": found.ci,
        "loss": float(loss_G[kept_G].mean()),
        "pairs": len(winner_P),
    }

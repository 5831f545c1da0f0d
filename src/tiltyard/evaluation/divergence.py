"""KL to a reference model and entropy of sampled responses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiltyard.batch.batch import Batch
from tiltyard.losses.kl import sum_per_response
from tiltyard.models.language import LanguageModel
from tiltyard.types import Group


@torch.no_grad()
def kl_and_entropy(
    groups: Sequence[Group], model: LanguageModel, ref: LanguageModel, temperature: float
) -> tuple[list[float], list[float]]:
    """Computes for every response the summed log-ratio to the reference and the mean entropy per token.

    Both at the sampling temperature and in nats, in the order of the responses. The log-ratio is a one-sample estimate
    of the KL divergence of the response.
    """
    batch = Batch.of(groups, range(len(groups)), len(groups), model.device)
    kls: list[float] = []
    entropies: list[float] = []
    for part in batch.micro():
        forest = part.forest
        logp_R, entropy_R = model.logp_R(forest, temperature=temperature, entropy=True)
        ref_R, _ = ref.logp_R(forest, temperature=temperature)
        assert entropy_R is not None
        kls += sum_per_response(logp_R - ref_R, forest.response_R, forest.B).tolist()
        entropies += (sum_per_response(entropy_R, forest.response_R, forest.B) / forest.count_B).tolist()
    return kls, entropies

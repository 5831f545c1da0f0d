"""CLICK: a contrastive loss on the model's own continuations, some labelled good and some bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import DataError
from tiltyard.inputs import DEMONSTRATIONS, Labelled, Policy, Reference
from tiltyard.losses.kl import sum_per_response
from tiltyard.losses.preference import likelihood_rank
from tiltyard.methods.base import method
from tiltyard.methods.sft import Nll
from tiltyard.training.algorithm import Algorithm, AuxLoss, Forward, Item, Models, Prepare, Source
from tiltyard.training.prepare import BinaryLabels, RefLogp, binary_labels, column, sum_count
from tiltyard.training.source import Offline, generator
from tiltyard.types import Group


@dataclass(frozen=True)
class CLICKLoss:
    """weight * mean over the group's pairs of max(0, margin - log pi(good) + log pi(bad)), and the good ones' NLL."""

    weight: float
    margin: float
    lm: bool
    needs: ClassVar[tuple[str, ...]] = ("logp_R", "label_B", "positive_index_B")
    item: ClassVar[Item] = "G"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        forest, logp_B = batch.forest, forward.logp_B
        label_B, positive_index_B = batch["label_B"].to(logp_B.dtype), batch["positive_index_B"].long()
        first_B = torch.searchsorted(forest.group_B, forest.group_B)  # where the response's group begins
        bad_P = (positive_index_B >= 0).nonzero()[:, 0]
        good_P = (first_B + positive_index_B)[bad_P]
        hinge_P = torch.relu(self.margin - logp_B[good_P] + logp_B[bad_P])

        def per_group(x: Tensor, group: Tensor) -> Tensor:
            return torch.zeros(forest.G).to(logp_B).index_add(0, group, x)

        pairs_G = per_group(torch.ones_like(hinge_P), forest.group_B[bad_P])
        loss_G = self.weight * per_group(hinge_P, forest.group_B[bad_P]) / pairs_G.clamp(min=1)
        if self.lm:
            tokens_G = per_group(label_B * forest.count_B, forest.group_B)
            loss_G = loss_G - per_group(label_B * logp_B, forest.group_B) / tokens_G.clamp(min=1)
        metrics: Metrics = {"hinge": sum_count(hinge_P.detach()), "active": sum_count((hinge_P.detach() > 0).double())}
        return loss_G, metrics


@dataclass(frozen=True)
class NegativePairs:
    """Pairs each bad response with a good one: `positive_index_B`, its index within the group; -1: no pair.

    `random` draws one of the group's good responses, from (seed, the tokens) alone, so that it stays the same from
    epoch to epoch; `likelihood_rank` is CLICK's rule over the starting model's likelihoods (`ref_logp_R`).
    """

    pairing: Literal["random", "likelihood_rank"]
    seed: int = 0
    writes: ClassVar[tuple[str, ...]] = ("positive_index_B",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("label_B", *(("ref_logp_R",) if self.pairing == "likelihood_rank" else ()))

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest = batch.forest
        logp = [0.0] * forest.B
        if self.pairing == "likelihood_rank":
            logp = sum_per_response(batch["ref_logp_R"], forest.response_R, forest.B).tolist()
        label = batch["label_B"].tolist()
        positive: list[float] = []
        for group in batch.groups:
            rows = slice(len(positive), len(positive) + len(group.responses))
            good = [x > 0 for x in label[rows]]
            positive += likelihood_rank(good, logp[rows]) if self.pairing != "random" else self._random(group, good)
        positive_index_B = column(positive, batch)
        paired = sum_count((positive_index_B >= 0).double())
        return batch.with_columns({"paired": paired}, positive_index_B=positive_index_B)

    def _random(self, group: Group, good: list[bool]) -> list[int]:
        candidates = [i for i, g in enumerate(good) if g]
        if not candidates:
            return [-1] * len(good)
        stream = generator(self.seed, 5, *group.prompt.ids, *(t for r in group.responses for t in r.ids))
        choices = torch.randint(len(candidates), (len(good),), generator=stream).tolist()
        return [-1 if is_good else candidates[k] for is_good, k in zip(good, choices, strict=True)]


@method(
    "offline",
    source=Labelled(),
    roles=(Policy(), Reference(cached=True)),
    aux_data=DEMONSTRATIONS,
    defaults={"lr": 1e-5, "prompts_per_step": 16},
    defaults_from="Tiltyard (the paper's values could not be checked)",
    formula="-log pi(data)/tokens + weight * max(0, margin - log pi(good) + log pi(bad)), log-probs summed",
    oracle="an inactive pair leaves the language-modelling gradient alone; an active one adds -weight (grad log "
    "pi(good) - grad log pi(bad)); weight 0 is SFT; Bernoulli labels as in slic",
    paper="Zheng et al. 2023 (CLICK)",
    pitfalls="Its published code calls the weight GAMMA and the margin alpha. Continuations must be the model's own "
    "(a `candidates` stage makes them), several to a prompt, good and bad ones among them.",
)
def click(
    source: Source,
    data: Source | None = None,
    *,
    weight: Annotated[float, Field(ge=0)] = 0.5,
    margin: Annotated[float, Field(ge=0)] = 1.0,
    pairing: Literal["likelihood_rank", "random"] = "likelihood_rank",
    pairing_seed: Annotated[int, Field(ge=0)] = 0,
) -> Algorithm:
    """Contrastive learning on the model's own continuations, some good and some bad, plus a language-modelling loss.

    The language-modelling term is over `demonstrations` if they are given, else over the good continuations.

    Args:
        source: `Offline` over groups of labelled continuations.
        data: `Offline` over ordinary data for the language-modelling term.
        weight: of the contrastive term. [0.5: the largest of the code's 0.1, 0.2 and 0.5]
        margin: of the summed log-probs. [Tiltyard: SLiC-HF's; the paper's could not be checked]
        pairing: `likelihood_rank` holds each bad response against the good one that is likeliest among those less
            likely than itself; `random` against any good one of its prompt. [likelihood_rank: Zheng et al. 2023]
        pairing_seed: of random pairing. [Tiltyard: any number]
    """
    groups = source.groups if isinstance(source, Offline) else ()
    if groups and not any(len(set(binary_labels(g) or ())) > 1 for g in groups):
        raise DataError(
            "no prompt has both a good and a bad response, so there is nothing to contrast",
            where="click",
            got=f"{len(groups):,} prompts",
            expected="several responses to a prompt, some labelled good and some bad",
            fix="sample more a prompt (candidates with samples_per_prompt=8), or use kto, which needs no pairs",
        )
    by_likelihood: tuple[Prepare, ...] = (RefLogp(),) if pairing == "likelihood_rank" else ()
    return Algorithm(
        "click",
        source,
        CLICKLoss(weight, margin, lm=data is None),
        prepare=(BinaryLabels(), *by_likelihood, NegativePairs(pairing, pairing_seed)),
        aux_losses=() if data is None else (AuxLoss("lm", data, Nll(), 1.0),),
    )

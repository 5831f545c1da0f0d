"""Prepare steps that read what people or judges said: who is preferred, what is good, how much better.

They fail with the group's origin where a record does not say what the method needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.losses.kl import sum_per_response
from tiltyard.losses.preference import likelihood_rank
from tiltyard.losses.reward import pairs_G
from tiltyard.training.algorithm import Models
from tiltyard.training.prepare import by_micro, total
from tiltyard.training.source import generator
from tiltyard.types import Group, Response


def _column(values: list[float], batch: Batch) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=batch.forest.device)


@dataclass
class RankingLabels:
    """For losses over rankings: which pairs count.

    Writes `ranked_G` (1 for groups with at least one pair to learn from; the others are left out of the mean and
    counted as `tied_groups`), `order_B` (ranks; in groups with soft labels every response has its own, so that each
    pair counts, equal shares too), `share_B` and `soft_G` (1 where the group has soft labels).
    """

    needs: tuple[str, ...] = ("rank_B",)
    writes: tuple[str, ...] = ("ranked_G", "order_B", "share_B", "soft_G")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        batch["rank_B"]  # says what is missing if nobody ranked them
        order: list[float] = []
        share: list[float] = []
        soft = []
        for group in batch.groups:
            order += group.ranks or () if group.shares is None else range(1, len(group.responses) + 1)
            share += group.shares or [0.0] * len(group.responses)
            soft.append(float(group.shares is not None))
        order_B = _column([float(x) for x in order], batch)
        kept_G = (pairs_G(order_B, batch.forest.group_B, batch.forest.G) > 0).double()
        return batch.with_columns(
            {"tied_groups": total(1 - kept_G)},
            ranked_G=kept_G,
            order_B=order_B,
            share_B=_column(share, batch),
            soft_G=_column(soft, batch),
        )


@dataclass
class PairLabels:
    """For losses over pairs: `share_B`, the probability that each of the two is the preferred one, and `kept_G`.

    Soft labels are taken as they are; ranks give 1 and 0. A tie in the ranks says nothing: `kept_G` is 0 and the pair
    is left out of the mean (`tied_groups` counts it). A soft label of one half is kept: it says "equally good".

    Raises:
        DataError: a group does not have two responses.
    """

    method: str
    needs: tuple[str, ...] = ("rank_B",)
    writes: tuple[str, ...] = ("share_B", "kept_G")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        share: list[float] = []
        kept = []
        rank = batch["rank_B"].tolist()
        for group in batch.groups:
            if len(group.responses) != 2:
                raise not_a_pair(self.method, group)
            first, second = rank[len(share) : len(share) + 2]
            hard = (0.5, 0.5) if first == second else (float(first < second), float(second < first))
            share += group.shares or hard
            kept.append(float(group.shares is not None or first != second))
        kept_G = _column(kept, batch)
        return batch.with_columns({"tied_groups": total(1 - kept_G)}, share_B=_column(share, batch), kept_G=kept_G)


def not_a_pair(method: str, group: Group) -> DataError:
    return DataError(
        f"{method} compares two answers and this row has {len(group.responses)}",
        where=group.origin or group.prompt.id,
        got=f"a ranking of {len(group.responses)} answers to prompt {group.prompt.id}",
        expected="chosen and rejected",
        fix="set pairs=all or pairs=best_worst to cut rankings into pairs, or use a method for rankings (rrhf, reward)",
    )


@dataclass
class RanksFromScores:
    """`rank_B` (and shares) for fresh answers: a judge's verdict as it is, or the order of their scores."""

    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("rank_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        if "rank_B" in batch.columns:
            return batch
        batch["score_B"]  # says what is missing if nobody judged
        ranks = []
        for group in batch.groups:
            best_first = sorted(set(group.scores or ()), reverse=True)
            ranks += [float(best_first.index(s) + 1) for s in group.scores or ()]
        return batch.with_columns(rank_B=_column(ranks, batch))


@dataclass
class Margins:
    """`grade_B`: numbers whose difference is the margin of a pair (Llama 2's m(rating), methods 1.4).

    Args:
        source: `scores` takes the responses' scores; any other name a field of the row, a number or one of `levels`,
            which then is the margin of the preferred over the other answer of a pair.
        levels: what words in that field mean, e.g. `{"significantly": 1, "slightly": 0.33}`.
        scale: multiplies both.
    """

    source: str
    levels: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0
    needs: tuple[str, ...] = ("rank_B",)
    writes: tuple[str, ...] = ("grade_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        grades = [self.scale * g for group in batch.groups for g in self._of(group)]
        return batch.with_columns(grade_B=_column(grades, batch))

    def _of(self, group: Group) -> tuple[float, ...]:
        if self.source == "scores":
            if group.scores is None:
                raise self._lacks(group, "no scores", "give 'scores' (numbers), or set margin to a field of the rows")
            return group.scores
        value = group.prompt.meta.get(self.source)
        margin = self.levels.get(value) if isinstance(value, str) else value
        if isinstance(margin, bool) or not isinstance(margin, int | float) or margin < 0:
            fix = "add it to margin_levels" if isinstance(value, str) else f"give '{self.source}' as a number >= 0"
            raise self._lacks(group, f"{self.source} = {value!r}", fix)
        if len(group.responses) != 2:
            raise self._lacks(group, f"{len(group.responses)} answers", "use margin=scores for rankings")
        first, second = group.ranks or (1, 1)
        return (float(margin), 0.0) if first <= second else (0.0, float(margin))

    def _lacks(self, group: Group, got: str, fix: str) -> DataError:
        where = group.origin or group.prompt.id
        return DataError(
            "the row says no margin", where=where, got=got, expected=f"a margin from '{self.source}'", fix=fix
        )


@dataclass
class Labels:
    """`label_B`: 1 for good, 0 for bad answers.

    Raises:
        DataError: scores that are neither 1 nor 0.
    """

    needs: tuple[str, ...] = ("score_B",)
    writes: tuple[str, ...] = ("label_B",)

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        for group in batch.groups:
            if any(score not in (0.0, 1.0) for score in group.scores or ()):
                raise DataError(
                    "an answer is labelled neither good nor bad",
                    where=group.origin or group.prompt.id,
                    got=f"scores {group.scores}",
                    expected="1 (good) or 0 (bad)",
                    fix="set good_from=NUMBER: answers with at least that score are good",
                )
        label_B = batch["score_B"].double()
        return batch.with_columns({"good": total(label_B)}, label_B=label_B)


@dataclass
class NegativePairs:
    """Pairs each bad response with a good one: `positive_index_B`, its index within the group; -1: no pair.

    `random` draws one of the group's good answers, from (seed, the answers' own tokens) alone, so that it stays
    the same from epoch to epoch; `likelihood_rank` is CLICK's rule over the starting model's likelihoods
    (`ref_logp_R`).
    """

    pairing: Literal["random", "likelihood_rank"]
    seed: int = 0
    needs: tuple[str, ...] = ("label_B",)
    writes: tuple[str, ...] = ("positive_index_B",)

    def __post_init__(self) -> None:
        if self.pairing == "likelihood_rank":
            self.needs = ("label_B", "ref_logp_R")

    def __call__(self, models: Models, batch: Batch) -> Batch:  # noqa: ARG002
        forest = batch.forest
        logp = [0.0] * forest.B
        if self.pairing == "likelihood_rank":
            logp = sum_per_response(batch["ref_logp_R"], forest.response_R, forest.B).tolist()
        label = batch["label_B"].tolist()
        partner: list[float] = []
        for group in batch.groups:
            rows = slice(len(partner), len(partner) + len(group.responses))
            good = [x > 0 for x in label[rows]]
            partner += likelihood_rank(good, logp[rows]) if self.pairing != "random" else self._random(group, good)
        positive_index_B = _column(partner, batch)
        return batch.with_columns(
            {"paired": total((positive_index_B >= 0).double())}, positive_index_B=positive_index_B
        )

    def _random(self, group: Group, good: list[bool]) -> list[int]:
        places = [i for i, g in enumerate(good) if g]
        if not places:
            return [-1] * len(good)
        g = generator(self.seed, 5, *group.prompt.ids, *(t for r in group.responses for t in r.ids))
        drawn = torch.randint(len(places), (len(good),), generator=g).tolist()
        return [-1 if is_good else places[d] for is_good, d in zip(good, drawn, strict=True)]


def _fitting(answer: Response, group: Group, context: int | None) -> Response:
    """The answer, cut to what the model's context leaves behind this group's prompt (it was made for another)."""
    room = len(answer.ids) if context is None else context - len(group.prompt.ids)
    if len(answer.ids) <= room:
        return answer
    spans = tuple((a, min(b, room)) for a, b in answer.loss_spans or ((0, room),) if a < room)
    return replace(answer, ids=answer.ids[:room], logps=None, loss_spans=spans)


@dataclass
class MismatchedKL:
    """`kl_B`: KTO's reference point, one number for the whole step repeated along B, and the metric `kl`.

    The mean over the step's prompts of the summed log-ratio of an answer that belongs to ANOTHER prompt (that of the
    next group of the step, cut where the context ends), clamped at 0 (Ethayarajh et al. 2024, section 4.1: a biased but
    cheap estimate of the KL).
    The answers come from the whole step, over all processes, so the number does not depend on how the step is shared.
    """

    needs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("kl_B",)
    reads_ref: bool = True

    def __call__(self, models: Models, batch: Batch) -> Batch:
        policy, ref = models.get("policy"), models.get("ref")
        firsts = [(i, g.responses[0]) for i, g in zip(batch.index, batch.groups, strict=True)]
        everyone = dict(pair for part in processes.gather_objects(firsts) for pair in part)
        if len(everyone) < 2:
            raise DataError(
                "KTO's reference point puts answers to other prompts, so a step needs two",
                where="kto.batch",
                got=len(everyone),
                expected="at least 2",
                fix="raise batch",
            )
        foreign = []
        for i, g in zip(batch.index, batch.groups, strict=True):
            answer = _fitting(everyone[(i + 1) % batch.total], g, policy.chat.max_length)
            foreign.append(replace(g, responses=(answer,), scores=None, ranks=None, shares=None))
        other = Batch.of(foreign, batch.index, batch.total, batch.forest.device, batch.budget)
        ratio_R = by_micro(other, lambda part: policy.logp_R(part.forest)[0] - ref.logp_R(part.forest)[0])
        sums = torch.stack([ratio_R.double().sum(), ratio_R.new_tensor(float(len(foreign)), dtype=torch.float64)])
        ratio_sum, count = processes.sum_all(sums).tolist()
        kl = max(0.0, ratio_sum / count)
        return batch.with_columns({"kl": (kl, 1.0)}, kl_B=_column([kl] * batch.forest.B, batch))

"""KTO: responses that are simply good or bad, without pairs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.distributed import processes
from tiltyard.errors import DataError
from tiltyard.inputs import Labelled, Policy, Reference
from tiltyard.losses.preference import kto_B
from tiltyard.methods.base import method
from tiltyard.methods.direct import log_ratio_B
from tiltyard.training.algorithm import Algorithm, Forward, Item, Models, Source
from tiltyard.training.prepare import BinaryLabels, RefLogp, column, per_microbatch
from tiltyard.types import Group, Response


@dataclass(frozen=True)
class KTOLoss:
    """`w_D (1 - sigmoid(beta (r - z)))` of good and `w_U (1 - sigmoid(beta (z - r)))` of bad responses."""

    beta: float
    desirable: float
    undesirable: float
    needs: ClassVar[tuple[str, ...]] = ("logp_R", "ref_logp_R", "label_B", "kl_B")
    item: ClassVar[Item] = "B"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        ratio_B, label_B = log_ratio_B(forward, batch), batch["label_B"]
        kl_B = batch["kl_B"].to(ratio_B.dtype)
        loss_B = kto_B(ratio_B, label_B, kl_B, self.beta, self.desirable, self.undesirable)
        reward_B, good = self.beta * ratio_B.detach(), float(label_B.sum())
        metrics: Metrics = {
            "good_reward": (float((reward_B * label_B).sum()), good),
            "bad_reward": (float((reward_B * (1 - label_B)).sum()), len(label_B) - good),
        }
        return loss_B, metrics


@dataclass(frozen=True)
class MismatchedKL:
    """`kl_B`: KTO's reference point, one number for the whole step repeated along B, and the metric `kl`.

    The mean over the step's prompts of the summed log-ratio of a response to ANOTHER prompt (that of the next group of
    the step, truncated where the context ends), clamped at 0 (Ethayarajh et al. 2024, section 4.1: a biased but cheap
    estimate of the KL). The responses come from the whole step, over all processes, so the number does not depend on
    how the step is shared.

    Raises:
        DataError: the step has fewer than two prompts.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("kl_B",)
    reads_ref: ClassVar[bool] = True

    def __call__(self, models: Models, batch: Batch) -> Batch:
        policy, ref = models["policy"], models["ref"]
        firsts = [(i, g.responses[0]) for i, g in zip(batch.index, batch.groups, strict=True)]
        first_responses = dict(pair for part in processes.gather_objects(firsts) for pair in part)
        if len(first_responses) < 2:
            raise DataError(
                "KTO's reference point pairs responses with other prompts, so a step needs two",
                where="kto.prompts_per_step",
                got=len(first_responses),
                expected="at least 2",
                fix="raise prompts_per_step",
            )
        mismatched = []
        for i, g in zip(batch.index, batch.groups, strict=True):
            response = _truncated(first_responses[(i + 1) % batch.total], g, policy.chat.max_length)
            mismatched.append(replace(g, responses=(response,), scores=None, preference=None))
        other = Batch.of(mismatched, batch.index, batch.total, batch.forest.device, batch.budget)
        ratio_R = per_microbatch(
            other, lambda part: policy.logp_R(part.forest)[0] - ref.logp_R(part.forest)[0], policy, ref
        )
        sums = torch.stack([ratio_R.double().sum(), ratio_R.new_tensor(float(len(mismatched)), dtype=torch.float64)])
        ratio_sum, count = processes.sum_all(sums).tolist()
        kl = max(0.0, ratio_sum / count)
        return batch.with_columns({"kl": (kl, 1.0)}, kl_B=column([kl] * batch.forest.B, batch))


def _truncated(response: Response, group: Group, context: int | None) -> Response:
    """The response cut to the tokens that the model's context leaves after this group's prompt."""
    longest = len(response.ids) if context is None else context - len(group.prompt.ids)
    if len(response.ids) <= longest:
        return response
    spans = tuple((a, min(b, longest)) for a, b in response.loss_spans or ((0, longest),) if a < longest)
    return replace(response, ids=response.ids[:longest], logps=None, loss_spans=spans)


@method(
    "offline",
    source=Labelled(),
    roles=(Policy(), Reference()),
    defaults={"lr": 5e-7, "prompts_per_step": 64, "warmup": 0.1},
    defaults_from="Ethayarajh et al. 2024 (learning rate of DPO and KTO alike)",
    formula="w_D (1 - sigmoid(beta (r - z))) good, w_U (1 - sigmoid(beta (z - r))) bad,  r = log pi/ref(y), "
    "summed,\n"
    "z = max(0, mean of log pi/ref of responses paired with another prompt), without gradient",
    oracle="at the start z = 0 and the loss is 1/2; gradient -w beta/4 on good, +w beta/4 on bad log-probs; a "
    "response good with probability p moves by w_D p - w_U (1-p): it learns the sign of that, no pi*",
    paper="Ethayarajh et al. 2024, eq. 8",
    pitfalls="Keep w_D n_good : w_U n_bad between 1:1 and 4:3 (the paper's advice) where labels are unbalanced. The "
    "reference point needs two or more prompts a step, and the reference stays in memory.",
)
def kto(
    source: Source,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    desirable: Annotated[float, Field(ge=0)] = 1.0,
    undesirable: Annotated[float, Field(ge=0)] = 1.0,
) -> Algorithm:
    """Kahneman-Tversky optimisation: good responses above, bad ones below a reference point, each with its own weight.

    Args:
        source: `Offline` over labelled responses; pairs give one good and one bad response.
        beta: strength of the pull to the reference. [0.1: Ethayarajh et al. 2024, code]
        desirable: weight of good responses. [1: Ethayarajh et al. 2024, code]
        undesirable: weight of bad responses. [1: Ethayarajh et al. 2024, code]
    """
    return Algorithm(
        "kto",
        source,
        KTOLoss(beta, desirable, undesirable),
        prepare=(BinaryLabels(), RefLogp(), MismatchedKL()),
    )

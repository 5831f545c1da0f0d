"""SPIN: the model learns to distinguish the data from its own responses, against snapshots of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from tiltyard.batch.batch import Batch, Metrics
from tiltyard.errors import ConfigError
from tiltyard.inputs import Policy, Reference, SelfPlay
from tiltyard.losses.preference import Hinge, Logistic
from tiltyard.methods.base import method
from tiltyard.methods.direct import PairLoss
from tiltyard.training import self_play as runtime
from tiltyard.training.algorithm import Algorithm, Forward, Item, Mean
from tiltyard.training.hooks import RenewRef
from tiltyard.training.prepare import PairLabels, RefLogp

Kind = Literal["logistic", "hinge"]


@dataclass(frozen=True)
class SPINLoss:
    """The pair loss with the lam of the iteration whose opponent the responses come from.

    Args:
        lams: one number an iteration; the last holds for the rest. An opponent's response carries the number of its
            iteration as its `policy_version`.
        kind: the loss of the log-ratio difference.
    """

    betas: tuple[float, ...]
    kind: Kind
    needs: ClassVar[tuple[str, ...]] = ("logp_R", "ref_logp_R", "share_B", "kept_G")
    item: ClassVar[Item] = "G"

    def __call__(self, forward: Forward, batch: Batch) -> tuple[Tensor, Metrics]:
        iteration = batch.groups[0].responses[1].policy_version or 0
        beta = self.betas[min(iteration, len(self.betas) - 1)]
        loss = PairLoss(Logistic(beta) if self.kind == "logistic" else Hinge(1.0, beta), "log_ratio", beta)
        loss_G, metrics = loss(forward, batch)
        return loss_G, {**metrics, "beta": (beta, 1.0)}


@method(
    "offline",
    source=SelfPlay(),
    roles=(Policy(), Reference(renewed=True)),
    rests_on_labels=False,
    defaults={"lr": 5e-7, "prompts_per_step": 64, "epochs": 2.0, "warmup": 0.1},
    defaults_from="Chen et al. 2024, code (iterations 0 and 1); its optimiser is RMSprop, ours is AdamW",
    formula="l(beta h),  h = log pi/pi_t(data's response) - log pi/pi_t(own response),  own response ~ pi_t;\n"
    "pi_t, the model as the iteration began, is both opponent and reference",
    oracle="exact iterate pi_t (p_data/pi_t)^(1/beta); fixed point p_data; beta = 1 gets there in one iteration, "
    "beta > 1/2 contracts, beta = 1/2 cycles, beta < 1/2 diverges",
    paper="Chen et al. 2024 (SPIN), eq. 4.7",
    pitfalls="The published beta = 0.1 is stable only because each iteration stops far from its optimum: few steps, "
    "small lr. The paper adds the previous iteration's responses to the pool; here each iteration uses its own.",
)
def spin(
    source: runtime.SelfPlay,
    *,
    beta: Annotated[float, Field(gt=0)] | list[Annotated[float, Field(gt=0)]] = 0.1,
    loss: Kind = "logistic",
) -> Algorithm:
    """Self-play fine-tuning: the data's response always wins against the model's own, which comes from a snapshot.

    Args:
        source: `SelfPlay` over demonstrations; its `every` is the number of steps an iteration.
        beta: strength of the pull to the snapshot (the paper's lambda): one number, or one an iteration (the last
            holds for the rest). [0.1: Chen et al. 2024, code; its last iteration uses 5]
        loss: `logistic` -log sigmoid(beta h), or `hinge` max(0, 1 - beta h). [logistic: Chen et al. 2024]
    """
    betas = beta if isinstance(beta, list) else [beta]
    if not betas:
        raise ConfigError(
            "the schedule of beta is empty", where="spin.beta", got=beta, fix="give one number or several"
        )
    return Algorithm(
        "spin",
        source,
        SPINLoss(tuple(betas), loss),
        prepare=(PairLabels("spin"), RefLogp()),
        reduce=Mean("kept_G"),
        after=(RenewRef(source.every),),
        mutable_models=("ref",),
    )

"""The methods that match a distribution, in the table: losses at the start in plain numbers, and where they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.methods import dpg, f_dpg, gdc, kl_dpg, vbon
from tiltyard.posterior import best_of_n_probs
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer, WeightedScorer
from tiltyard.scoring.base import Cost, Scale
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt, Response
from training import tiny

from . import rl
from .starts import Known, by_group
from .worlds import BANDIT, Toy, Toys, doubles, law, policy, tilted, to_law
from .worlds import REWARD as R

BETA, N_BEST = 0.8, 3.0
LADDER = (-1.5, -0.5, -0.5, 0.0, 0.5, 0.5, 0.5, 1.5)  # scores of the reference's answers to every prompt


# ------------------------------------------------------------------------------------------------ sources for the table


def tokens_mod_5(prompt: Prompt, response: Response) -> float:
    return float(sum(response.ids) % 5)


@dataclass
class Proposed(tiny.Given):
    """Passes for an `Online` whose responses come from a proposal."""

    sample_from: str = "policy"


@dataclass
class Scored(tiny.Given):
    """Hands out groups with scores; its prompts, sampler and scorer are there for the reference's responses."""

    settings: SampleSettings = SampleSettings(max_tokens=6)  # noqa: RUF009 - frozen
    scorer: Any = FunctionScorer(tokens_mod_5)  # noqa: RUF009 - has no state
    sampler: Any = NativeSampler()  # noqa: RUF009 - is synchronised before it is used
    seed: int = 2

    @property
    def prompts(self) -> list[Prompt]:
        return [group.prompt for group in rl.answered(7)]


@dataclass(frozen=True)
class Rungs:
    """A sampler whose k-th answer to every prompt is the token k + 2."""

    def sync(self, model: Any, version: int) -> None: ...

    def close(self) -> None: ...

    def generate(self, prompts: Sequence[Prompt], n: int, *_: Any) -> list[Group]:
        return [Group(p, tuple(Response(ids=(2 + k,)) for k in range(n))) for p in prompts]


@dataclass(frozen=True)
class RungScorer:
    """The scores of `LADDER`; a record, as every part of a piece."""

    name: str = "rung"
    scale: Scale = Scale()  # noqa: RUF009 - frozen

    def score(self, groups: Sequence[Group]) -> list[Group]:
        return [replace(g, scores=tuple(LADDER[r.ids[0] - 2] for r in g.responses)) for g in groups]

    def take_cost(self) -> Cost:
        return Cost()


@dataclass
class Ladder(Scored):
    """The reference's answers have the scores of `LADDER`."""

    scorer: Any = RungScorer()
    sampler: Any = Rungs()


def ranked(n: int, seed: int = 0) -> list[Group]:
    """Answers whose scores are halves, so that they tie with each other and with the ladder's."""
    return [replace(g, scores=tuple(round(2 * s) / 2 for s in g.scores or ())) for g in rl.answered(n, seed)]


# ---------------------------------------------------------------------------- losses where the policy is the reference


def mean_loss(advantages: Callable[[list[float], list[float], Group], list[float]]) -> Callable[[Batch, Tensor], Known]:
    """The mean over answers of -A log pi, `advantages(log P/pi, log pi, group) -> A`."""

    def start(batch: Batch, logp_B: Tensor) -> Known:
        slopes, loss = [], 0.0
        for group, x, _ in by_group(batch, logp_B):
            a = advantages([s / BETA for s in rl.rule(group)], x, group)
            slopes += [-value for value in a]
            loss -= sum(value * at for value, at in zip(a, x, strict=True))
        return loss / len(slopes), doubles(slopes) / len(slopes)

    return start


def shares(log_w: Sequence[float]) -> list[float]:
    """exp(log_w), of mean 1."""
    w = [math.exp(v - max(log_w)) for v in log_w]
    return [v * len(w) / sum(w) for v in w]


def against_others(rewards: Sequence[float]) -> list[float]:
    total = sum(rewards)
    return [r - (total - r) / (len(rewards) - 1) for r in rewards]


dpg_start = mean_loss(lambda g, x, group: [w - 1 for w in shares(g)])
gdc_start = mean_loss(lambda g, x, group: [w - 1 for w in shares(list(group.scores or ()))])
f_dpg_start = mean_loss(lambda g, x, group: against_others([math.log(1 + w) for w in shares(g)]))


def kl_dpg_start(batch: Batch, logp_B: Tensor) -> Known:
    """p/q less pi/q, the proposal being another model."""
    q_B = torch.zeros(batch.forest.B).double().index_add(0, batch.forest.response_R, batch["proposed_logp_R"])
    proposed = iter(q_B.tolist())

    def advantages(g: list[float], x: list[float], group: Group) -> list[float]:
        behind = [value - next(proposed) for value in x]
        own, target = shares(behind), shares([a + b for a, b in zip(g, behind, strict=True)])
        return [w - u for w, u in zip(target, own, strict=True)]

    return mean_loss(advantages)(batch, logp_B)


@mean_loss
def vbon_start(g: list[float], x: list[float], group: Group) -> list[float]:
    """log (F^n - F_-^n) / m, the answer itself counted among the reference's."""
    rewards = []
    for score in group.scores or ():
        under, level = sum(s < score for s in LADDER), 1 + sum(s == score for s in LADDER)
        total = len(LADDER) + 1
        rewards.append(math.log((((under + level) / total) ** N_BEST - (under / total) ** N_BEST) / (level / total)))
    return against_others(rewards)


# --------------------------------------------------------------------------------------------- a bandit of six answers


def table(scores: Sequence[float], name: str = "") -> FunctionScorer:
    worth = dict(zip(BANDIT, scores, strict=False))
    return FunctionScorer(lambda prompt, response: worth[tuple(response.ids)], name)


def ends(build: Callable[[Any], Any], best: Callable[[Tensor], Tensor], scorer: Any = None, **toy: Any) -> Toy:
    """`best` makes the optimum of the reference's log-probabilities."""
    models = tilted(BANDIT).replace(proposal=policy(BANDIT))
    source = replace(rl.online(), scorer=scorer) if scorer is not None else rl.online()
    source = replace(source, settings=replace(source.settings, max_concurrent=2048))
    return Toy(build(source), models, to_law(BANDIT, best(law(models["ref"], BANDIT))), **({"lr": 2e-2} | toy))


PI = rl.tilt(BETA)
DPG: Toys = {"pi*": lambda: ends(lambda s: dpg(s, beta=BETA, missing_eos="none"), PI)}
KL_DPG: Toys = {
    # the advantages vanish at pi* although the proposal is not there
    "pi*": lambda: ends(lambda s: kl_dpg(s, beta=BETA, adapt_every=5, missing_eos="none"), PI),
    "pi*, by total variation": lambda: ends(
        lambda s: kl_dpg(s, beta=BETA, adapt_every=5, adapt_by="tv", missing_eos="none"), PI
    ),
}
F_DPG: Toys = {
    name: lambda name=name: ends(  # type: ignore[misc]  # bound now
        lambda s: f_dpg(s, divergence=name, beta=BETA, missing_eos="none"), PI, within=1e-2 if name == "tv" else 1e-3
    )
    for name in ("forward_kl", "reverse_kl", "js", "tv")
}

FEATURE = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)  # of the answers of the bandit
MANY = 20_000


def to_mean(moment: float, tilt: Tensor | float = 0.0) -> Callable[[Tensor], Tensor]:
    """The tilted law within the feature and within its opposite, mixed so that the feature has this mean."""

    def best(ref: Tensor) -> Tensor:
        p, has = (ref + tilt).exp(), doubles(FEATURE)
        return moment * p * has / (p * has).sum() + (1 - moment) * p * (1 - has) / (p * (1 - has)).sum()

    return best


def constrained(moments: dict[str, float]) -> Callable[[Online], Any]:
    return lambda s: gdc(s, moments=moments, moment_prompts=1, moment_samples=MANY)


GDC: Toys = {
    # lambda comes from samples: 4 standard errors of a mean of 20,000 are 0.014
    "a mean": lambda: ends(constrained({"f": 0.7}), to_mean(0.7), table(FEATURE, "f"), within=1.5e-2),
    "a pointwise one": lambda: ends(constrained({"f": 1.0}), to_mean(1.0), table(FEATURE, "f"), within=1e-2, lr=5e-2),
    "a mean beside a reward": lambda: ends(
        constrained({"f": 0.6}),
        to_mean(0.6, R[:6] / BETA),
        WeightedScorer([(1 / BETA, table(R.tolist(), "r")), (1.0, table(FEATURE, "f"))]),
        within=1.5e-2,
    ),
}

TIED = (0.0, -1.0, 1.0, 0.0, -1.0, 1.0)  # three levels of two answers


def best_of(scores: Sequence[float], n: float) -> Callable[[Tensor], Tensor]:
    return lambda ref: best_of_n_probs(ref.exp(), doubles(scores), n)


VBON: Toys = {
    "best of 4": lambda: ends(
        lambda s: vbon(s, n=4, ref_samples=MANY), best_of(R[:6].tolist(), 4), within=1.5e-2, steps=250
    ),
    "best of 4, with ties": lambda: ends(
        lambda s: vbon(s, n=4, ref_samples=MANY), best_of(TIED, 4), table(TIED), within=1.5e-2, steps=250
    ),
}

"""Methods that work in rounds: where they start and end, sources that hand out rounds, and samplers that deal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tests.chance import shifted
from tests.scoring.stubs import Scripted
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.methods import cringe, iterative_dpo, online_dpo, rest, rft, rso, self_rewarding
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import Capabilities, NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Models, StepGroups
from tiltyard.training.rounds import Rounds
from tiltyard.training.source import Offline, Online
from tiltyard.types import Group, Preference, Prompt, Response, ranks_of, shares_of
from training import tiny

from .starts import Known, by_group, sigma, softplus
from .worlds import (
    ASK,
    BANDIT,
    COIN,
    Answer,
    Toy,
    Toys,
    beats,
    demos,
    doubles,
    law,
    mixed_pairs,
    pair,
    pairs,
    policy,
    tilted,
    to_law,
)
from .worlds import REWARD as R

# --------------------------------------------------------------------------------------------------------- the sources


@dataclass
class RoundsGiven(tiny.Given):
    """Hands out groups as if they had been sampled and selected; passes for a `Rounds`, with what begins one."""

    every: int = 2
    samples_per_prompt: int = 64
    seed: int = 3
    select: Any = None
    keep: str = "last"
    phases: int = 1
    phase: Any = None
    given: Any = ()
    begin: tuple[Any, ...] = ()

    def __call__(self, models: Models, step: int) -> StepGroups:
        if step % self.every == 0:
            for act in self.begin:
                act(models)
        return super().__call__(models, step)


class PairsGiven(tiny.Given):
    """Passes for an `Online` of two answers a prompt."""

    samples_per_prompt = 2


def one_round(groups: Sequence[Group], every: int = 1000) -> RoundsGiven:
    """One batch of all groups, every step."""
    return RoundsGiven([groups], every=every)


class WithoutModel:
    """What the samplers below need not do."""

    capabilities = Capabilities(logps="none")

    def sync(self, model: LanguageModel, version: int) -> None:
        pass

    def close(self) -> None:
        """Nothing runs beside the trainer."""


@dataclass
class Tuples(WithoutModel):
    """A sampler without chance: the prompt's `slot` says which of all n-tuples of answers it gives.

    With each tuple once that is n draws from the uniform law over the answers, exactly.
    """

    support: Sequence[Answer]

    def prompts(self, n: int) -> list[Prompt]:
        return [replace(ASK, id=str(slot), meta={"slot": slot}) for slot in range(len(self.support) ** n)]

    def generate(self, prompts: Sequence[Prompt], n: int, *_: Any) -> list[Group]:
        size = len(self.support)
        chosen = [[self.support[p.meta["slot"] // size**i % size] for i in range(n)] for p in prompts]
        return [Group(p, tuple(Response(ids=y) for y in ys)) for p, ys in zip(prompts, chosen, strict=True)]


@dataclass
class Whole(WithoutModel):
    """A sampler without chance: every prompt gets every answer once, as one group."""

    support: Sequence[Answer]

    def generate(self, prompts: Sequence[Prompt], n: int, *_: Any) -> list[Group]:
        return [Group(p, tuple(Response(ids=y) for y in self.support)) for p in prompts]


def by_table(support: Sequence[Answer]) -> FunctionScorer:
    """Every answer's reward."""
    worth = dict(zip(support, R.tolist(), strict=False))
    return FunctionScorer(lambda prompt, response: worth[tuple(response.ids)])


def dealt(support: Sequence[Answer], n: int, prompts_per_step: int, every: int) -> Rounds:
    """Rounds of all n-tuples of these answers."""
    sampler = Tuples(support)
    prompts = sampler.prompts(n)
    return Rounds(prompts, sampler, by_table(support), len(prompts), prompts_per_step, every, n)


def live_rounds() -> Rounds:
    """Answers drawn in rounds of three steps and scored while the run goes on; the pool is in the checkpoint."""
    stream = torch.Generator().manual_seed(0)
    prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, stream)) for i in range(7)]
    rule = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 5))
    return Rounds(prompts, NativeSampler(), rule, 6, 4, 3, 8, SampleSettings(max_tokens=5), seed=2)


def live_pairs() -> Online:
    rounds = live_rounds()
    return Online(rounds.prompts, NativeSampler(), rounds.scorer, 5, 2, rounds.settings, seed=2)


def sampled_pairs(n: int, seed: int = 0) -> list[Group]:
    """Labelled pairs whose answers carry the log-probs under which they were drawn."""
    stream = torch.Generator().manual_seed(seed + 7)

    def signed(response: Response) -> Response:
        logps = -torch.rand(len(response.ids), generator=stream, dtype=torch.float64)
        return replace(response, logps=tuple(logps.tolist()))

    return [replace(g, responses=tuple(map(signed, g.responses))) for g in mixed_pairs(n, seed)]


# ------------------------------------------------------------------------------------------------------ cringe's start

ALPHA, MARGIN, TEMPERATURE = 0.6, 0.5, 7.0
NEGATIVE = -1.7  # the log-prob that every negative is given


def cringe_start(batch: Batch, x_R: Tensor) -> Known:
    """With every negative at `NEGATIVE`: gate, preferred answer.s likelihood and the other.s contrast, by hand."""
    sizes, loss, slopes, kept = batch.forest.count_B.tolist(), 0.0, [], 0
    parts = iter(x_R.split(sizes))
    for group in batch.groups:
        a, b = next(parts).tolist(), next(parts).tolist()
        first, second = ranks_of(group.preference) or (0, 0)
        q = shares_of(group.preference)[0] if shares_of(group.preference) else float(first < second)
        if shares_of(group.preference) is None and first == second:
            slopes += [0.0] * (len(a) + len(b))
            continue
        kept += 1
        gate = sigma((MARGIN - (2 * q - 1) * (sum(a) - sum(b))) / TEMPERATURE)
        pull = -(2 * q - 1) * gate * (1 - gate) / TEMPERATURE  # of the gate by the first answer's log-prob
        parts_of = [(a, q), (b, 1 - q)]
        own = sum(
            w * -sum(x) / len(x) + ALPHA * (1 - w) * sum(softplus(t - NEGATIVE) for t in x) / len(x)
            for x, w in parts_of
        )
        loss += gate * own
        for sign, (x, w) in zip((1, -1), parts_of, strict=True):
            each = [(-w + ALPHA * (1 - w) * sigma(t - NEGATIVE)) / len(x) for t in x]
            slopes += [gate * s + sign * pull * own for s in each]
    return loss / kept, doubles(slopes) / kept


def hinge_start(batch: Batch, x_B: Tensor) -> Known:
    """RSO's hinge-norm at h = 0: 1 a pair, and gamma either way, by how sure the label is."""
    slopes, kept = [], 0
    for group, _, _ in by_group(batch, x_B):
        first, second = ranks_of(group.preference) or (0, 0)
        q = shares_of(group.preference)[0] if shares_of(group.preference) else float(first < second)
        tied = shares_of(group.preference) is None and first == second
        kept += not tied
        slopes += [0.0, 0.0] if tied else [-GAMMA * (2 * q - 1), GAMMA * (2 * q - 1)]
    return 1.0, doubles(slopes) / kept


GAMMA = 0.4

# ---------------------------------------------------------------------------------------------------- where they end


def tilt(build: Callable[..., Any], rounds: int = 1, steps: int = 150, source: Any = one_round) -> Toy:
    """pi0 exp(rounds * r/0.7)/Z, from every pair with its exact label."""
    models = tilted(BANDIT)
    best = (law(models["ref"], BANDIT) + rounds * R[:6] / 0.7).softmax(0)
    given = source(pairs(BANDIT, beats(R[:6])))
    return Toy(build(given), models, to_law(BANDIT, best), steps=steps)


def renewed(build: Callable[..., Any]) -> Toy:
    """The reference is renewed once: the tilt is there twice. What the first round lacks, the second builds on."""
    steps = 300
    toy = tilt(build, rounds=2, steps=2 * steps, source=lambda groups: one_round(groups, every=steps))
    return replace(toy, within=5e-3, lr=1e-2)


def fixed() -> Toy:
    """The reference stays: three rounds end where one does."""
    return tilt(lambda source: iterative_dpo(source, beta=0.7), source=lambda groups: one_round(groups, every=50))


ITERATIVE: Toys = {
    "reference fixed: pi*": fixed,
    "reference renewed: the tilt adds up": lambda: renewed(
        lambda source: iterative_dpo(source, beta=0.7, ref_update="previous")
    ),
}

SELF_REWARDING: Toys = {
    "the tilt adds up": lambda: renewed(lambda source: self_rewarding(source, beta=0.7)),
}


def fresh_pairs() -> Toy:
    """Pairs drawn from the policy as it is, labelled with the exact probability: at pi* no pair has a gradient."""
    models = tilted(BANDIT)
    best = (law(models["ref"], BANDIT) + R[:6] / 0.7).softmax(0)
    worth = dict(zip(BANDIT, R.tolist(), strict=False))

    def judge(groups: list[Group]) -> list[Group]:
        labelled = []
        for group in groups:
            p = sigma(worth[group.responses[0].ids] - worth[group.responses[1].ids])
            labelled.append(replace(group, preference=Preference(shares=(p, 1 - p))))
        return labelled

    source = Online(
        [ASK],
        NativeSampler(),
        Scripted(judge),
        64,
        2,
        SampleSettings(max_tokens=1, max_concurrent=128),
        seed=shifted(0),
    )
    return Toy(online_dpo(source, beta=0.7), models, to_law(BANDIT, best), steps=200)


ONLINE_DPO: Toys = {
    "pi*": lambda: tilt(lambda source: online_dpo(source, beta=0.7), source=lambda g: PairsGiven([drawn(g)])),
    "pi*, its own pairs": fresh_pairs,
}


def drawn(groups: Sequence[Group]) -> list[Group]:
    return [replace(g, responses=tuple(replace(r, logps=(0.0,)) for r in g.responses)) for g in groups]


def best_of_two() -> Toy:
    """All pairs of three equally likely answers, the best of each learnt by heart: F^2 - F_-^2."""
    three = BANDIT[:3]  # of worth 0.3, -0.4 and 0.9
    best = torch.zeros(6, dtype=torch.float64)
    best[:3] = doubles([3, 1, 5]) / 9
    algorithm = rft(dealt(three, 2, prompts_per_step=9, every=1000), pool="last")
    return Toy(algorithm, tilted(BANDIT), to_law(BANDIT, best), steps=250)


RFT: Toys = {"best of two": best_of_two}


def above_threshold() -> Toy:
    """Uniform answers, two rising thresholds: the law within R > the last. Batches are whole passes of each part."""
    kept = doubles([1.0, 0, 1, 0, 0, 1]) / 3  # scaled: .65 .24 1 .47 0 .76
    algorithm = rest(dealt(BANDIT, 1, prompts_per_step=12, every=300), thresholds=[0.3, 0.6], lr_decay=0.9)
    return Toy(algorithm, tilted(BANDIT), to_law(BANDIT, kept), steps=300, lr=1e-1)


def whole(every: int) -> Rounds:
    """Rounds of one prompt with each answer once: samples of the uniform law, exactly."""
    return Rounds([ASK], Whole(BANDIT), by_table(BANDIT), 1, 1, every, len(BANDIT))


def with_data(thresholds: list[float], above: Sequence[int]) -> Toy:
    """6 uniform answers and 12 of the data: a third from the policy, what is above the threshold from both."""
    data = [1, 2, 0, 3, 1, 5]
    mixed = doubles([(1 / 6) / 3 + 2 / 3 * n / 12 if i in above else 0.0 for i, n in enumerate(data)])
    algorithm = rest(
        dealt(BANDIT, 1, prompts_per_step=1, every=300), Offline(demos(BANDIT, data), 1), thresholds=thresholds
    )
    return Toy(algorithm, tilted(BANDIT), to_law(BANDIT, mixed / mixed.sum()), steps=300, lr=1e-1)


SCALED = (R[:6] - R[:6].min()) / (R[:6].max() - R[:6].min())


def better_half() -> Toy:
    """Uniform answers: the three best, tilted by their advantage (their own mean is a constant, the others' too)."""
    law = torch.where(SCALED > 0.5, SCALED / 0.25, -torch.inf).softmax(0)
    algorithm = rest(whole(300), thresholds=[0.0], loss="vmpo", eta=0.25)
    return Toy(algorithm, tilted(BANDIT), to_law(BANDIT, law), steps=300, lr=1e-1)


def gold(floor: float) -> Toy:
    """Uniform answers weighted by their score a. Where the floor is above every share: a / sum a.

    Lower, the best answer alone is above it, and the gradient pi_k sum_i a_i w_i - a_k w_k (w = max(pi, floor)) is 0
    where the others have floor * a_k / a_best and the best has the rest.
    """
    law, best = SCALED / SCALED.sum(), int(SCALED.argmax())
    if floor < float(law[best]):
        law = floor * SCALED / SCALED[best]
        law[best] = 1 - (law.sum() - law[best])
    algorithm = rest(whole(300), thresholds=[0.0], loss="gold", floor=floor)
    return Toy(algorithm, tilted(BANDIT), to_law(BANDIT, law), steps=300, lr=1e-1)


REST: Toys = {
    "the law above the last threshold": above_threshold,
    "the data beside the samples, above the threshold": lambda: with_data([0.2, 0.4], [0, 2, 3, 5]),
    "the data beside the samples, nothing left out": lambda: with_data([0.0], range(6)),
    "V-MPO: the tilt within the better half": better_half,
    "GOLD with a high floor: in the proportions of the scores": lambda: gold(0.9),
    "GOLD with a low floor: near the best": lambda: gold(0.1),
}
RSO: Toys = {"tilt by beta, not rejection_beta": lambda: tilt(lambda source: rso(source, rejection_beta=0.2, beta=0.7))}


def coin(q: float) -> Toy:
    """Two tokens: the contrast is unlikelihood, so a label of q pulls to (q, 1 - q), whatever the gate's opening."""
    groups = [pair(COIN[1], COIN[0], q)]
    algorithm = cringe(one_round(groups), alpha=0.8, negatives=3, gate_margin=0.3, gate_temperature=2.0)
    return Toy(algorithm, Models(policy=policy(COIN)), to_law(COIN, doubles([1 - q, q])), steps=200)


CRINGE: Toys = {"likely at the label's rate": lambda: coin(0.8), "the other way": lambda: coin(0.35)}

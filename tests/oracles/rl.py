"""The policy-gradient methods in the table: groups of scored answers, losses at the start, where they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.chance import shifted
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.methods import a2c, dapo, dr_grpo, grpo, reinforce, reinforce_pp, rloo
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt, Response
from training import tiny

from .starts import Known, by_group
from .worlds import ASK, BANDIT, Toy, Toys, doubles, law, root, scalar, tilted, to_law
from .worlds import REWARD as R

KL, N = 0.7, 64
LONGEST = 16  # tokens that an answer may have


def answered(n: int, seed: int = 0) -> list[Group]:
    """Two to four scored answers a prompt, some of them cut."""
    stream = torch.Generator().manual_seed(seed)
    groups = []
    for i in range(n):
        k = 2 + i % 3
        ids = [(2 + j, *tiny.ids(tiny.length(0, 6, stream), stream)) for j in range(k)]
        cut = [(i + j) % 4 == 3 for j in range(k)]
        made = [
            Response(ids=y if c else (*y, tiny.EOS), finish="length" if c else "stop")
            for y, c in zip(ids, cut, strict=True)
        ]
        scores = tuple(torch.randn(k, generator=stream, dtype=torch.float64).tolist())
        prompt = Prompt(id=str(i), ids=tiny.ids(tiny.length(1, 7, stream), stream))
        groups.append(Group(prompt, tuple(made), scores=scores))
    return groups


def rule(group: Group) -> list[float]:
    """The scores, one less for an answer that was cut."""
    both = zip(group.scores or (), group.responses, strict=True)
    return [s - (r.finish == "length") for s, r in both]


# ------------------------------------------------------------------------------------- no KL yet, every ratio 1


def critic(coefficient: float) -> Callable[[Batch, Tensor], Known]:
    """-A log pi + c A^2 a token, A the score minus the value model's word before the token."""

    def start(batch: Batch, logp_R: Tensor) -> Known:
        sizes = batch.forest.count_B.tolist()
        scores = doubles([s for g in batch.groups for s in rule(g)])
        advantage = torch.repeat_interleave(scores, torch.tensor(sizes)) - batch["old_value_R"]
        loss = float((coefficient * advantage**2 - advantage * logp_R).mean())
        return loss, -advantage / len(advantage)

    return start


def rloo_start(batch: Batch, logp_B: Tensor) -> Known:
    loss, slopes = 0.0, []
    for group, x, _ in by_group(batch, logp_B):
        scores = rule(group)
        for i, score in enumerate(scores):
            others = scores[:i] + scores[i + 1 :]
            slopes.append(sum(others) / len(others) - score)
            loss += slopes[-1] * x[i]
    return loss / len(slopes), doubles(slopes) / len(slopes)


def reinforce_pp_start(batch: Batch, logp_R: Tensor) -> Known:
    """Scores on every token, mean 0 and variance 1 over tokens: the loss is their mean."""
    sizes = batch.forest.count_B.tolist()
    flat = [s for n, s in zip(sizes, (s for g in batch.groups for s in rule(g)), strict=True) for _ in range(n)]
    mean = sum(flat) / len(flat)
    variance = sum((s - mean) ** 2 for s in flat) / len(flat)
    return 0.0, doubles([(mean - s) / (variance + 1e-8) ** 0.5 for s in flat]) / len(flat)


def grpo_start(batch: Batch, logp_R: Tensor) -> Known:
    """Averaged over tokens and then over answers, advantages add up to 0; k3 is 0 and flat."""
    slopes, sizes = [], iter(batch.forest.count_B.tolist())
    for group in batch.groups:
        scores = list(group.scores or ())
        mean = sum(scores) / len(scores)
        deviation = (sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) ** 0.5
        for score in scores:
            size = next(sizes)
            slopes += [(mean - score) / (deviation + 1e-4) / size] * size
    return 0.0, doubles(slopes) / batch.forest.B


def dapo_start(batch: Batch, logp_R: Tensor) -> Known:
    """Averaged over all tokens of the batch: a longer answer has more of the loss."""
    slopes, sizes = [], iter(batch.forest.count_B.tolist())
    for group in batch.groups:
        scores = list(group.scores or ())
        mean = sum(scores) / len(scores)
        deviation = (sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) ** 0.5
        slopes += [(mean - score) / (deviation + 1e-4) for score in scores for _ in range(next(sizes))]
    return sum(slopes) / len(slopes), doubles(slopes) / len(slopes)


def dr_grpo_start(batch: Batch, logp_R: Tensor) -> Known:
    """Neither the deviation nor the length divides: only the number of answers and the longest one."""
    slopes, sizes = [], iter(batch.forest.count_B.tolist())
    for group in batch.groups:
        scores = list(group.scores or ())
        mean = sum(scores) / len(scores)
        slopes += [mean - score for score in scores for _ in range(next(sizes))]
    divisor = batch.forest.B * LONGEST
    return sum(slopes) / divisor, doubles(slopes) / divisor


# ------------------------------------------------------------------------------------------- a bandit of six answers


def online(n: int = N) -> Online:
    """One prompt, so many answers a step, each worth what it is worth."""
    reward = dict(zip(BANDIT, R.tolist(), strict=False))
    score = FunctionScorer(lambda prompt, response: reward[tuple(response.ids)])
    return Online(
        [ASK],
        NativeSampler(),
        score,
        1,
        samples_per_prompt=n,
        settings=SampleSettings(max_tokens=1, max_concurrent=n),
        seed=shifted(0),
    )


def ends(build: Callable[[Any], Any], best: Callable[[Tensor], Tensor], n: int = N, **toy: Any) -> Toy:
    """`best` makes the optimum of the reference's log-probabilities."""
    models = tilted(BANDIT).replace(value=scalar(3))
    return Toy(build(online(n)), models, to_law(BANDIT, best(law(models["ref"], BANDIT))), **toy)


def tilt(kl: float) -> Callable[[Tensor], Tensor]:
    return lambda ref: (ref + R[:6] / kl).softmax(0)


def forward_pull(kl: float, n: int) -> Callable[[Tensor], Tensor]:
    """argmax E[r] - kl KL(ref || pi): kl ref / (nu - r). A group's mean takes 1/n of the reward's gradient."""
    share = kl * n / (n - 1)

    def best(ref: Tensor) -> Tensor:
        p, top = ref.exp(), float(R[:6].max())
        nu = root(lambda nu: 1 - float((share * p / (nu - R[:6])).sum()), top + 1e-9, top + 50)
        found = share * p / (nu - R[:6])
        return found / found.sum()

    return best


def winner(ref: Tensor) -> Tensor:
    """All on the best answer."""
    return torch.where(R[:6] == R[:6].max(), 1.0, 0.0).double()


RATES = {"policy": 2e-2, "value": 5e-2}
A2C: Toys = {
    "pi*": lambda: ends(lambda s: a2c(s, beta=KL, value_coef=0.5, missing_eos="none"), tilt(KL), lr=RATES),
}
REINFORCE: Toys = {
    "pi*, mixed": lambda: ends(
        lambda s: reinforce(s, beta=0.4, mix_kl=True, missing_eos="none"), tilt(2 / 3), lr=RATES
    ),
}
RLOO: Toys = {"pi*": lambda: ends(lambda s: rloo(s, beta=KL, missing_eos="none"), tilt(KL), lr=2e-2)}
REINFORCE_PP: Toys = {
    # its divisor vanishes at pi*, which leaves noise of size 1 there: the steps must become short
    "pi*": lambda: ends(lambda s: reinforce_pp(s, beta=KL, missing_eos="none"), tilt(KL), 128, within=1e-2, lr=2e-2),
    "kl = 0": lambda: ends(lambda s: reinforce_pp(s, beta=0.0, missing_eos="none"), winner, within=1e-2, lr=5e-2),
}
GRPO: Toys = {
    # unlike pi* this law leaves each answer a gradient of its own, so what is reached has noise (lab book: 0.002)
    "k3 in the loss": lambda: ends(
        lambda s: grpo(s, beta=KL, scale="none"), forward_pull(KL, 4 * N), 4 * N, within=1e-2, lr=2e-2
    ),
    "k1 in the reward": lambda: ends(lambda s: grpo(s, beta=KL, kl_form="reward_k1", scale="none"), tilt(KL), lr=2e-2),
}
DAPO: Toys = {
    "all on the best": lambda: ends(lambda s: dapo(s, dynamic_sampling=0), winner, within=1e-2, lr=5e-2),
}
DR_GRPO: Toys = {"all on the best": lambda: ends(dr_grpo, winner, within=1e-2, lr=5e-2)}

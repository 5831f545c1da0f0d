"""Where each method of the table ends in worlds of a few tokens, and why. Every value is derived, none is measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from tests.chance import shifted
from torch import Tensor

from models import encoders
from tiltyard.data.pairwise_prompt import PAIRS
from tiltyard.methods import (
    mlm,
    ppo,
    pretrain,
    ranker,
    reward_model,
    sft,
    spin,
)
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.source import Online
from tiltyard.types import Group, Preference, Response, shares_of
from training import tiny

from .worlds import (
    ASK,
    BANDIT,
    Answer,
    Dealt,
    Toy,
    Toys,
    beats,
    demos,
    doubles,
    forest,
    give_law,
    given,
    law,
    pairs,
    policy,
    scalar,
    shares,
    tilted,
    to_law,
    to_scores,
)
from .worlds import REWARD as R

# ------------------------------------------------------------------------------- likelihood: the law of the data itself


def likelihood(method: Callable[..., Algorithm]) -> Toy:
    counts = (8, 4, 3, 1)
    support: list[Answer] = [(2, 1), (3, 1), (4, 4, 1), (1,)]
    return Toy(
        method(given(demos(support, counts))), Models(policy=policy(BANDIT)), to_law(support, shares(counts)), steps=200
    )


def cloze() -> Toy:
    """Texts of one word behind a special token, which is never masked: the law of the word given what stands before."""
    model = encoders.masked("bert")
    chat, words = model.chat, model.words[:3].tolist()
    before = [i for i in chat.tokenizer.all_special_ids if i not in (model.mask_id, chat.eos_id)][:2]
    counts = {before[0]: (5, 2, 1), before[1]: (1, 2, 1)}
    start = encoders.documents(1)[0].prompt
    texts = [
        Group(start, (Response(ids=(first, word, chat.eos_id)),))
        for first, times in counts.items()
        for word, n in zip(words, times, strict=True)
        for _ in range(n)
    ]

    @torch.no_grad()
    def gap(models: Models) -> float:
        rows = torch.tensor([[*start.ids, first, model.mask_id, chat.eos_id] for first in counts])
        laws = model.run(rows, torch.ones_like(rows))[:, len(start.ids) + 1].softmax(-1)
        truth = torch.zeros_like(laws)
        truth[:, words] = torch.stack([shares(times) for times in counts.values()])
        return 0.5 * float((laws - truth).abs().sum(-1).max())

    return Toy(mlm(given(texts), to_mask=1.0, to_random=0.0), Models(encoder=model), gap, steps=150, lr=1e-2)


PRETRAIN: Toys = {"law of the documents": lambda: likelihood(pretrain)}
SFT: Toys = {"law of the demonstrations": lambda: likelihood(sft)}
MLM: Toys = {"law of a word given its text": cloze}


# ------------------------------------------------------------------------- reward: the true scores, up to a constant


def all_scores(models: Models) -> Tensor:
    return models["reward"].score_B(forest(BANDIT))


def bradley_terry() -> Toy:
    algorithm = reward_model(given(pairs(BANDIT, beats(R[:6]))))
    return Toy(algorithm, Models(reward=scalar()), to_scores(all_scores, R[:6]))


def plackett_luce(form: str) -> Toy:
    """All rankings of three answers of worth 1, 2 and 3, each as often as Plackett and Luce have it, in sixtieths."""
    groups = []
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            third = 3 - first - second
            times = 60 * (first + 1) * (second + 1) / (6 * (6 - first - 1))
            assert times == round(times)
            ranks = tuple(1 + (first, second, third).index(i) for i in range(3))
            groups += [
                Group(ASK, tuple(Response(ids=(i,)) for i in range(3)), preference=Preference(ranks=ranks))
            ] * round(times)
    truth = doubles([1.0, 2, 3]).log()
    algorithm = reward_model(given(groups), form=form)
    return Toy(algorithm, Models(reward=scalar()), to_scores(lambda models: all_scores(models)[[1, 0, 2]], truth))


def verdicts() -> Toy:
    """A ranker reads two answers in both orders; d of them is the difference of their rewards."""
    groups = pairs([(t,) for t in (0, 2, 3, 4)], beats(R[:4]))
    read = []
    for group in groups:
        one, other = (r.ids for r in group.responses)
        texts = ((*one, 5, *other, tiny.EOS), (*other, 5, *one, tiny.EOS))
        read.append(replace(group, responses=tuple(Response(ids=y, meta={PAIRS: 1}) for y in texts)))
    truth = doubles([math.log(s[0] / s[1]) for g in groups if (s := shares_of(g.preference))])

    @torch.no_grad()
    def gap(models: Models) -> float:
        orders = forest([r.ids for g in read for r in g.responses])
        one, other = models["reward"].score_B(orders).view(-1, 2).unbind(1)
        return float((one - other - truth).abs().max())

    return Toy(ranker(given(read)), Models(reward=scalar()), gap, steps=250, lr=1e-2)


REWARD: Toys = {
    "Bradley-Terry": bradley_terry,
    "Plackett-Luce, over pairs": lambda: plackett_luce("pairs"),
    "Plackett-Luce, over the order": lambda: plackett_luce("listwise"),
}
RANKER: Toys = {"Bradley-Terry": verdicts}


def played(lam: float) -> Toy:
    """SPIN, one iteration from the uniform law: pi_0 (p_data/pi_0)^(1/lam), which for lam = 1 is p_data."""
    models, counts = tilted(BANDIT), (4, 3, 2, 1, 1, 1)
    for model in (models["policy"], models["ref"]):
        give_law(model, shares((1,) * 6))
    source = Dealt(BANDIT, 6).source(demos(BANDIT, counts), every=150)
    return Toy(spin(source, beta=lam), models, to_law(BANDIT, (shares(counts).log() / lam).softmax(0)))


SPIN: Toys = {"lam = 1": lambda: played(1.0), "lam = 2": lambda: played(2.0)}


def online_tilt() -> Toy:
    """PPO: pi0 exp(r/kl)/Z. There every answer has the same regularised score, so sampling makes no noise either."""
    models, reward = tilted(BANDIT), dict(zip(BANDIT, R.tolist(), strict=False))
    models.value = scalar(3)
    best = (law(models["ref"], BANDIT) + R[:6] / 0.7).softmax(0)
    score = FunctionScorer(lambda prompt, response: reward[tuple(response.ids)])
    one = SampleSettings(max_tokens=1, max_concurrent=64)
    source = Online([ASK], NativeSampler(), score, 1, samples_per_prompt=64, settings=one, seed=shifted(0))
    algorithm = ppo(
        source,
        beta=0.7,
        missing_eos="none",
        vf_coef=1.0,
        value_clip=1e9,
        lam=1.0,
        ppo_epochs=1,
        whiten_advantages=False,
    )
    return Toy(algorithm, models, to_law(BANDIT, best), lr={"policy": 2e-2, "value": 5e-2})


PPO: Toys = {"pi*": online_tilt}

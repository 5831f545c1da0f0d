"""The table of oracles: one row a method, with what is known about it otherwise. `test_table.py` holds all rows to it.

A row says how the method is built and what it eats, its loss and gradient at the start by a formula written down
with plain numbers (`oracles.starts`), and worlds in which the end is known (`oracles.direct`, `oracles.optima`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from models import encoders
from oracles import direct, matching, optima, rl, rounds, starts, worlds
from oracles.starts import BETA, LAM, LN2, Known, even
from tiltyard.batch.batch import Batch
from tiltyard.methods import (
    a2c,
    click,
    cpo,
    cringe,
    dapo,
    dpg,
    dpo,
    dr_grpo,
    f_dpg,
    gdc,
    grpo,
    ipo,
    iterative_dpo,
    kl_dpg,
    kto,
    mlm,
    online_dpo,
    orpo,
    ppo,
    pretrain,
    ranker,
    reinforce,
    reinforce_pp,
    rest,
    reward_model,
    rft,
    rloo,
    rrhf,
    rso,
    self_rewarding,
    sft,
    simpo,
    slic,
    spin,
    vbon,
)
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Models, Source
from tiltyard.training.self_play import SelfPlay
from tiltyard.training.source import Online
from tiltyard.types import Group, Prompt, ranks_of
from training import tiny


@dataclass(frozen=True)
class Row:
    """What is known about a method.

    Args:
        build: the method over a source, with the row's settings.
        groups: (how many, seed) -> groups of different lengths as the method reads them.
        start: (batch, x) -> the loss at pi = pi_ref and its derivative by x, x being the column `of`. Scores are equal
            at the start of a reward model.
        optima: worlds whose optimum or fixed point is known.
        models: (seed of the trained models) -> Models; the reference's seed is 0, so seed 0 starts at it.
        of: what the loss is a function of: `logp_R`, `logp_B` (its sum), `model_score_B` or `cloze_logp_R`.
        source: hands the method given groups. live: a source that draws while the run goes on, where there is one.
        pairs: whether each group is two answers and a label. ordered: whether the order of a group's responses says
            something.
        whole: whether a prepare step reads other groups of the step than the one that it writes for.
        weight: by how much a batch counts when its mean loss is averaged with another's.
    """

    build: Callable[[Any], Algorithm]
    groups: Callable[[int, int], list[Group]]
    start: Callable[[Batch, Tensor], Known]
    optima: Mapping[str, Callable[[], worlds.Toy]]
    models: Callable[[int], Models] = lambda seed: Models(policy=tiny.policy(seed))
    of: str = "logp_B"
    source: Callable[[Sequence[Sequence[Group]]], Source] = tiny.Given
    live: Callable[[], Source] | None = None
    pairs: bool = False
    ordered: bool = False
    whole: bool = False
    weight: Callable[[Batch], float] = lambda batch: float(batch.forest.G)


def with_ref(seed: int) -> Models:
    return Models(policy=tiny.policy(seed), ref=tiny.frozen(0))


def scored(seed: int) -> Models:
    """A reward model; the one of seed 0 scores everything 0."""
    model = tiny.scalar(seed)
    if seed == 0:
        torch.nn.init.zeros_(model.head.weight)
    return Models(reward=model)


# ------------------------------------------------------------------------------------------------------------- the rows


def actors(seed: int) -> Models:
    return Models(policy=tiny.policy(seed), ref=tiny.frozen(0), value=tiny.scalar(7))


def online() -> Online:
    """Answers drawn and scored while the run goes on."""
    stream = torch.Generator().manual_seed(0)
    prompts = [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, stream)) for i in range(7)]
    rule = FunctionScorer(lambda prompt, response: float(sum(response.ids) % 5))
    return Online(prompts, NativeSampler(), rule, 5, 2, SampleSettings(max_tokens=6), seed=2)


def self_play() -> SelfPlay:
    return SelfPlay(tiny.demonstrations(9), NativeSampler(), 4, 2, SampleSettings(max_tokens=5), seed=3)


def targets() -> tiny.Given:
    return tiny.Given([worlds.dialogues(3, s) for s in range(7)])


ROWS: dict[str, Row] = {
    "pretrain": Row(
        pretrain, worlds.dialogues, starts.tokens, optima.PRETRAIN, of="logp_R", weight=lambda b: float(b.forest.R)
    ),
    "sft": Row(sft, worlds.dialogues, starts.tokens, optima.SFT, of="logp_R", weight=lambda b: float(b.forest.R)),
    "mlm": Row(
        lambda source: mlm(source, mask=0.4),
        encoders.documents,
        starts.mlm,
        optima.MLM,
        lambda seed: Models(encoder=encoders.masked("bert")),
        of="cloze_logp_R",
        weight=lambda b: float(b["masked_R"].sum()),
    ),
    "reward": Row(
        reward_model,
        worlds.rankings,
        starts.reward,
        optima.REWARD,
        scored,
        of="model_score_B",
        weight=lambda b: float(sum(len(set(ranks_of(g.preference) or ())) > 1 for g in b.groups)),
    ),
    "ranker": Row(
        ranker,
        worlds.rivals,
        starts.ranker,
        optima.RANKER,
        scored,
        of="model_score_B",
        ordered=True,
        weight=lambda b: sum(1 / g.responses[0].meta["pairs_of_row"] for g in b.groups),
    ),
    "dpo": Row(
        lambda source: dpo(source, beta=BETA),
        worlds.mixed_pairs,
        even(LN2, -BETA / 2),
        direct.DPO,
        with_ref,
        pairs=True,
    ),
    "ipo": Row(
        lambda source: ipo(source, beta=0.1, length_norm=False),
        worlds.mixed_pairs,
        even(25.0, -10.0),  # 1/(4 tau^2) and -1/tau
        direct.IPO,
        with_ref,
        pairs=True,
    ),
    "slic": Row(
        lambda source: slic(source, targets(), delta=4.0, lam=LAM),
        worlds.mixed_pairs,
        starts.slic,
        direct.SLIC,
        pairs=True,
    ),
    "rrhf": Row(lambda source: rrhf(source, rank_weight=LAM), worlds.rankings, starts.rrhf, direct.RRHF),
    "click": Row(lambda source: click(source, weight=LAM), worlds.labelled, starts.click, direct.CLICK, with_ref),
    "kto": Row(
        lambda source: kto(source, beta=BETA, desirable=1.5, undesirable=0.8),
        worlds.labelled,
        starts.kto,
        direct.KTO,
        with_ref,
        ordered=True,  # the first response is the one that is put to another prompt
        whole=True,
        weight=lambda b: float(b.forest.B),
    ),
    "orpo": Row(lambda source: orpo(source, lam=LAM), worlds.mixed_pairs, starts.orpo, direct.ORPO, pairs=True),
    "simpo": Row(simpo, worlds.mixed_pairs, starts.simpo, direct.SIMPO, pairs=True),
    "cpo": Row(lambda source: cpo(source, beta=BETA), worlds.mixed_pairs, starts.cpo, direct.CPO, pairs=True),
    "spin": Row(
        lambda source: spin(source, beta=BETA),
        worlds.mixed_pairs,
        even(LN2, -BETA / 2),
        optima.SPIN,
        with_ref,
        source=worlds.Played,
        live=self_play,
        pairs=True,
    ),
    "ppo": Row(
        lambda source: ppo(source, ppo_epochs=1, whiten_advantages=False),
        tiny.rollouts,
        starts.ppo,
        optima.PPO,
        actors,
        of="logp_R",
        live=online,
        weight=lambda b: float(b.forest.R),
    ),
    "a2c": Row(
        lambda source: a2c(source, value_coef=LAM),
        tiny.rollouts,
        rl.critic(LAM),
        rl.A2C,
        actors,
        of="logp_R",
        live=online,
        weight=lambda b: float(b.forest.R),
    ),
    "reinforce": Row(
        lambda source: reinforce(source, value_coef=LAM),
        tiny.rollouts,
        rl.critic(LAM),
        rl.REINFORCE,
        actors,
        of="logp_R",
        live=online,
        weight=lambda b: float(b.forest.R),
    ),
    "rloo": Row(
        rloo,
        rl.answered,
        rl.rloo_start,
        rl.RLOO,
        with_ref,
        live=online,
        weight=lambda b: float(b.forest.B),
    ),
    "reinforce_pp": Row(
        reinforce_pp,
        rl.answered,
        rl.reinforce_pp_start,
        rl.REINFORCE_PP,
        with_ref,
        of="logp_R",
        live=online,
        whole=True,
        weight=lambda b: float(b.forest.R),
    ),
    "grpo": Row(
        lambda source: grpo(source, beta=BETA),
        rl.answered,
        rl.grpo_start,
        rl.GRPO,
        with_ref,
        of="logp_R",
        live=online,
        weight=lambda b: float(b.forest.B),
    ),
    "dapo": Row(
        lambda source: dapo(source, dynamic_sampling=0, clip_low=0.9, clip_high=9.0),  # no ratio near a kink
        rl.answered,
        rl.dapo_start,
        rl.DAPO,
        with_ref,
        of="logp_R",
        live=online,
        weight=lambda b: float(b.forest.R),
    ),
    "dr_grpo": Row(
        dr_grpo,
        rl.answered,
        rl.dr_grpo_start,
        rl.DR_GRPO,
        with_ref,
        of="logp_R",
        source=lambda groups: tiny.Given(groups, SampleSettings(max_tokens=rl.LONGEST)),
        live=online,
        weight=lambda b: float(b.forest.B),
    ),
    "iterative_dpo": Row(
        lambda source: iterative_dpo(source, beta=BETA),
        worlds.mixed_pairs,
        even(LN2, -BETA / 2),
        rounds.ITERATIVE,
        with_ref,
        source=rounds.RoundsGiven,
        live=rounds.live_rounds,
        pairs=True,
    ),
    "self_rewarding": Row(
        lambda source: self_rewarding(source, beta=BETA),
        worlds.mixed_pairs,
        even(LN2, -BETA / 2),
        rounds.SELF_REWARDING,
        with_ref,
        source=rounds.RoundsGiven,
        live=rounds.live_rounds,
        pairs=True,
    ),
    "online_dpo": Row(
        lambda source: online_dpo(source, beta=BETA),
        rounds.sampled_pairs,
        even(LN2, -BETA / 2),
        rounds.ONLINE_DPO,
        with_ref,
        source=rounds.PairsGiven,
        live=rounds.live_pairs,
        pairs=True,
    ),
    "rft": Row(
        rft,
        worlds.dialogues,
        starts.tokens,
        rounds.RFT,
        with_ref,
        of="logp_R",
        source=rounds.RoundsGiven,
        live=rounds.live_rounds,
        weight=lambda b: float(b.forest.R),
    ),
    "rest": Row(
        lambda source: rest(source, thresholds=[0.2, 0.5]),
        worlds.dialogues,
        starts.tokens,
        rounds.REST,
        of="logp_R",
        source=rounds.RoundsGiven,
        live=rounds.live_rounds,
        weight=lambda b: float(b.forest.R),
    ),
    "rso": Row(
        lambda source: rso(source, beta=rounds.GAMMA, loss="hinge_norm", accepted=4),
        worlds.mixed_pairs,
        rounds.hinge_start,
        rounds.RSO,
        with_ref,
        source=rounds.RoundsGiven,
        live=rounds.live_rounds,
        pairs=True,
    ),
    "cringe": Row(
        lambda source: cringe(
            source,
            alpha=rounds.ALPHA,
            negatives=3,
            gate_margin=rounds.MARGIN,
            gate_temperature=rounds.TEMPERATURE,
            detach_gate=False,  # or finite differences would see the gate and the gradient not
        ),
        worlds.mixed_pairs,
        rounds.cringe_start,
        rounds.CRINGE,
        of="logp_R",
        source=rounds.RoundsGiven,
        live=rounds.live_rounds,
        pairs=True,
        ordered=True,  # a token's negative is drawn by its place among the group's tokens
    ),
    "dpg": Row(
        lambda source: dpg(source, beta=matching.BETA),
        rl.answered,
        matching.dpg_start,
        matching.DPG,
        with_ref,
        live=online,
        weight=lambda b: float(b.forest.B),
    ),
    "kl_dpg": Row(
        lambda source: kl_dpg(source, beta=matching.BETA, adapt_every=1),
        rl.answered,
        matching.kl_dpg_start,
        matching.KL_DPG,
        lambda seed: Models(policy=tiny.policy(seed), ref=tiny.frozen(0), proposal=tiny.frozen(seed or 3)),
        source=matching.Proposed,
        live=lambda: replace(online(), samples_per_prompt=6),
        weight=lambda b: float(b.forest.B),
    ),
    "gdc": Row(
        lambda source: gdc(source, moments={"reward": 2.2}, moment_prompts=5, moment_samples=12),
        rl.answered,
        matching.gdc_start,
        matching.GDC,
        with_ref,
        source=matching.Scored,
        live=online,
        weight=lambda b: float(b.forest.B),
    ),
    "f_dpg": Row(
        lambda source: f_dpg(source, beta=matching.BETA),
        rl.answered,
        matching.f_dpg_start,
        matching.F_DPG,
        with_ref,
        live=online,
        weight=lambda b: float(b.forest.B),
    ),
    "vbon": Row(
        lambda source: vbon(source, n=matching.N_BEST, ref_samples=len(matching.LADDER)),
        matching.ranked,
        matching.vbon_start,
        matching.VBON,
        with_ref,
        source=matching.Ladder,
        live=online,
        weight=lambda b: float(b.forest.B),
    ),
}

"""What a step that samples shows of its policy: entropy, sampler gap, KL exact and estimated; no pass of its own."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.chance import near, shifted
from torch import Tensor

from tiltyard.batch.batch import Batch
from tiltyard.batch.compare import compare_with_ref
from tiltyard.batch.forest import pack
from tiltyard.errors import CompositionError
from tiltyard.losses.kl import k1, sum_per_response
from tiltyard.methods import cringe, grpo, online_dpo, ppo, reinforce_pp, rest, rft, rloo
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import NativeSampler, SampleSettings, sample
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.log import LiveLine
from tiltyard.training.prepare import OldLogp
from tiltyard.training.source import Online
from tiltyard.types import Group

from . import round_runs as runs
from . import tiny
from .test_rl_oracles import ASK, SHAPE, SUPPORT, law, response

ESTIMATED = {"kl", "kl_k3", "sampler_gap"}
EXACT = 1e-10


def apart() -> Models:
    return Models(policy=tiny.policy(1), ref=tiny.frozen(2), value=tiny.scalar(3))


def batch_of(groups: list[Group]) -> Batch:
    return Batch.of(groups, range(len(groups)), len(groups), budget=40)


def enumerated(models: Models, groups: list[Group], temperature: float) -> Tensor:
    """Of every answer: the sum over its tokens of sum_v p log(p / q), from the logits of the whole vocabulary."""
    forest = pack(groups)
    laws = []
    for model in (models["policy"], models["ref"]):
        logits = model.logits(model.hidden_T(forest)[forest.predictor_R])
        laws.append((logits / temperature).softmax(-1))
    p, q = laws
    found = [0.0] * forest.B
    for row, answer in enumerate(forest.response_R.tolist()):
        found[answer] += sum(float(p[row, v] * (p[row, v] / q[row, v]).log()) for v in range(tiny.VOCAB))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_the_exact_kl_is_the_sum_over_the_vocabulary(temperature: float) -> None:
    models, groups = apart(), tiny.rollouts(9)
    measured = OldLogp(temperature)(models, batch_of(groups)).metrics["kl_exact"]
    expected_B = enumerated(models, groups, temperature)
    assert float(expected_B.min()) > 0.1
    assert measured == (pytest.approx(float(expected_B.sum()), abs=EXACT), 9)


def three_tokens() -> tuple[Models, Tensor, Tensor, Tensor]:
    """All answers of at most two of three tokens: (models, their chances, their log-ratios, their exact KLs)."""
    models = Models(policy=tiny.policy(1, **SHAPE), ref=tiny.policy(2, **SHAPE))
    logp_B, ref_B = (law(models[name]).detach() for name in ("policy", "ref"))
    forest = pack([Group(ASK, tuple(response(i) for i in range(len(SUPPORT))))])
    kl_R = compare_with_ref(models["policy"], models["ref"], forest).kl_R
    return models, logp_B.exp(), logp_B - ref_B, sum_per_response(kl_R, forest.response_R, forest.B)


def test_both_have_the_kl_as_expectation() -> None:
    """By enumeration: no draws. The exact one varies less."""
    _, chance_B, ratio_B, exact_B = three_tokens()
    kl = float((chance_B * ratio_B).sum())
    assert kl > 0.01
    assert float((chance_B * exact_B).sum()) == pytest.approx(kl, abs=1e-12)
    variances = [float((chance_B * (x - kl) ** 2).sum()) for x in (exact_B, ratio_B)]
    assert variances[0] < variances[1] / 5


@pytest.mark.statistical
def test_their_means_over_answers_agree() -> None:
    """On sampled answers, paired: the means differ by chance alone; the spread of the exact one is the smaller."""
    models = apart()
    prompts = [replace(p, ids=p.ids[:2]) for p in runs.prompts(40)]
    groups = sample(models["policy"], prompts, 50, SampleSettings(max_tokens=12), seed=shifted(5))
    forest = pack(groups)
    both = compare_with_ref(models["policy"], models["ref"], forest)
    ratio_B, exact_B = (
        sum_per_response(x, forest.response_R, forest.B) for x in (k1(both.logp_R, both.ref_logp_R), both.kl_R)
    )
    gap_B = ratio_B - exact_B
    near(float(gap_B.mean()), 0.0, float(gap_B.std() / forest.B**0.5))
    # given the lengths the exact one has almost nothing left to vary; whole answers differ in length
    assert float(exact_B.var()) < 0.7 * float(ratio_B.var())


# --------------------------------------------------------------------------------------------------- no pass of its own


def online(n: int = 2, **law: Any) -> Online:
    settings = SampleSettings(**({"max_tokens": 6} | law))
    return Online(runs.prompts(), NativeSampler(), FunctionScorer(runs.score), 5, n, settings, seed=2)


@pytest.mark.parametrize("build", [online_dpo, rloo, ppo])
def test_forward_passes_of_a_step(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the reference, and those of the updates; sampling has a cache, and its states serve for the rest.

    Answers that come without states (a replay) cost one more of the policy.
    """
    passes: list[Any] = []
    hidden_T = LanguageModel.hidden_T

    def counting(model: LanguageModel, forest: Any, cache: Any = None, masks: Any = None) -> Tensor:
        if cache is None and isinstance(model, LanguageModel):
            passes.append(model)
        return hidden_T(model, forest, cache, masks)

    models = apart()
    monkeypatch.setattr(LanguageModel, "hidden_T", counting)
    algorithm = build(online())
    rows = tiny.train(algorithm, models, steps=2)
    assert passes.count(models["ref"]) == 2
    assert passes.count(models["policy"]) == 2 * algorithm.epochs
    assert all(row.keys() >= ESTIMATED | {"kl_exact", "entropy"} for row in rows)

    again, plain = apart(), online()
    plain.keep_hidden = False
    passes.clear()
    others = tiny.train(build(plain), again, steps=2)
    assert passes.count(again["policy"]) == 2 * (1 + algorithm.epochs)
    tiny.assert_same(others, rows, 1e-9)
    tiny.assert_same(tiny.parameters(again["policy"]), tiny.parameters(models["policy"]), 0)


def test_online_dpo_is_measured_as_it_samples_and_learns_at_one() -> None:
    """Temperature 0.7: the gap is rounding, the KL that of the laws sampled from, the loss that of temperature 1."""
    models = apart()
    draw = online(temperature=0.7)(models, 0)
    batch = Batch.of(draw.groups, draw.index, draw.total)
    for prepare in online_dpo(online(temperature=0.7)).prepare:
        batch = prepare(models, batch)
    shown = {name: total / count for name, (total, count) in batch.metrics.items()}
    assert shown["sampler_gap"] < 1e-12
    with torch.no_grad():
        assert shown["kl_exact"] == pytest.approx(float(enumerated(models, draw.groups, 0.7).mean()), abs=EXACT)
        logp_R, ref_R = (models.get(m).logp_R(batch.forest, temperature=0.7)[0] for m in ("policy", "ref"))
        assert shown["kl"] == pytest.approx(float((logp_R - ref_R).sum()) / 10, abs=EXACT)
        assert batch["ref_logp_R"].equal(models["ref"].logp_R(batch.forest)[0])


# ------------------------------------------------------------------------------------------------ with and without one


@pytest.mark.parametrize("build", [grpo, rloo, reinforce_pp, ppo])
def test_a_reference_that_is_only_shown_changes_nothing(build: Any) -> None:
    """kl = 0: the same answers and parameters, to the bit, with a reference and without; only the KL is gone."""
    found = []
    for models in (apart(), apart().replace(ref=None)):
        algorithm = build(online(), beta=0.0)
        assert not algorithm.reads_ref
        rows = tiny.train(algorithm, models, steps=3)
        found.append((rows, tiny.parameters(models["policy"])))
    (shown, one), (bare, two) = found
    tiny.assert_same(one, two, 0)
    kinds = {"kl", "kl_k3", "kl_exact"}
    assert all(row.keys() >= kinds for row in shown)
    assert not any(kinds & row.keys() for row in bare)
    tiny.assert_same([{k: v for k, v in row.items() if k not in kinds} for row in shown], bare, 0)


def test_a_reference_that_is_read_must_be_there() -> None:
    with pytest.raises(CompositionError, match="model 'ref'"):
        tiny.train(grpo(online(), beta=0.1), apart().replace(ref=None), steps=1)


# ------------------------------------------------------------------------------------------------------------- rounds


def first_steps(algorithm: Any, models: Models | None = None, **settings: Any) -> list[dict[str, float]]:
    """The rows of the rounds' first steps; the others show nothing of the kind."""
    rows = tiny.train(algorithm, models or runs.models(), steps=runs.STEPS, **settings)
    assert not any({*ESTIMATED, "kl_exact", "entropy"} & row.keys() for row in rows if "round" not in row)
    return [row for row in rows if "round" in row]


@pytest.mark.parametrize("name", ["fixed", "previous", "rft", "rft_on", "rest", "rso", "cringe"])
def test_a_round_shows_the_policy_that_answered(name: str) -> None:
    """Before anything begins: against the old reference, and before a restart, which would leave a gap and no KL."""
    rows = first_steps(runs.make(name))
    assert len(rows) == 3
    assert all(row["sampler_gap"] < 1e-12 and row["entropy"] > 0 for row in rows)
    assert rows[0]["kl"] == rows[0]["kl_exact"] == 0
    assert all(row["kl_exact"] > 1e-4 for row in rows[1:])


def test_a_round_s_figures_are_of_its_first_answers() -> None:
    """The first two of each of the first `batch` prompts, at the temperature of sampling."""
    source = runs.rounds(settings=SampleSettings(temperature=0.7, max_tokens=5))
    metrics = source(apart(), 0).metrics
    groups = [Group(g.prompt, g.responses[:2]) for g in source.held[0][: source.prompts_per_step]]
    expected = OldLogp(0.7)(apart(), batch_of(groups)).metrics
    assert metrics["sampler_gap"][0] < 1e-12
    assert expected["kl_exact"][1] == 2 * source.prompts_per_step
    for name in ESTIMATED | {"kl_exact", "entropy"}:
        assert metrics[name] == pytest.approx(expected[name], abs=EXACT)


@pytest.mark.parametrize("cut", [{"top_p": 0.6}, {"top_k": 4}])
@pytest.mark.parametrize("name", ["fixed", "rft", "cringe"])
def test_a_cut_law_shows_no_estimate(cut: dict[str, Any], name: str) -> None:
    """The sampler records log-probs under the cut law: a gap or a log-ratio would be no rounding and no KL."""
    algorithm = runs.make(name, settings=SampleSettings(max_tokens=5, **cut))
    for row in first_steps(algorithm):
        assert not ESTIMATED & row.keys()
        assert row["kl_exact"] >= 0
        assert row["entropy"] > 0


def test_online_dpo_with_a_cut_law_shows_no_estimate() -> None:
    for row in tiny.train(online_dpo(online(top_k=4)), apart(), steps=2):
        assert not ESTIMATED & row.keys()
        assert row["kl_exact"] > 0


def test_greedy_rounds_show_nothing() -> None:
    algorithm = rft(runs.rounds(settings=SampleSettings(temperature=0, max_tokens=5)))
    assert all("kl_exact" not in row for row in first_steps(algorithm))


@pytest.mark.parametrize("build", [rest, cringe])
def test_rounds_without_a_reference(build: Any) -> None:
    rows = first_steps(build(runs.rounds()), Models(policy=tiny.policy()))
    assert all(row["sampler_gap"] < 1e-12 and not {"kl", "kl_exact"} & row.keys() for row in rows)


def test_dropout_is_off_while_it_is_measured() -> None:
    """A round that begins after training steps: with dropout on, the gap would not be rounding."""
    models = Models(policy=tiny.policy(0, attention_dropout=0.5), ref=tiny.frozen())
    rows = first_steps(runs.make("fixed"), models, dropout=0.5)
    assert all(row["sampler_gap"] < 1e-12 for row in rows)


def test_the_live_line_says_the_exact_one_where_it_is_known() -> None:
    out = io.StringIO()
    with LiveLine(Console(file=out, width=100), "x", 2) as line:
        line.log(1, {"loss": 0.5, "kl": 1.0, "kl_exact": 2.0})
        line.log(2, {"kl": 3.0})
    first, second = out.getvalue().splitlines()
    assert first.split("tok/s")[1].split() == ["loss", "0.500", "KL", "2.00"]
    assert second.split("tok/s")[1].split() == ["KL", "3.00"]

"""Particle samplers against enumerated worlds: unbiased evidence, exact twists, and laws that tend to pi*."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.chance import follows, near, shifted
from tests.oracles.worlds import ASK, answers, policy, scalar

from tiltyard.errors import ConfigError, DataError, ScoringError
from tiltyard.posterior import ExactPosterior, Prior, Target, exact_posterior, exp, score
from tiltyard.posterior.infer import (
    Population,
    ScoredBeginnings,
    TokenTwist,
    Twist,
    learn_twist,
    make_sampler,
)
from tiltyard.posterior.infer.report import Report, report_of, tv_bound
from tiltyard.posterior.infer.resampling import ancestors, copies
from tiltyard.sampling import SampleSettings, response_seeds
from tiltyard.sampling.particles import Particles
from tiltyard.scoring import FunctionScorer
from tiltyard.stats.intervals import Estimate

LONGEST = 4
SUPPORT = answers(3, LONGEST)
VOCABULARY, STOP = 3, 1
SAMPLING = SampleSettings(max_tokens=LONGEST, max_concurrent=4096)


def eighths(prompt, response) -> float:
    return (sum((k + 1) * token for k, token in enumerate(response.ids)) % 9) / 8


def few_twos(prompt, response) -> float:
    """Falls with each token 2, so that beginnings show what their responses can reach."""
    return 1 - min(response.ids.count(2), 2) / 2


def world(beta: float = 0.25, reward=eighths) -> tuple[Target, ExactPosterior]:
    target = Prior(policy(SUPPORT, seed=5)) * exp(score(FunctionScorer(reward, time_limit=None)) / beta)
    return target, exact_posterior(target, ASK, SUPPORT)


def population(target: Target, prompts: int, k: int, twist: Twist, seed: int = 0) -> Population:
    seeds = response_seeds(range(prompts), k, shifted(seed))
    generators = [np.random.default_rng((shifted(seed), i)) for i in range(prompts)]
    return Population(target, [ASK] * prompts, k, SAMPLING, seeds, twist, generators)


class Table(Twist):
    """psi by a table of beginnings, and resampling at random times."""

    def __init__(self, log_psi: dict):
        self.log_psi = log_psi

    def values(self, particles: Particles) -> np.ndarray:
        return np.array([self.log_psi[tuple(particles.ids[r])] for r in particles.running])


def beginnings() -> list[tuple[int, ...]]:
    return sorted({y[:k] for y in SUPPORT for k in range(1, len(y) + 1)})


def best_twist(posterior: ExactPosterior) -> dict:
    """log E_prior[exp(g) | beginning], by summation."""
    mass, total = defaultdict(float), defaultdict(float)
    for y, p, g in zip(SUPPORT, posterior.log_prior_Y.tolist(), posterior.log_factor_Y.tolist(), strict=True):
        for k in range(1, len(y) + 1):
            mass[y[:k]] += math.exp(p)
            total[y[:k]] += math.exp(p + g)
    return {start: math.log(total[start] / mass[start]) for start in mass}


def token_twist(log_psi: dict) -> TokenTwist:
    return TokenTwist(
        lambda particles: torch.tensor(
            [[log_psi.get((*particles.ids[r], token), 0.0) for token in range(VOCABULARY)] for r in particles.running],
            dtype=torch.float64,
        )
    )


# ------------------------------------------------------------------------------------------------------ the particles


def test_resampled_particles_go_on_from_their_ancestor() -> None:
    """After any resampling the next logits are those of a pass over the particle's own tokens."""
    target, _ = world()
    model = target.prior.model
    rng = np.random.default_rng(0)
    for trial in range(12):
        k = 5
        particles = Particles(model, [ASK, ASK], k, SAMPLING, response_seeds(range(2), k, trial))
        while particles.running:
            particles.extend(*particles.sample())
            particles.advance()
            if rng.random() < 0.6:
                before = list(particles.ids)
                chosen = [p * k + int(i) for p in range(2) for i in rng.integers(k, size=k)]
                particles.resample(chosen)
                assert particles.ids == [before[a] for a in chosen]
            for s, r in enumerate(particles.running):
                ids = torch.tensor([[*ASK.ids, *particles.ids[r]]])
                with torch.no_grad(), model.plain():
                    expected = model.module(input_ids=ids).logits[0, -1]
                torch.testing.assert_close(particles.next.logits[s].double(), expected, atol=1e-9, rtol=1e-9)
        for r in range(2 * k):
            found = particles.response(r)
            assert (found.finish == "stop") == (found.ids[-1] == STOP)
            assert len(found.ids) <= LONGEST


@pytest.mark.statistical
def test_particles_without_resampling_are_samples() -> None:
    target, posterior = world()
    particles = Particles(target.prior.model, [ASK], 1500, SAMPLING, response_seeds([0], 1500, shifted(3)))
    while particles.running:
        particles.extend(*particles.sample())
        particles.advance()
    prior = dict(zip(SUPPORT, posterior.log_prior_Y.exp().tolist(), strict=True))
    total = sum(prior.values())
    follows(Counter(tuple(ids) for ids in particles.ids), {y: p / total for y, p in prior.items()})
    assert particles.tokens == [sum(map(len, particles.ids))]


@pytest.mark.statistical
@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial"])
def test_resampling_is_unbiased(scheme) -> None:
    """On average each is copied n times its share; systematic never more than one away from it."""
    rng = np.random.default_rng(shifted(1))
    share = rng.dirichlet(np.full(7, 0.4))
    counts = np.array([copies(share, 5, scheme, rng) for _ in range(4000)])
    assert (counts.sum(1) == 5).all()
    for k in range(7):
        near(counts[:, k].mean(), 5 * share[k], counts[:, k].std() / math.sqrt(len(counts)) + 1e-9)
    if scheme == "systematic":
        assert (np.abs(counts - 5 * share) < 1 + 1e-9).all()
    for _ in range(20):
        full = copies(share, 7, scheme, rng)
        chosen = ancestors(full)
        assert np.bincount(chosen, minlength=7).tolist() == full.tolist()
        assert all(chosen[k] == k for k in range(7) if full[k])


# ------------------------------------------------------------------------------------------------------- the evidence


@pytest.mark.statistical
@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial"])
def test_evidence_is_unbiased_for_random_twists_and_random_times(scheme) -> None:
    """E[Z-hat] = Z whatever psi is and whenever particles are resampled; the prior's proposal."""
    target, posterior = world()
    rng = np.random.default_rng(shifted(4))
    table = {start: float(x) for start, x in zip(beginnings(), rng.normal(size=len(beginnings())) * 2, strict=True)}
    found = population(target, 400, 4, Table(table), seed=4)
    while found.particles.running:
        found._step()
        if found.particles.running:
            found._resample(float(rng.random()) * 1.5, scheme)  # above 1: always
    z = np.exp([found.final_log_z(p) for p in range(400)])
    near(z.mean(), math.exp(posterior.log_z), z.std() / math.sqrt(len(z)), "Z")
    assert found.resampled.max() >= 2


@pytest.mark.statistical
def test_evidence_is_unbiased_for_random_twisted_proposals() -> None:
    target, posterior = world()
    rng = np.random.default_rng(shifted(5))
    table = {start: float(x) for start, x in zip(beginnings(), rng.normal(size=len(beginnings())), strict=True)}
    found = population(target, 400, 4, token_twist(table), seed=5)
    found.run(0.9, "systematic")
    z = np.exp([found.final_log_z(p) for p in range(400)])
    near(z.mean(), math.exp(posterior.log_z), z.std() / math.sqrt(len(z)), "Z")


def test_the_best_twists_give_z_with_one_particle() -> None:
    """psi*: every weight after the first is 1, Z is exact, and the one particle is an exact sample."""
    target, posterior = world()
    found = population(target, 300, 1, token_twist(best_twist(posterior)))
    first = True
    while found.particles.running:
        found._step()
        if first:
            assert found.log_w == pytest.approx(np.full((300, 1), posterior.log_z), abs=1e-9)
        first = False
    z = [found.final_log_z(p) for p in range(300)]
    assert z == pytest.approx([posterior.log_z] * 300, abs=1e-9)


@pytest.mark.statistical
def test_the_best_twists_sample_pi_star() -> None:
    target, posterior = world()
    found = population(target, 1500, 1, token_twist(best_twist(posterior)), seed=6)
    found.run()
    follows(
        Counter(tuple(ids) for ids in found.particles.ids),
        dict(zip(SUPPORT, (posterior.probs_Y / posterior.probs_Y.sum()).tolist(), strict=True)),
    )


def test_bellman() -> None:
    """psi*(start) is the prior's mean of psi* over the next token, and psi*(nothing) is Z."""
    target, posterior = world()
    psi = best_twist(posterior)
    particles = Particles(target.prior.model, [ASK], 1, SAMPLING, [0])
    log_p = torch.log_softmax(particles.next.logits[0].double(), -1)
    assert float(torch.logsumexp(log_p + torch.tensor([psi[token,] for token in range(3)]), 0)) == pytest.approx(
        posterior.log_z, abs=1e-6
    )


@pytest.mark.statistical
def test_without_resampling_it_is_importance_sampling() -> None:
    target, posterior = world()
    found = population(target, 300, 8, ScoredBeginnings(target, 0), seed=7)
    found.run(resample_below=0.0)
    weights = np.exp(found.log_w)
    assert (found.resampled == 0).all()
    near(weights.mean(), math.exp(posterior.log_z), weights.std() / math.sqrt(weights.size))
    g = {y: float(x) for y, x in zip(SUPPORT, posterior.log_factor_Y, strict=True)}
    assert found.log_w.ravel() == pytest.approx([g[tuple(ids)] for ids in found.particles.ids])


# ------------------------------------------------------------------------------------------------------- the samplers


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("smc", {"every": 1}),
        ("smc", {"every": 0}),
        ("smc", {"every": 2, "scheme": "multinomial"}),
        ("rejection_in_step", {"bound": 4.0, "particles": 16}),
        ("twisted_smc", {"twist": True}),
    ],
)
def test_responses_tend_to_pi_star(name, settings) -> None:
    """One response of 64 particles is nearly a draw of pi*: closer than the prior by far, and Z is unbiased."""
    target, posterior = world(reward=few_twos if name == "rejection_in_step" else eighths)
    if "twist" in settings:
        settings = {"value": scalar_of(seed=2), "scale": 2.0}
    sampler = make_sampler(name, **{"particles": 64, **settings})
    found = sampler.draw(target, [ASK] * 200, 2, SAMPLING, seed=shifted(8))
    counts = Counter(one.group.responses[0].ids for one in found)
    share = torch.tensor([counts[y] / len(found) for y in SUPPORT], dtype=torch.float64)
    noise = float((posterior.probs_Y * (1 - posterior.probs_Y) / len(found)).sqrt().sum()) / 2
    assert 0.5 * float((share - posterior.probs_Y).abs().sum()) < 2 * noise
    z = np.exp([one.log_z for one in found])
    near(z.mean(), math.exp(posterior.log_z), z.std() / math.sqrt(len(z)), "Z")
    one = found[0]
    assert one.group.scores == pytest.approx([g_of(posterior, r.ids) for r in one.group.responses])
    assert one.tokens >= one.sampled
    assert 1 <= one.unique <= one.sampled
    again = sampler.draw(target, [ASK] * 3, 2, SAMPLING, seed=shifted(8))
    assert [d.group for d in again] == [d.group for d in found[:3]]
    later = sampler.draw(target, [ASK], 2, SAMPLING, seed=shifted(8), first=2)
    assert later[0].group == found[2].group


@pytest.mark.statistical
def test_evidence_of_local_rejection_is_unbiased_where_beginnings_mislead() -> None:
    target, posterior = world(beta=0.5)
    found = make_sampler("rejection_in_step", particles=4, bound=2.0).draw(
        target, [ASK] * 250, 1, SAMPLING, seed=shifted(9)
    )
    z = np.exp([one.log_z for one in found])
    near(z.mean(), math.exp(posterior.log_z), z.std() / math.sqrt(len(z)), "Z")


def g_of(posterior: ExactPosterior, ids) -> float:
    return float(posterior.log_factor_Y[SUPPORT.index(tuple(ids))])


def scalar_of(seed: int):
    from training import tiny

    return tiny.scalar(seed, vocab_size=VOCABULARY, num_hidden_layers=1, initializer_range=0.3)


def test_values_are_those_of_the_beginnings() -> None:
    """The follower's cache gives what the value model gives to the whole beginning."""
    from tiltyard.batch.forest import pack
    from tiltyard.posterior.infer import ValueTwist
    from tiltyard.types import Group, Response

    target, _ = world()
    value = scalar_of(seed=1)
    twist = ValueTwist(value, 1.5)
    found = population(target, 2, 6, twist)
    while found.particles.running:
        found._step()
        if not found.particles.running:
            break
        found._resample(0.9, "multinomial")
        for s, r in enumerate(found.particles.running):
            forest = pack([Group(ASK, (Response(ids=tuple(found.particles.ids[r])),))])
            with torch.no_grad():
                expected = 1.5 * float(value.at(forest, forest.last_B))
            assert twist.values(found.particles)[s] == pytest.approx(expected, abs=1e-9)
            assert found.log_psi.ravel()[r] == pytest.approx(expected, abs=1e-9)


def test_what_particles_refuse() -> None:
    target, _ = world()
    with pytest.raises(ConfigError, match="more responses are asked for than there are particles"):
        make_sampler("smc", particles=2).draw(target, [ASK], 3, SAMPLING)
    with pytest.raises(ConfigError, match="needs a value model"):
        make_sampler("twisted_smc")
    with pytest.raises(ConfigError, match="highest possible reward"):
        make_sampler("rejection_in_step")
    with pytest.raises(DataError, match="above its declared bound"):
        make_sampler("rejection_in_step", bound=0.1).draw(target, [ASK], 1, SAMPLING)
    with pytest.raises(ScoringError, match="hardly any token"):
        make_sampler("rejection_in_step", bound=60.0, trials=20).draw(target, [ASK], 1, SAMPLING)
    other, tokenizer = scalar(0), SimpleNamespace(name_or_path="tiny", pad_token=None)
    target.prior.model.chat = SimpleNamespace(**{**vars(other.chat), "tokenizer": tokenizer})
    other.chat = SimpleNamespace(**{**vars(target.prior.model.chat), "stop_ids": frozenset({2})})
    with pytest.raises(DataError, match="different tokenizers"):
        make_sampler("twisted_smc", value=other).draw(target, [ASK], 1, SAMPLING)


@pytest.mark.statistical
def test_a_learned_twist_makes_the_weights_more_even() -> None:
    """Contrastive twist learning: Z stays unbiased, and its estimates scatter less than without a twist."""
    target, posterior = world(beta=0.25, reward=few_twos)
    twist = learn_twist(target, [ASK], SAMPLING, samples=600, steps=40, seed=shifted(1))
    spread = {}
    for name, sampler in {
        "learned": make_sampler("twisted_smc", particles=4, twist_with=twist.twist()),
        "none": make_sampler("smc", particles=4, every=0),
    }.items():
        z = np.exp([one.log_z for one in sampler.draw(target, [ASK] * 300, 1, SAMPLING, seed=shifted(10))])
        near(z.mean(), math.exp(posterior.log_z), z.std() / math.sqrt(len(z)), "Z")
        spread[name] = z.std() / z.mean()
    assert spread["learned"] < 0.6 * spread["none"], spread


# ---------------------------------------------------------------------------------------------------------- the bounds


@pytest.mark.statistical
@pytest.mark.parametrize("learned", [False, True], ids=["prior", "twisted proposal"])
def test_kept_at_an_exact_sample_the_evidence_is_above(learned: bool) -> None:
    """E[log Z-hat] <= log Z <= E[log Z-hat] around exact samples; and 1 / Z-hat is unbiased for 1 / Z around them."""
    target, posterior = world(beta=0.4)
    twist = (
        token_twist({y: 0.8 * w for y, w in best_twist(posterior).items()})
        if learned
        else Table(dict.fromkeys(beginnings(), 0.0))
    )
    runs, k = 600, 4
    rng = np.random.default_rng(shifted(31))
    picked = rng.choice(len(SUPPORT), size=runs, p=posterior.probs_Y.numpy() / float(posterior.probs_Y.sum()))
    seeds = response_seeds(range(runs), k, shifted(32))
    generators = [np.random.default_rng((shifted(32), i)) for i in range(runs)]
    kept = [SUPPORT[i] for i in picked]
    around = Population(target, [ASK] * runs, k, SAMPLING, seeds, twist, generators, kept)
    around.run(0.9, "multinomial")
    plain = population(target, runs, k, twist, seed=33)
    plain.run(0.9, "multinomial")
    upper = np.array([around.final_log_z(p) for p in range(runs)])
    lower = np.array([plain.final_log_z(p) for p in range(runs)])
    assert lower.mean() < posterior.log_z < upper.mean()
    inverse = np.exp(posterior.log_z - upper)
    near(inverse.mean(), 1.0, inverse.std() / math.sqrt(runs))
    for p in range(runs):
        assert tuple(around.particles.ids[p * k]) == kept[p]


@pytest.mark.statistical
@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_bounds_of_the_distances_hold(beta: float) -> None:
    """The distribution of a particle has no more KL to pi*, and to the prior, than the weights of all allow."""
    target, posterior = world(beta)
    runs, k = 2000, 3
    found = population(target, runs, k, ScoredBeginnings(target, 1), seed=34)
    found.run(0.5)
    share = dict.fromkeys(SUPPORT, 0.0)
    for p in range(runs):
        w = np.exp(found.log_w[p] - np.logaddexp.reduce(found.log_w[p]))
        for i in range(k):
            share[tuple(found.particles.ids[p * k + i])] += w[i] / runs
    law = torch.tensor([share[y] for y in SUPPORT], dtype=torch.float64)
    bias = (len(SUPPORT) - 1) / (2 * runs)  # of a KL of shares that are counted
    distances = [found.distance(p, posterior.log_z) for p in range(runs)]
    exact = {"kl": posterior.kl_to_posterior(law.log()), "kl_to_prior": posterior.kl_to_prior(law.log())}
    for name, truth in exact.items():
        values = np.array([getattr(one, name) for one in distances])
        assert values.mean() + 4 * values.std() / math.sqrt(runs) > truth - bias, name
    tv = 0.5 * float((law - posterior.probs_Y).abs().sum())
    most = np.mean([one.kl for one in distances])
    assert tv - 0.5 * math.sqrt(len(SUPPORT) / runs) < tv_bound(Estimate(most, most, most, runs)).value


@pytest.mark.statistical
def test_the_report_has_the_bounds() -> None:
    """On average log Z lies between the estimates of both runs, and the report has their distance."""
    target, posterior = world(0.5)
    drawn = make_sampler("smc", particles=4, every=1, bound=2.0, most=256).draw(
        target, [ASK] * 40, 1, SAMPLING, seed=shifted(35)
    )
    report = _report(drawn, 0.5)
    assert report.at_most
    assert report.kl is not None
    assert report.tv is not None
    assert report.log_z is not None
    upper = np.array([one.log_z + one.distance.kl for one in drawn if one.distance is not None])
    assert upper.mean() + 4 * upper.std() / math.sqrt(len(upper)) > posterior.log_z
    assert report.kl.value == pytest.approx(upper.mean() - report.log_z.value)
    assert not report.refusals


def _report(drawn, beta: float) -> Report:
    facts = [{**one.facts(), "seconds": 0, "calls": 0, "read": 0} for one in drawn]
    return report_of("smc", facts, beta, weighted=False)


def test_without_exact_samples_there_are_no_bounds() -> None:
    target, _ = world(0.05)
    drawn = make_sampler("smc", particles=3, bound=60.0, most=8).draw(target, [ASK] * 4, 1, SAMPLING, seed=1)
    report = _report(drawn, 0.05)
    assert report.kl is None
    assert report.tv is None
    assert report.kl_to_prior is not None
    assert "exact samples" in report.refusals[0]
    with pytest.raises(ConfigError, match="highest possible reward"):
        make_sampler("smc", most=8)
    with pytest.raises(ConfigError, match="no path"):
        make_sampler("rejection_in_step", most=8, bound=1.0)

"""Judges as scorers, the settings that make them, and what soft labels teach."""

from __future__ import annotations

import math

import pytest
import torch

from tiltyard.errors import ConfigError, DataError
from tiltyard.feedback import (
    Debiased,
    Grade,
    GradeScorer,
    JudgeError,
    JudgeScorer,
    ModelJudge,
    ModelPointsJudge,
    ModelScoreJudge,
    SimulatedJudge,
    Usage,
    build_judge,
    build_score_judge,
    build_scorer,
)
from tiltyard.losses.reward import kwise_loss_G
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.training.algorithm import Models
from tiltyard.training.select import best_worst
from tiltyard.training.source import Online
from tiltyard.types import Group, Response, ranks_of, shares_of

from .test_local import made
from .worlds import Formula, biased, judge_settings, pair, words, world_pairs


class Grader:
    """Scores by a table; no score for what it lacks."""

    def __init__(self, table: dict[str, float]):
        self.table, self.usage = table, Usage()

    def score(self, groups):
        return [
            tuple(
                Grade(self.table.get(r.text), "unknown", cause="" if r.text in self.table else "too long")
                for r in g.responses
            )
            for g in groups
        ]


def many(*texts: str) -> Group:
    group = pair("x", "y")
    return Group(group.prompt, tuple(Response(text=t) for t in texts), origin="here")


def test_pairs_get_shares_and_ranks() -> None:
    d = {"a": 0.8, "b": 0.0, "c": 0.0}
    groups = [pair("a", "b"), pair("b", "a"), pair("b", "c")]
    scored = JudgeScorer(Debiased(biased(d, 1.1), "logits")).score(groups)
    p = 1 / (1 + math.exp(-0.8))
    assert [shares_of(g.preference) for g in scored] == [
        pytest.approx(x, abs=1e-12) for x in ((p, 1 - p), (1 - p, p), (0.5, 0.5))
    ]
    assert [ranks_of(g.preference) for g in scored] == [(1, 2), (2, 1), (1, 1)]
    assert all(g.scores == shares_of(g.preference) for g in scored)


def test_more_answers_get_their_mean_chance_to_win() -> None:
    d = {"a": 0.0, "b": 1.0, "c": 3.0, "d": -0.5}
    (scored,) = JudgeScorer(biased(d, 0.0)).score([many(*d)])
    for name, score in zip(d, scored.scores, strict=True):
        chances = [1 / (1 + math.exp(d[o] - d[name])) for o in d if o != name]
        assert score == pytest.approx(sum(chances) / 3, abs=1e-12)
    assert sum(scored.scores) == pytest.approx(2.0, abs=1e-12)  # six games among four
    assert (ranks_of(scored.preference), shares_of(scored.preference)) == ((3, 2, 1, 4), None)
    (chosen,) = best_worst([scored], torch.Generator())
    assert [r.text for r in chosen.responses] == ["c", "d"]


def test_no_verdict_says_nothing() -> None:
    judge = Formula(lambda x, y: None if "z" in x + y else 0.9 if x < y else 0.1)
    two, three = JudgeScorer(judge).score([pair("a", "z"), pair("a", "b"), many("a", "z", "b"), many("z", "zz")])
    assert ranks_of(two.preference) == (1, 2)
    assert ([r.text for r in three.responses], ranks_of(three.preference)) == (["a", "b"], (1, 2))
    assert three.scores == pytest.approx((0.9, 0.1))
    with pytest.raises(DataError, match="needs two responses"):
        JudgeScorer(judge).score([many("a")])


def test_a_judge_that_rarely_answers_is_given_up() -> None:
    scorer = JudgeScorer(Formula(lambda x, y: None))
    scorer.score(words(0, 19))
    with pytest.raises(JudgeError, match=r"(?s)no verdict on more than 50%.*20 of 20 without one: 20 unreadable"):
        scorer.score(words(1, 1))
    patient = JudgeScorer(Formula(lambda x, y: None), max_missing=1.0)
    assert patient.score(words(2, 30)) == []
    half = JudgeScorer(Formula(lambda x, y: None if min(x, y) < "c" else 0.5))
    assert len(half.score([pair("a", "z"), pair("x", "y")] * 30)) == 30


def test_grades_become_scores_and_nobody_invents_one() -> None:
    grader = Grader({"a": 1.0, "b": -2.0})
    (scored,) = GradeScorer(grader).score([many("b", "a")])
    assert scored.scores == (-2.0, 1.0)
    picky = GradeScorer(grader)
    kept = picky.score([many("a", "?", "b"), many("a", "?"), many("b"), many("?")])
    assert [[r.text for r in g.responses] for g in kept] == [["a", "b"], ["b"]]
    metrics = picky.take_metrics()
    assert (metrics["judge_missing"], metrics["judge_missing/too_long"]) == ((3.0, 1.0), (3.0, 1.0))
    assert picky.take_metrics()["judge_missing"] == (0.0, 1.0)


def test_online_takes_a_judge_as_its_scorer() -> None:
    model = made()
    prompts = model.chat.encode_prompts([g.prompt for g in words(2, 4)])
    judge = Formula(lambda x, y: 0.9 if len(x) < len(y) else 0.1)
    source = Online(
        prompts,
        NativeSampler(),
        JudgeScorer(judge),
        prompts_per_step=3,
        samples_per_prompt=2,
        settings=SampleSettings(max_tokens=4),
    )
    groups = source(Models(policy=model), 0).groups
    assert len(groups) == 3
    for group in groups:
        texts = [r.text for r in group.responses]
        assert sum(shares_of(group.preference)) == pytest.approx(1, abs=1e-12)
        if len(texts[0]) != len(texts[1]):
            assert ranks_of(group.preference) == ((1, 2) if len(texts[0]) < len(texts[1]) else (2, 1))


@pytest.mark.parametrize("p", [0.5, 0.647725, 0.9])
def test_a_reward_model_on_soft_labels_ends_at_logit_p(p) -> None:
    (group,) = JudgeScorer(Formula(lambda x, y: p if x == "a" else 1 - p)).score([pair("a", "b")])
    gap = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def loss(gap: torch.Tensor) -> torch.Tensor:
        score_B = torch.cat([gap, torch.zeros(1, dtype=torch.float64)])
        share_B = torch.tensor(shares_of(group.preference), dtype=torch.float64)
        order_B, group_B = torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=torch.long)
        return kwise_loss_G(score_B, order_B, group_B, 1, share_B=share_B, soft_G=torch.ones(1)).sum()

    for _ in range(30):  # Newton: the second derivative of the loss is s (1 - s)
        (slope,) = torch.autograd.grad(loss(gap), gap)
        s = torch.sigmoid(gap.detach())
        gap = (gap.detach() - slope / (s * (1 - s))).requires_grad_()
    assert float(gap.detach()) == pytest.approx(math.log(p / (1 - p)), abs=1e-9)


# ---------------------------------------------------------------------------------------------------------- settings


def test_settings_make_judges(monkeypatch) -> None:
    model = made()
    asked: list[str] = []

    def load(name: str):
        asked.append(name)
        return model

    groups = world_pairs(5)
    wants = {"gold": 1.0, "length": -1.0}
    built = build_judge(judge_settings(kind="simulated", instruction=wants, temperature=0.4, position_bias=1.5), load)
    assert built(groups) == Debiased(SimulatedJudge(wants, 0.4, position_bias=1.5))(groups)
    pairs = words(0, 3)
    exemplar = {"prompt": "a", "first": "b", "second": "c", "better": 2}
    built = build_judge(
        judge_settings(
            kind="model", model="m", instruction="Short.", exemplars=[exemplar], debias="none", style="text"
        ),
        load,
    )
    own = ModelJudge(
        model, "Short.", "text", exemplars=[judge_settings(kind="model", model="m", exemplars=[exemplar]).exemplars[0]]
    )
    assert built(pairs) == own(pairs)
    graded = build_score_judge(judge_settings(kind="model", model="m", ask="score"), load)
    assert graded.score(pairs) == ModelScoreJudge(model).score(pairs)
    pointed = build_score_judge(
        judge_settings(kind="model", model="m", ask="points", samples=2, max_tokens=6, seed=3), load
    )
    assert pointed.score(pairs) == ModelPointsJudge(model, samples=2, max_tokens=6, seed=3).score(pairs)
    assert isinstance(build_scorer(judge_settings(kind="simulated"), load), JudgeScorer)
    assert isinstance(build_scorer(judge_settings(kind="simulated", ask="score"), load), GradeScorer)
    assert asked == ["m"] * 3
    with pytest.raises(ConfigError):
        build_judge(judge_settings(kind="simulated", ask="score"), load)
    with pytest.raises(ConfigError):
        build_score_judge(judge_settings(kind="simulated"), load)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kind": "oracle"}, "kind"),
        ({"kind": "simulatet"}, r"(?s)kind: simulated \| model \| api.*did you mean 'simulated'"),
        ({"ask": "pair"}, "kind"),
        ({"kind": "model"}, "'judge.model' is required"),
        ({"kind": "api", "model": "m"}, "'judge.url' is required"),
        ({"kind": "api", "model": "m", "url": "file:///etc/passwd"}, "(?s)'judge.url' does not fit.*file:.*https"),
        ({"kind": "simulated", "instruction": "be kind"}, r"(?s)'judge.instruction' .*be kind.*dict\[str, float\]"),
        ({"kind": "model", "model": "m", "instruction": {"length": 1.0}}, "(?s)'judge.instruction' .*length.*str"),
        ({"kind": "simulated", "url": "http://x"}, "(?s)unknown setting 'judge.url'.*of kind: simulated"),
        ({"kind": "simulated", "model": "m"}, "unknown setting 'judge.model'"),
        ({"kind": "model", "model": "m", "temperature": 0.5}, "temperature has no effect with ask: pair"),
        ({"kind": "simulated", "ask": "score", "debias": "logits"}, "debias has no effect with ask: score"),
        ({"kind": "api", "model": "m", "url": "http://x", "reasoning": 5}, "(?s)'judge.reasoning'.*of kind: api"),
        ({"kind": "model", "model": "m", "max_tokn": 5}, "(?s)'judge.max_tokn'.*did you mean 'max_tokens'"),
        ({"kind": "simulated", "max_tokn": 5}, "(?s)'judge.max_tokn'.*one of: ask, debias"),
        ({"kind": "simulated", "votess": 3}, "(?s)'judge.votess'.*did you mean 'votes'"),
        ({"kind": "simulated", "votes": "3"}, "(?s)'judge.votes' does not fit.*'3'.*int >= 0"),
    ],
)
def test_settings_that_do_not_fit_are_errors(values, match) -> None:
    with pytest.raises(ConfigError, match=match):
        judge_settings(**values)

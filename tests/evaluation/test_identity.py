"""No figure rests on a name that a user chose: ids may be renamed, stand twice or be missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.training import tiny

from tiltyard.evaluation import EvaluatedResponse, summarise
from tiltyard.evaluation.reward_models import evaluate_scores
from tiltyard.inputs.measure import preference, reward_report, scores_of
from tiltyard.report.policy_tables import _pick
from tiltyard.scoring import RewardScorer
from tiltyard.training.algorithm import Models
from tiltyard.training.refcache import group_key
from tiltyard.types import Group, Preference, Prompt, Response, prompt_digest

NAMES: dict[str, Callable[[int], str]] = {
    "renamed": lambda i: f"row-{97 * i % 11}",
    "all the same": lambda i: "x",
    "in twos": lambda i: str(i // 2),
    "missing": lambda i: "",
    "some missing": lambda i: "" if i % 2 else str(i),
}


def named(groups: list[Group], name: Callable[[int], str]) -> list[Group]:
    return [replace(g, prompt=replace(g.prompt, id=name(i))) for i, g in enumerate(groups)]


def rows() -> list[Group]:
    """Rankings whose prompts have a text; two of them are one prompt."""
    groups = tiny.rankings(9)
    groups[4] = replace(groups[4], prompt=groups[3].prompt)
    return [replace(g, prompt=replace(g.prompt, text=str(g.prompt.ids))) for g in groups]


def responses(groups: list[Group], shift: float) -> list[EvaluatedResponse]:
    return [
        EvaluatedResponse(
            g.prompt.id,
            g.prompt.text or "",
            f"answer {i} {k}",
            length=len(r.ids),
            gold=(7 * i + 3 * k) % 5 + shift * (i % 3),
            kl=0.1 * k,
            entropy=1.0,
            prompt_key=prompt_digest(g.prompt),
        )
        for i, g in enumerate(groups)
        for k, r in enumerate(g.responses)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_summaries_of_policies(name: str) -> None:
    plain, other = (
        summarise("a", responses(groups, 0.5), responses(groups, 0.0), "gold", baseline="b")
        for groups in (rows(), named(rows(), NAMES[name]))
    )
    assert plain == other
    shown, again = (
        [[r.text for r in line] for line in _pick({"a": responses(g, 0.5), "b": responses(g, 0.0)}, 4)[0]]
        for g in (rows(), named(rows(), NAMES[name]))
    )
    assert shown == again


@pytest.mark.parametrize("name", NAMES)
def test_reports_of_reward_models(name: str) -> None:
    model, plain, other = tiny.scalar(), rows(), named(rows(), NAMES[name])
    assert reward_report(model, plain, 64) == reward_report(model, other, 64)
    scores = scores_of(model, plain, 64)
    assert repr(evaluate_scores(plain, scores)) == repr(evaluate_scores(other, scores))


@pytest.mark.parametrize("name", NAMES)
def test_held_out_preferences_and_cached_references(name: str) -> None:
    plain, other = rows(), named(rows(), NAMES[name])
    assert [group_key(g) for g in plain] == [group_key(g) for g in other]

    class Zero:
        def logp_R(self, groups: list[Group]) -> torch.Tensor:
            return torch.zeros(sum(len(r.ids) for g in groups for r in g.responses))

    models = Models(policy=tiny.policy())
    one, two = (preference(groups, 64, Zero())(models, 1) for groups in (plain, other))
    assert one == two


@pytest.mark.parametrize("budget", [1, 30, 100_000])
def test_equal_responses_have_equal_scores(budget: int) -> None:
    """One answer that stands twice ties exactly, however the batch is cut: tau does not depend on the budget."""
    torch.manual_seed(0)
    model = tiny.scalar()
    model.head.weight.data.normal_()
    groups = []
    for group in tiny.rankings(12, seed=3):
        twice = (*group.responses, *group.responses[:1], *group.responses[-1:])
        groups.append(replace(group, responses=twice, preference=Preference(ranks=tuple(range(1, len(twice) + 1)))))
    for scores in (
        scores_of(model, groups, budget),
        [g.scores for g in RewardScorer(model, budget=budget).score(groups)],
    ):
        for group, values in zip(groups, scores, strict=True):
            by_ids: dict[tuple[int, ...], set[float]] = {}
            for response, value in zip(group.responses, values or (), strict=True):
                by_ids.setdefault(response.ids, set()).add(value)
            assert all(len(found) == 1 for found in by_ids.values())


def test_a_prompt_is_its_content() -> None:
    one = Prompt(text="a", id="1", meta={"x": 1})
    assert prompt_digest(one) == prompt_digest(replace(one, id="2", ids=(1,)))
    assert prompt_digest(one) != prompt_digest(Prompt(text="b", id="1"))
    assert prompt_digest(Prompt(ids=(1,))) != prompt_digest(Prompt(ids=(2,)))
    assert Response(ids=(1,)) == Response(ids=(1,))

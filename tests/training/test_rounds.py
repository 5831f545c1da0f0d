"""Rounds: what a step learns from, what begins a round, and that a killed run comes back to the same pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.sampling.scripted import ScriptedSampler
from tests.scoring.stubs import Scripted

from tiltyard.batch.batch import Batch
from tiltyard.errors import ConfigError, DataError
from tiltyard.methods import iterative_dpo, rft
from tiltyard.runs.groups import read_groups
from tiltyard.sampling import sample
from tiltyard.scoring.base import matched_groups
from tiltyard.training import rounds
from tiltyard.training.algorithm import Forward, Models
from tiltyard.training.fit import fit
from tiltyard.training.optimizer import make_optimizer
from tiltyard.training.rounds import merged
from tiltyard.types import Group, Preference, Prompt, Response, ranks_of

from . import round_runs as runs
from . import tiny

ROOT = Path(__file__).parents[2]


class Killed(Exception):
    """The run ends here."""


@dataclass
class KilledAt(tiny.Record):
    at: int = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == self.at:
            raise Killed


def attempt(name: str, folder: Path, on_disk: bool, at: int = 0, **changes: Any) -> tuple[list[Any], Any]:
    """(metrics of the steps it took, all parameters at the end); no parameters where it was killed."""
    algorithm, models, record = runs.make(name, **changes), runs.models(), KilledAt(at=at)
    algorithm.source.folder = folder / "rounds" if on_disk else None  # type: ignore[attr-defined]
    try:
        runs.run(algorithm, models, folder, sinks=[record])
    except Killed:
        return record.rows, None
    return record.rows, {n: tiny.parameters(m) for n, m in models.present().items()}


def written(folder: Path) -> dict[str, Any]:
    groups = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    return {"groups": groups, **{p.name: p.read_bytes() for p in sorted((folder / "rounds").glob("*"))}}


# ----------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("name", sorted(runs.METHODS))
@pytest.mark.parametrize("on_disk", [True, False])
def test_resumed_is_uninterrupted(name: str, on_disk: bool, tmp_path: Path) -> None:
    """Killed in the first, the middle and the last step of rounds, on and off a checkpoint: bit for bit."""
    rows, whole = attempt(name, tmp_path / "whole", on_disk)
    found: dict[int, Any] = {}
    for at in (1, 4, 5, 6, 8, 0):
        made, ended = attempt(name, tmp_path / "cut", on_disk, at)
        first = (at or runs.STEPS) - len(made)
        found |= {first + i: row for i, row in enumerate(made)}
    tiny.assert_same([found[i] for i in range(runs.STEPS)], rows, 0)
    tiny.assert_same(ended, whole, 0)
    assert written(tmp_path / "cut") == written(tmp_path / "whole")
    assert len(written(tmp_path / "whole")) == (4 if on_disk else 1)


@pytest.mark.parametrize("name", ["previous", "rft"])
def test_killed_between_a_round_and_its_first_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round is on disk and nothing of it was learnt: it is read and not sampled again."""
    _, whole = attempt(name, tmp_path / "whole", True)
    asked: list[int] = []

    def counting(*args: Any) -> list[Group]:
        asked.append(1)
        return sample(*args[:-1], seeds=args[-1])

    def dies(groups: list[Group]) -> dict[str, Any]:
        if groups[0].responses[0].policy_version == 3:
            raise Killed
        return {}

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "sampled_metrics", dies)  # the first thing that is done with a round that stands
        attempt(name, folder, True, sampler=ScriptedSampler(counting))
    assert len(asked) == 2
    assert sorted(p.name for p in (folder / "rounds").iterdir()) == [f"round-000{i}.groups.jsonl" for i in (0, 1)]
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    _, found = attempt(name, folder, True, sampler=ScriptedSampler(counting))
    assert len(asked) == 3  # the third round alone
    tiny.assert_same(found, whole, 0)
    assert written(folder) == written(tmp_path / "whole")


def test_a_lost_round_is_an_error(tmp_path: Path) -> None:
    attempt("fixed", tmp_path, True, at=5)
    (tmp_path / "rounds" / "round-0001.groups.jsonl").unlink()
    with pytest.raises(DataError, match="responses of round 2 are not there") as caught:
        attempt("fixed", tmp_path, True)
    assert "start again" in caught.value.fix


@pytest.mark.parametrize("name", ["fixed", "rft"])
def test_a_run_begins_with_answers_of_its_own(name: str) -> None:
    """A source that two algorithms were made of, or an algorithm that is trained twice, keeps nothing of the first."""
    source = runs.rounds()
    one, two = runs.METHODS[name](source), runs.METHODS[name](source)
    found = []
    for algorithm, seed in ((one, 0), (two, 4), (one, 4)):
        models, record = Models(policy=tiny.policy(seed), ref=tiny.frozen(seed)), tiny.Record()
        runs.run(algorithm, models, None, sinks=[record], steps=runs.EVERY)  # one round: its number tells nothing
        found.append((record.rows, tiny.parameters(models.policy)))
    tiny.assert_same(found[1], found[2], 0)
    assert found[0][0] != found[1][0]


# --------------------------------------------------------------------------------------------------- who learns what


def marked(n: int, mark: int = 0) -> list[Group]:
    return [Group(Prompt(id=f"{mark}.{i}", ids=(i,)), (Response(ids=(mark,)),), scores=(1.0,)) for i in range(n)]


@pytest.mark.parametrize(("every", "phases"), [(1, 1), (3, 1), (3, 3), (5, 2), (7, 3), (10, 4), (6, 5)])
def test_which_step_learns_from_which_phase(every: int, phases: int) -> None:
    """Equal parts, the earlier ones longer where they do not divide; each part begins its own data anew."""
    source = runs.rounds(every=every, prompts_per_step=2, phases=phases, phase=lambda pool, i: marked(2 + i, i))
    models = Models(policy=tiny.policy())
    for number in range(2):
        seen: list[int] = []
        passes: dict[int, list[str]] = {}
        for within in range(every):
            draw = source(models, number * every + within)
            (phase,) = {g.responses[0].ids[0] for g in draw.groups}
            seen.append(phase)
            passes.setdefault(phase, []).extend(g.prompt.id for g in draw.groups)
        # phase i holds the steps s with i <= s * phases / every < i + 1
        assert seen == [max(i for i in range(phases) if i * every <= s * phases) for s in range(every)]
        assert seen == sorted(seen)
        assert set(seen) == set(range(phases))
        for phase, ids in passes.items():
            first = ids[: 2 + phase]
            assert len(ids) < 2 + phase or sorted(first) == [f"{phase}.{i}" for i in range(2 + phase)]


def test_a_pool_is_seen_once_a_pass() -> None:
    """All of a round's groups before any comes again, in an order of the round's own."""
    source = runs.rounds(size=7, prompts_per_step=7, every=4)
    models = runs.models()
    orders = [[g.prompt.id for g in source(models, step).groups] for step in range(8)]
    assert all(sorted(order) == [str(i) for i in range(7)] for order in orders)
    assert len({tuple(order) for order in orders}) == 8
    versions = {source(models, step).groups[0].responses[0].policy_version for step in (4, 5)}
    assert versions == {0}


def test_every_round_answers_the_next_prompts() -> None:
    """5 of 7 prompts a round: after seven rounds each has been answered five times."""
    source = runs.rounds(size=5, every=1, prompts_per_step=5)
    models = runs.models()
    groups = [g for step in range(7) for g in source(models, step).groups]
    assert sorted(g.prompt.id for g in groups) == sorted([str(i) for i in range(7)] * 5)
    answers = {(g.prompt.id, *(r.ids for r in g.responses)) for g in groups}
    assert len(answers) == 35  # the policy has not moved, but a round's chance is its own


def test_all_rounds_are_put_together_by_prompt() -> None:
    """keep=all: each prompt's answers of all rounds so far are one group, and its best never gets worse."""
    seen: list[list[Group]] = []

    def look(groups: list[Group], chance: torch.Generator) -> Sequence[Group]:
        seen.append(groups)
        return groups

    given = runs.models()
    source = runs.rounds(size=7, every=1, prompts_per_step=3, keep="all", select=look)
    alone = []
    for step in range(3):
        source(given, step)
        alone.append(list(source.held[step]))
    best: dict[str, float] = {}
    for step, groups in enumerate(seen):
        assert sorted(g.prompt.id for g in groups) == [str(i) for i in range(7)]
        for group in groups:
            parts = [g for made in alone[: step + 1] for g in made if g.prompt.id == group.prompt.id]
            assert group.responses == tuple(r for g in parts for r in g.responses)
            assert group.scores == tuple(s for g in parts for s in g.scores or ())
            assert len(group.responses) == 6 * (step + 1)
            assert max(group.scores or ()) >= best.get(group.prompt.id, -1.0)
            best[group.prompt.id] = max(group.scores or ())


def test_the_pool_rule_of_rejection_sampling() -> None:
    """Of all rounds: the best of the union, never worse; of the last alone it does get worse."""
    falling = [0.0]

    def score(groups: list[Group]) -> list[Group]:
        falling[0] -= 1.0  # every round is worse than the one before
        return [replace(g, scores=tuple(falling[0] - 0.1 * i for i in range(len(g.responses)))) for g in groups]

    for pool, expected in (("all", [-1.0] * 3), ("last", [-1.0, -2.0, -3.0])):
        falling[0] = 0.0
        algorithm = rft(runs.rounds(size=7, every=1, prompts_per_step=7, scorer=Scripted(score)), pool=pool)  # type: ignore[arg-type]
        found = [{g.scores for g in algorithm.source(runs.models(), step).groups} for step in range(3)]
        assert found == [{(x,)} for x in expected]


def test_merging_keeps_the_order_and_forgets_ranks() -> None:
    a, b = marked(2, 1), [replace(g, preference=Preference(ranks=(1,))) for g in marked(3, 2)]
    found = merged([a, b])
    assert [[r.ids for r in g.responses] for g in found] == [[(1,), (2,)], [(1,), (2,)], [(2,)]]
    assert [g.scores for g in found] == [(1.0, 1.0), (1.0, 1.0), (1.0,)]
    assert ranks_of(found[0].preference) is None


# ------------------------------------------------------------------------------------------------- what begins a round


@dataclass
class Looked:
    """A loss that takes down weights and the optimiser's state before each forward pass."""

    inner: Any
    optimizer: torch.optim.Optimizer
    seen: list[tuple[dict[str, Any], dict[str, Any], bool]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, forward: Forward, batch: Batch) -> Any:
        models = forward.models
        self.seen.append((tiny.parameters(models.policy), tiny.parameters(models.ref), not self.optimizer.state))
        return self.inner(forward, batch)


def looked_at(algorithm: Any) -> list[tuple[dict[str, Any], dict[str, Any], bool]]:
    """(policy, reference, whether the optimiser is fresh) as each step's forward pass finds them."""
    models, run = runs.models(), tiny.run(steps=runs.STEPS, lr=1e-2)
    optimizer = make_optimizer(models, ("policy",), run)
    watched = replace(algorithm, loss=Looked(algorithm.loss, optimizer, []))
    fit(watched, models, run, optimizer)
    assert len(watched.loss.seen) == runs.STEPS
    return watched.loss.seen


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return all(one[k].equal(two[k]) for k in two)


def test_a_fresh_round_starts_from_the_base() -> None:
    """Rejection sampling: at each round's first forward pass the base's weights and an optimiser without memory; the
    round's answers are the trained policy's."""
    base, sampled = tiny.parameters(tiny.policy()), []

    def watching(policy: Any, *args: Any) -> list[Group]:
        sampled.append(same(tiny.parameters(policy), base))
        return sample(policy, *args[:-1], seeds=args[-1])

    for restart in (True, False):
        sampled.clear()
        seen = looked_at(rft(runs.rounds(sampler=ScriptedSampler(watching)), restart=restart))
        starts = [0, 3, 6] if restart else [0]
        assert [i for i, (policy, _, _) in enumerate(seen) if same(policy, base)] == starts
        assert [i for i, (_, _, fresh) in enumerate(seen) if fresh] == starts
        assert all(same(ref, base) for _, ref, _ in seen)
        assert sampled == [True, False, False]


@pytest.mark.parametrize("ref_update", ["fixed", "previous"])
def test_a_renewed_reference_is_the_policy_as_the_round_began(ref_update: Any) -> None:
    seen = looked_at(iterative_dpo(runs.rounds(), ref_update=ref_update))
    for i, (_, ref, _) in enumerate(seen):
        began = i // runs.EVERY * runs.EVERY if ref_update == "previous" else 0
        assert [j for j, (policy, _, _) in enumerate(seen) if same(policy, ref)] == [began]


def test_the_checkpoint_brings_the_reference_back(tmp_path: Path) -> None:
    """It is in the file, and a resumed run has it before its first step; a fixed one is not stored."""
    for name, kept in (("previous", True), ("fixed", False)):
        attempt(name, tmp_path / name, True, at=5)
        (last,) = (tmp_path / name / "checkpoints").glob("step-00000004")
        keys = {key.partition(".")[0] for key in load_file(last / "weights.safetensors")}
        assert keys == ({"policy", "ref"} if kept else {"policy"})
    models, found = runs.models(), []
    algorithm = runs.make("previous")
    algorithm.source.folder = tmp_path / "previous" / "rounds"  # type: ignore[attr-defined]
    stop = tiny.watch(algorithm, lambda models, batch, step: found.append(tiny.parameters(models.ref)))
    runs.run(stop, models, tmp_path / "previous")
    assert len(found) == 5
    base = tiny.parameters(tiny.policy())
    assert not same(found[0], base)  # step 5, in the second round
    assert same(found[0], found[1])
    assert not same(found[1], found[2])  # the third round


# -------------------------------------------------------------------------------------- judges that leave things out


def test_what_a_judge_leaves_out_is_left_out() -> None:
    algorithm = runs.make("careless")
    source: Any = algorithm.source
    draw = source(runs.models(), 0)
    held = source.held[0]
    marks = [sum(g.prompt.ids) % 4 for g in held]
    assert set(marks) == {0, 2, 3}
    assert len(held) < 15
    for group, mark in zip(held, marks, strict=True):
        assert len(group.responses) == (5 if mark == 2 else 6)
        assert (group.scores is None) == (mark == 3)
    assert {sum(g.prompt.ids) % 4 for g in draw.groups} <= {0, 2}


def test_groups_are_placed_by_what_they_hold() -> None:
    """A prompt that is there twice is told apart by its answers."""
    twice = [Group(Prompt(id="a", ids=(1,)), (Response(ids=(i,)), Response(ids=(9,)))) for i in range(3)]
    cut = replace(twice[2], responses=twice[2].responses[:1])
    assert matched_groups(twice, [twice[0], cut]) == [0, 2]
    with pytest.raises(DataError, match="a group that it was not given"):
        matched_groups(twice, [cut, twice[0]])


def test_nothing_left_to_learn_from() -> None:
    """All scores alike: no pair, and the error says what to do."""
    level = runs.rounds(scorer=Scripted(lambda groups: [replace(g, scores=(1.0,) * len(g.responses)) for g in groups]))
    with pytest.raises(DataError, match="nothing is left to learn from in round 1") as caught:
        iterative_dpo(level).source(runs.models(), 0)
    assert "sample more responses" in caught.value.fix


@pytest.mark.parametrize("key", ["size", "prompts_per_step", "every", "samples_per_prompt", "phases"])
def test_there_is_at_least_one_of_everything(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        runs.rounds(**{key: 0})
    assert caught.value.where == key


# ------------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for name, before in (("one", ()), ("two", torchrun)):
        (folder / name).mkdir()
        command = [sys.executable, *before, "-m", "tests.training.round_runs", str(folder / name)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return folder / "one", folder / "two"


@pytest.mark.slow
@pytest.mark.parametrize("name", runs.RANKED)
def test_two_processes_are_one(folders: tuple[Path, Path], name: str) -> None:
    """The same answers in the same order in the rounds' files, the same metrics, the same weights."""
    one, two = folders
    rows = [
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    plain = [[{k: v for k, v in row.items() if not k.startswith("time/")} for row in part] for part in rows]
    tiny.assert_same(plain[1], plain[0], 1e-9)
    if name == "judged":  # by both processes together
        begun = plain[1][:: runs.EVERY]
        assert [(row["judge_calls"], row["judge_cost"]) for row in begun] == [(9 * 6, 9 * 6 * 0.25)] * 3
        assert all(9 * 6 * 2 <= row["judge_tokens"] <= 9 * 6 * 6 for row in begun)
    final, other = (load_file(two / f"{name}.rank{i}.safetensors") for i in (0, 1))
    tiny.assert_same(final, other, 0)
    tiny.assert_same(final, load_file(one / f"{name}.rank0.safetensors"), 1e-9)
    files = sorted(p.name for p in (one / name / "rounds").glob("*.groups.jsonl"))
    assert len(files) == (0 if name == "online" else 3)
    for file in files:
        read = [list(read_groups(folder / name / "rounds" / file)) for folder in (one, two)]
        drawn = [[(g.prompt.id, [r.ids for r in g.responses], g.scores) for g in groups] for groups in read]
        assert drawn[0] == drawn[1]
        assert drawn[0]

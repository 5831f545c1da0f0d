"""The stage `candidates`: what it keeps, that pairs are the scorer's, and that a kill at any write changes nothing."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tiltyard.batch.batch import Batch
from tiltyard.data import load_groups, read_groups
from tiltyard.errors import ConfigError, DataError
from tiltyard.models.load import load_language_model, load_scalar_model
from tiltyard.pipeline import run_recipe
from tiltyard.runs.journal import JsonlFile
from tiltyard.scoring import Ranker, RewardScorer
from tiltyard.stages import candidates
from tiltyard.types import Group, ranks_of
from tiltyard.world import gold

from .conftest import Whole
from .planted import Place, after, half_row, killed

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

ASKED = "samples_per_prompt: 4, limit: 11, max_tokens: 6, max_prompt: 57, device: cpu, seed: 3"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "BLOCK", 4)


@pytest.fixture(scope="module")
def trained(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ranker of few steps, with a context that holds two answers."""
    root = tmp_path_factory.mktemp("ranker")
    recipe = root / "r.yaml"
    recipe.write_text(f"""name: r
defaults: {{device: cpu, seed: 1}}
stages:
  - pretrain: {{data: {whole.run}/world/corpus_held_out.jsonl, arch: {{preset: 1m, vocab: 400, context: 128}},
      steps: 4, prompts_per_step: 8, lr: 3e-3, limit: 100, max_length: 64}}
  - ranker: {{model: pretrain, data: {whole.run}/label/rankings.groups.jsonl,
      held_out: {whole.run}/label/rankings.groups.jsonl, steps: 24, prompts_per_step: 8, lr: 3e-3, max_length: 128}}
""")
    outcome = run_recipe(recipe, runs_root=root, console=Console(file=io.StringIO()))
    (root / "outcome.json").write_text(json.dumps(outcome["stages"]["ranker"]["result"]))
    return root / "r" / "ranker"


def recipe_of(whole: Whole, folder: Path, scorer: str, more: str = "") -> Path:
    path = folder / "c.yaml"
    path.write_text(
        f"name: c\nstages:\n  - candidates: {{model: {whole.run}/sft, prompts: {whole.run}/world/prompts.jsonl, "
        f"{ASKED}, {scorer}{more}}}\n"
    )
    return path


def made(whole: Whole, folder: Path, scorer: str, more: str = "") -> tuple[Path, dict[str, Any], str]:
    out = io.StringIO()
    outcome = run_recipe(recipe_of(whole, folder, scorer, more), runs_root=folder, console=Console(file=out, width=200))
    return folder / "c" / "candidates", outcome["stages"]["candidates"]["result"], out.getvalue()


@pytest.fixture(scope="module")
def uninterrupted(whole: Whole, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that the stage writes with a ranker when nothing stops it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "BLOCK", 4)
        return everything(made(whole, tmp_path_factory.mktemp("uninterrupted"), f"ranker: {trained}")[0])


def groups(folder: Path, name: str) -> list[Group]:
    return list(read_groups(folder / f"{name}.groups.jsonl"))


def everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {p.name: p.read_bytes() for p in sorted(folder.glob("*.jsonl"))}
    return found | {"result": json.loads((folder / "done.json").read_text())["result"]}


# ---------------------------------------------------------------------------------------------------------- the files


def test_what_is_kept_with_a_reward_model(whole: Whole, tmp_path: Path) -> None:
    folder, result, _ = made(whole, tmp_path, f"reward: {whole.run}/reward")
    every, pairs = groups(folder, "candidates"), groups(folder, "pairs")
    assert [g.origin for g in every] == [f"candidates:{i + 1}" for i in range(11)]
    model, reward = load_language_model(whole.run / "sft"), load_scalar_model(whole.run / "reward")
    again = RewardScorer(reward, model.chat).score(every)
    for group, scored in zip(every, again, strict=True):
        assert group.scores == pytest.approx(scored.scores, abs=1e-5)
    # log-probs are those of the law that was sampled: temperature 0.7 over the 40 most probable tokens
    batch = Batch.of(every, range(11), 11)
    with torch.no_grad():
        whole_R, _ = model.logp_R(batch.forest, temperature=0.7)
    assert bool((batch["sampled_logp_R"] >= whole_R - 1e-4).all())
    assert bool((batch["sampled_logp_R"] > whole_R + 1e-3).any())
    place = {g.origin: g for g in every}
    for pair in pairs:
        source = place[pair.origin.split()[0]]
        assert all(r in source.responses for r in pair.responses)  # ids, log-probs and all
        assert ranks_of(pair.preference) == (1, 2)
        assert pair.scores is not None
        assert pair.scores[0] > pair.scores[1]
    scores = [g.scores or () for g in every]
    assert result["candidates"] == 44
    assert result["pairs"] + result["ties"] == 44  # n random pairs of each
    assert result["score_best"] == pytest.approx(sum(map(max, scores)) / 11)
    assert result["score_mean"] == pytest.approx(sum(map(sum, scores)) / 44)
    assert result["score_worst"] == pytest.approx(sum(map(min, scores)) / 11)
    cut = [r.finish == "length" for g in every for r in g.responses]
    assert result["truncated"] == pytest.approx(sum(cut) / 44)
    assert "position_flips" not in result
    assert not (folder / "baselines.groups.jsonl").exists()


def test_a_ranker_plays_tournaments(whole: Whole, trained: Path, tmp_path: Path) -> None:
    folder, result, _ = made(whole, tmp_path, f"ranker: {trained}")
    every, pairs, baselines = (groups(folder, name) for name in ("candidates", "pairs", "baselines"))
    judge = Ranker(load_scalar_model(trained))
    assert result["pairs"] + result["ties"] == 11 * 3
    assert min(judge(pairs)) > 0  # the winner is the ranker's, whatever its score against the baseline
    for group, baseline in zip(every, baselines, strict=True):
        asked = [Group(group.prompt, (r, baseline.responses[0])) for r in group.responses]
        assert group.scores == pytest.approx(judge(asked), abs=1e-5)
        games = [p for p in pairs if p.origin.split()[0] == group.origin]
        assert all(p.origin.split()[1] in ("tournament.1", "tournament.2") for p in games)
    assert 0 <= result["position_flips"] <= 1
    assert result["position_bias"] != 0


def test_the_ranker_says_how_well_it_does(whole: Whole, trained: Path) -> None:
    result = json.loads((trained.parent.parent / "outcome.json").read_text())
    assert 0.5 < result["held_out/accuracy"] <= 1  # on its own data, after a few steps
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert {"accuracy", "position_bias", "position_flips"} <= rows[0].keys()
    assert "reward_bias" not in result
    text = (trained.parent.parent / "r.yaml").read_text().replace("max_length: 128", "demonstrations: x.jsonl")
    odd = trained.parent.parent / "odd.yaml"
    odd.write_text(text)
    with pytest.raises(ConfigError, match="unknown setting 'demonstrations'"):
        run_recipe(odd, runs_root=trained.parent.parent, dry_run=True)


@pytest.mark.parametrize(
    ("how", "most"), [("best_worst", 11), ("all", 66), ("first_round", 22), ("tournament", 33), ("none", 0)]
)
def test_pairs_by_the_worlds_own_rules(whole: Whole, tmp_path: Path, how: str, most: int) -> None:
    folder, result, _ = made(whole, tmp_path, "gold: true", f", pairs: {how}")
    every, pairs = groups(folder, "candidates"), groups(folder, "pairs")
    for group in every:
        assert group.scores == tuple(gold(group.prompt.meta, r.text).total for r in group.responses)
    assert len(pairs) == result["pairs"]
    assert result["pairs"] + result["ties"] == most
    if how == "best_worst":
        spread = {g.origin: (max(g.scores or ()), min(g.scores or ())) for g in every if len(set(g.scores or ())) > 1}
        assert {p.origin.split()[0]: p.scores for p in pairs} == spread


def test_people_and_our_own_reader_can_read_the_pairs(whole: Whole, tmp_path: Path) -> None:
    folder, _, _ = made(whole, tmp_path, f"reward: {whole.run}/reward", ", pairs: all")
    said = [p for p in groups(folder, "pairs") if all(r.text.strip() for r in p.responses)]
    chat = load_language_model(whole.run / "sft").chat
    read, _ = load_groups(folder / "pairs.jsonl", "comparisons", chat, max_length=64)
    assert len(said) == len(read) > 0
    for pair, row in zip(said, read, strict=True):
        assert [r.text for r in row.responses] == [r.text for r in pair.responses]
        assert (ranks_of(row.preference), row.prompt.messages) == ((1, 2), pair.prompt.messages)


# ------------------------------------------------------------------------------------------------- chance and resuming


def test_answers_depend_on_seed_and_place_alone(whole: Whole, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    one, _, _ = made(whole, tmp_path / "a", "gold: true")
    fewer, _, _ = made(whole, tmp_path / "b", f"reward: {whole.run}/reward", ", max_concurrent: 6")
    other, _, _ = made(whole, tmp_path / "c", "gold: true, pairs: none", ", top_p: 0.999999")
    ids = [[r.ids for r in g.responses] for g in groups(one, "candidates")]
    assert ids == [[r.ids for r in g.responses] for g in groups(fewer, "candidates")]
    assert ids == [[r.ids for r in g.responses] for g in groups(other, "candidates")]
    (tmp_path / "d").mkdir()
    path = recipe_of(whole, tmp_path / "d", "gold: true")
    for words, same in ((["candidates.limit=6"], True), (["candidates.limit=6", "candidates.seed=4"], False)):
        run_recipe(path, words, runs_root=tmp_path / "d", console=Console(file=io.StringIO()))
        found = [[r.ids for r in g.responses] for g in groups(tmp_path / "d" / "c" / "candidates", "candidates")]
        assert (found == ids[:6]) is same


@pytest.mark.parametrize("write", range(9))
@pytest.mark.parametrize("torn", [False, True])
def test_kill_9_at_any_write(
    whole: Whole,
    trained: Path,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: int,
    torn: bool,
) -> None:
    """Nine appends (three blocks, three files). The process dies in the middle of one, or right after it."""
    place = Place(JsonlFile, "write", write + 1, half_row if torn else after)
    killed(lambda: made(whole, tmp_path, f"ranker: {trained}"), place.plant)
    drawn: list[int] = []
    sample = candidates.sample
    monkeypatch.setattr(candidates, "sample", lambda *a, **k: (drawn.append(len(a[1])), sample(*a, **k))[1])
    found, _, text = made(whole, tmp_path, f"ranker: {trained}")
    assert everything(found) == uninterrupted
    done = 4 * (write // 3)
    assert sum(drawn) == 2 * (11 - done)  # what was done is not done again; candidates and baselines
    assert (f"{done} of 11 prompts are done" in text) is (done > 0)


# ---------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("scorer", ["gold: false", "gold: true, reward: {r}", "ranker: {r}, reward: {r}"])
def test_exactly_one_scorer(whole: Whole, tmp_path: Path, scorer: str) -> None:
    with pytest.raises(ConfigError, match="exactly one of ranker, reward and gold"):
        made(whole, tmp_path, scorer.format(r=f"{whole.run}/reward"))
    assert not (tmp_path / "c").exists()


def test_without_a_scorer_the_same_answers_have_no_scores(whole: Whole, tmp_path: Path) -> None:
    for name in ("scored", "plain"):
        (tmp_path / name).mkdir()
    scored, *_ = made(whole, tmp_path / "scored", "gold: true, pairs: none")
    plain, result, text = made(whole, tmp_path / "plain", "pairs: none")
    assert result["candidates"] == 44
    assert not any(key.startswith("score") for key in result)
    assert "scores:" not in text
    assert [replace(group, scores=None) for group in groups(scored, "candidates")] == groups(plain, "candidates")


def test_gold_needs_the_world(whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "hello"}\n')
    path = recipe_of(whole, tmp_path, "gold: true")
    path.write_text(path.read_text().replace(f"{whole.run}/world/prompts.jsonl", str(tmp_path / "p.jsonl")))
    with pytest.raises(DataError, match="embedded world"):
        run_recipe(path, runs_root=tmp_path, console=Console(file=io.StringIO()))

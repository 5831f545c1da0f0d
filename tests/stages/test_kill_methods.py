"""Every method as a stage that is killed in many places one after the other: its files are those of a run that was not.

Each place is certain to be reached (`planted`); the places follow each other through one run, so that every attempt
but the first goes on from what a kill left.
"""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from rich.console import Console

from tiltyard.distributed import checkpoint, part_files
from tiltyard.methods import METHODS
from tiltyard.pipeline import run_stage, state
from tiltyard.runs import groups as group_files
from tiltyard.runs.journal import JsonlFile
from tiltyard.sampling import NativeSampler
from tiltyard.stages import train
from tiltyard.training.fit import _Loop

from . import tiny
from .planted import Place, after, before, half_file, half_model, half_row, killed

pytestmark = pytest.mark.slow  # whole stages: not for the inner loop

COMMON = (
    "device: cpu, prompts_per_step: 4, lr: 0.001, steps: 6, save_every: 2, sample_every: 2, warmup: 2, "
    "weight_decay: 0.1"
)
RANKED = "model: START/sft, data: START/label/rankings.groups.jsonl, max_length: 64, eval_every: 3"
HELD = "held_out: START/label/rankings.groups.jsonl"
SHOWN = "demonstrations: START/world/demonstrations_held_out.jsonl"
TAUGHT = "data: START/world/demonstrations_held_out.jsonl, limit: 24, max_length: 64"
TEXTS = (
    "data: START/world/corpus_held_out.jsonl, limit: 60, max_length: 64, arch: {preset: 1m, vocab: 400, context: 64}"
)
ASKED = "model: START/sft, prompts: START/world/prompts.jsonl, limit: 20, max_tokens: 6, max_prompt: 48"
SCORED = f"{ASKED}, reward: START/reward"
RULED = f"{ASKED}, samples_per_prompt: 4, reward: {{brief: {{from: rule, max_characters: 14}}}}"
ROUNDS = f"{SCORED}, iterations: 3, samples_per_prompt: 4"
STAGES = {
    "pretrain": TEXTS,
    "mlm": f"{TEXTS}, dropout: 0.1",
    "sft": f"model: START/pretrain, {TAUGHT}, dropout: 0.1, tokens_per_step: 150",
    "reward": f"{RANKED}, {HELD}, {SHOWN}, normalise: unit, freeze_layers: 1",
    "ranker": f"model: START/mlm, data: START/label/rankings.groups.jsonl, max_length: 96, {HELD}",
    "dpo": f"{RANKED}, {HELD}, pairs: all, dropout: 0.1",
    "ipo": f"{RANKED}, pairs: all, ref_cache: false",
    "slic": f"{RANKED}, pairs: best_worst, {SHOWN}",
    "rrhf": RANKED,
    "click": f"{RANKED}, good_from: best, {SHOWN}",
    "kto": f"{RANKED}, good_from: best",
    "orpo": f"{RANKED}, pairs: all, lora: {{rank: 2, dropout: 0.2}}",
    "simpo": f"{RANKED}, pairs: all, tokens_per_step: 150",
    "cpo": f"{RANKED}, pairs: all",
    "spin": f"model: START/sft, {TAUGHT}, iterations: 3, max_tokens: 6",
    "ppo": f"{SCORED}, kl_target: 1.0, kl_horizon: 20, ppo_epochs: 2, minibatches: 2, whiten_rewards: true, "
    "corpus: START/world/corpus_held_out.jsonl, ptx: 0.5",
    "a2c": f"{SCORED}, entropy: 0.01, value_init: model, lora: {{}}",
    "reinforce": f"{SCORED}, mix_kl: true, value_init: shared, value_lr: 0.003",
    "reinforce_pp": f"{SCORED}, samples_per_prompt: 2, group_baseline: true, ppo_epochs: 2",
    "rloo": f"{SCORED}, samples_per_prompt: 3",
    "grpo": f"{SCORED}, samples_per_prompt: 4, dynamic_sampling: 2, minibatches: 2",
    "dapo": f"{SCORED}, samples_per_prompt: 3, dynamic_sampling: 2, minibatches: 2",
    "dr_grpo": f"{SCORED}, samples_per_prompt: 3",
    "dpg": f"{SCORED}, samples_per_prompt: 3",
    "kl_dpg": f"{SCORED}, samples_per_prompt: 4, adapt_every: 2, adapt_by: tv",
    "gdc": f"{RULED}, moments: {{brief: 0.75}}, moment_prompts: 6, moment_samples: 8, lora: {{}}",
    "f_dpg": f"{SCORED}, samples_per_prompt: 3, divergence: tv",
    "vbon": f"{SCORED}, samples_per_prompt: 3, ref_samples: 4",
    "online_dpo": SCORED,
    "iterative_dpo": f"{ROUNDS}, ref_update: previous, lora: {{rank: 4}}, gradient_checkpointing: true",
    "rft": f"{ROUNDS}, pool: all",
    "rest": f"{ROUNDS}, thresholds: [0.2, 0.5]",
    "rso": f"{SCORED}, iterations: 3, samples_per_prompt: 12, accepted: 4",
    "cringe": f"{ROUNDS}, round_prompts: 6",
    "self_rewarding": f"{ASKED}, iterations: 3, samples_per_prompt: 3, judge: {{ask: score}}, dropout: 0.1",
}
STEPS = 6


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def read_settings(start: Path, said: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(f"{{{said}, {COMMON}}}".replace("START", str(start)))
    return found


def go(kind: str, settings: dict[str, Any], root: Path) -> Path:
    """`tiltyard train KIND`; its folder."""
    run_stage(kind, settings, runs_root=root, console=quiet())
    return root / kind / kind


# ---------------------------------------------------------------------------------------------------- what is compared

TIMED = re.compile(r"time of the steps|energy")  # lines of a model card


def files_of(folder: Path) -> dict[str, Any]:
    """All that a stage leaves, by its name: bytes, and JSON without times and without the lengths that times have."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name == "metrics.jsonl":
            found[name] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in tiny.rows(path)]
        elif name == "done.json":
            found[name] = json.loads(path.read_text())["result"]
        elif path.name == "sha256.json":  # of a state.json with its offsets
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "state.json"}
        elif path.name == "state.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "offsets"}
        elif path.name == "README.md":  # the model card says what training cost
            found[name] = [line for line in path.read_text().splitlines() if not TIMED.search(line)]
        elif name != "config.json":  # says when it began, and the execution's own number
            found[name] = path.read_bytes()
    paid = answers_of(folder)
    if paid.exists():  # each says whose execution paid, and in which turn
        rows = tiny.rows(paid)
        found[paid.name] = [row | {"answer": row["answer"] | {"by": row["answer"]["by"][1]}} for row in rows]
    return found


def answers_of(folder: Path) -> Path:
    """The file of a stage's paid answers."""
    return folder.parent / ".answers" / f"{folder.name}.jsonl"


def same_files(ours: Path, theirs: Path) -> dict[str, Any]:
    """Asserts that two stages left the same; what they left."""
    found, expected = files_of(ours), files_of(theirs)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    return expected


# ---------------------------------------------------------------------------------------------------------- the places


def metrics_row(file: JsonlFile, rows: Any) -> bool:
    return file.path.name == "metrics.jsonl"


class Kill(NamedTuple):
    why: str
    place: Place


def places(name: str, updates: int) -> list[Kill]:
    """In the order in which one run comes to them; `updates` are the optimiser's a step."""
    method = METHODS[name]
    online = method.source.data_kind == "prompts"
    answers = Kill("answers, before they are judged", Place(NativeSampler, "generate", 1, after))
    stored = Kill("in the middle of a round's file", Place(group_files, "group_to_line", 3, before))
    return [
        *([answers] if method.samples_policy else []),
        *([stored] if online and method.source.samples == "per iteration" else []),
        Kill("a step's groups, before they are learnt from", Place(_Loop, "_prepare", 1, after)),
        Kill("in the middle of a line of the log", Place(JsonlFile, "write", 2, half_row, metrics_row)),
        Kill("the first checkpoint, in the optimiser's file", Place(part_files, "save_file", 2, half_file)),
        Kill("a logged step that no checkpoint has", Place(JsonlFile, "write", 3, after, metrics_row)),
        Kill("among a step's updates", Place(_Loop, "_update", updates + max(1, updates // 2), after)),
        Kill("a new checkpoint beside old ones", Place(checkpoint, "_prune", 3, before)),
        Kill("half of the model is written", Place(train, "save_model", 1, half_model)),
        Kill("all is there but the word that it is done", Place(state, "finish", 1, before)),
    ]


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_stage_is_the_uninterrupted_one(start: Path, tmp_path: Path, name: str) -> None:
    settings = read_settings(start, STAGES[name])
    began = time.process_time()
    whole = go(name, settings, tmp_path / "whole")
    print(f"{name}: {time.process_time() - began:.2f} s uninterrupted")
    updates = settings.get("ppo_epochs", 1) * settings.get("minibatches", 1)
    for why, place in places(name, updates):
        print(f"killed: {why}")
        killed(lambda: go(name, settings, tmp_path / "cut"), place.plant)
        assert not (tmp_path / "cut" / name / name / "done.json").exists()
    found = same_files(go(name, settings, tmp_path / "cut"), whole)
    assert [row["step"] for row in found["metrics.jsonl"]] == list(range(1, STEPS + 1))
    assert {"model/model.safetensors", f"checkpoints/step-{STEPS:08d}/weights.safetensors"} < found.keys()
    assert ("groups.jsonl" in found) == METHODS[name].samples_policy
    assert ("value/model.safetensors" in found) == ("value" in METHODS[name].trains)


def test_every_method_is_killed() -> None:
    assert sorted(STAGES) == sorted(METHODS)

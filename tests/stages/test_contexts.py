"""A reward model that cannot read the longest response is refused before anything is loaded; the plan has it too."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from models import tiny
from tiltyard.cli import main
from tiltyard.errors import ConfigError
from tiltyard.pipeline import run_stage

METHODS = ("ppo", "grpo", "rloo", "reinforce", "online_dpo")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contexts")
    tiny.causal("llama", vocab_size=512).save_pretrained(root / "policy")
    for name, context in (("short", 24), ("long", 64)):
        tiny.classifier("llama", vocab_size=512, max_position_embeddings=context).save_pretrained(root / name)
    for name in ("policy", "short", "long"):
        tiny.chat().tokenizer.save_pretrained(root / name)
    (root / "prompts.jsonl").write_text('{"prompt": "what is it?"}\n')
    return root


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_shorter_context_is_known_before_step_1(
    method: str, dry: bool, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", method, f"model={models / 'policy'}", f"reward={models / 'short'}", "max_prompt=16",
             "max_tokens=16", f"prompts={models / 'prompts.jsonl'}", "steps=1", "name=x", "device=cpu",
             "--runs", str(tmp_path)]  # fmt: skip
    assert main([*words, *(["--dry-run"] if dry else [])]) == 2
    said = capsys.readouterr().err
    assert "shorter context" in said
    assert "up to 32 tokens" in said
    assert "at most 24" in said
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize("stage", ["evaluate", "candidates"])
def test_other_stages_that_score_samples(stage: str, models: Path, tmp_path: Path) -> None:
    policy = {"models": {"a": str(models / "policy")}} if stage == "evaluate" else {"model": str(models / "policy")}
    settings = {**policy, "reward": str(models / "short"), "prompts": str(models / "prompts.jsonl"),
                "max_prompt": 16, "max_tokens": 16, "device": "cpu"}  # fmt: skip
    with pytest.raises(ConfigError, match=r"shorter context[\s\S]*up to 32 tokens[\s\S]*at most 24"):
        run_stage(stage, settings, runs_root=tmp_path, console=Console(quiet=True))


@pytest.mark.parametrize(("reward", "tokens"), [("short", 8), ("long", 64)])
def test_what_fits_is_planned(reward: str, tokens: int, models: Path, tmp_path: Path) -> None:
    """The policy's own context bounds what a reward model has to read."""
    settings = {"model": str(models / "policy"), "reward": str(models / reward), "max_prompt": 16,
                "max_tokens": tokens, "prompts": str(models / "prompts.jsonl"), "device": "cpu"}  # fmt: skip
    plan = run_stage("ppo", settings, dry_run=True, runs_root=tmp_path, console=Console(quiet=True))
    assert not any("context:" in line for line in plan["stages"]["ppo"]["plan"])


def test_a_model_of_another_tokenizer_is_a_line_of_the_plan(models: Path, tmp_path: Path) -> None:
    """Its tokens cannot be compared with the policy's."""
    settings = {"model": str(models / "policy"), "judge": {"kind": "model", "model": str(models / "policy")},
                "max_prompt": 60, "max_tokens": 60, "prompts": str(models / "prompts.jsonl"), "device": "cpu",
                "monitors": [str(models / "short")]}  # fmt: skip
    other = tiny.chat().tokenizer.__class__.from_pretrained(models / "short")
    other.add_special_tokens({"additional_special_tokens": ["<other>"]})
    other.save_pretrained(models / "short")
    plan = run_stage("online_dpo", settings, dry_run=True, runs_root=tmp_path, console=Console(quiet=True))
    lines = [line for line in plan["stages"]["online_dpo"]["plan"] if line.startswith("context:")]
    assert len(lines) == 1
    assert "reads at most 24 tokens" in lines[0]

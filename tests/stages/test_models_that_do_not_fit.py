"""Models that cannot do what they are named for: no trained score head, another tokenizer, no such stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiltyard.cli import main
from tiltyard.data import plain_texts, train_tokenizer
from tiltyard.models.load import from_scratch, save_model, scalar_from

from .conftest import Whole

FEW = ("steps=1", "prompts_per_step=2", "device=cpu")
SAMPLED = (*FEW, "max_prompt=48", "max_tokens=4", "limit=4")
SFT, PROMPTS = "{tiny}/sft", "prompts={tiny}/world/prompts.jsonl"
PAIRS = "data={tiny}/label/rankings.groups.jsonl"


@pytest.fixture(scope="module")
def other(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lm` and `rm`: a language model and a reward model with a tokenizer of their own."""
    folder = tmp_path_factory.mktemp("other")
    texts = list(plain_texts(whole.run / "world/corpus.jsonl"))[:50]
    policy = from_scratch("1m", train_tokenizer(texts, 320), context=64)
    save_model(policy, folder / "lm")
    reward = scalar_from(policy)
    torch.nn.init.normal_(reward.head.weight)
    save_model(reward, folder / "rm")
    return folder


def refused(capsys: pytest.CaptureFixture[str], whole: Whole, other: Path, *words: str) -> str:
    """What the command says that ends with 2; {tiny} and {other} are folders."""
    code = main([word.replace("{tiny}", str(whole.run)).replace("{other}", str(other)) for word in words])
    text = capsys.readouterr()
    assert code == 2, text.out + text.err
    assert "goes on where it stopped" not in text.out  # it would be refused again
    return text.err


REWARDED = {
    "trained on": ("train", "rloo", f"model={SFT}", f"reward={SFT}", PROMPTS, *SAMPLED),
    "part of a sum": (
        "train",
        "rloo",
        f"model={SFT}",
        f"reward={{a: {{from: {SFT}}}, b: {{from: gold}}}}",
        PROMPTS,
        *SAMPLED,
    ),
    "monitor": ("train", "rloo", f"model={SFT}", "reward=gold", f"monitors=[{SFT}]", PROMPTS, *SAMPLED),
    "evaluated by": ("eval", f"models=[{SFT}]", f"reward={SFT}", PROMPTS, "limit=2", "max_tokens=4", "max_prompt=48"),
    "evaluated": ("eval", "--reward", SFT, PAIRS),
    "gap": ("gap", SFT, "--prior", SFT, "--reward", SFT, "--beta", "1", PROMPTS, "limit=2", "max_tokens=4"),
    "sampled": ("sample", SFT, "--infer", "best_of_n", "--reward", SFT, "-p", "Hi", "--max-tokens", "4"),
    "before and after": ("train", "before_after", f"before={SFT}", f"after={SFT}", f"reward={SFT}", PROMPTS),
}


@pytest.mark.parametrize("words", REWARDED.values(), ids=REWARDED)
def test_a_language_model_is_no_reward(
    capsys: pytest.CaptureFixture[str],
    whole: Whole,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """It would score every response 0, and a run would end well that had nothing to learn from."""
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, whole, other, *words)
    assert "not a trained reward model: it would score every response the same" in said
    assert "\n  to do:    train one" in said


UNREADABLE = {
    "reference on disk": ("train", "dpo", f"model={SFT}", PAIRS, "pairs=all", "models.ref={other}/lm", *FEW),
    "reference in memory": (
        "train",
        "dpo",
        f"model={SFT}",
        PAIRS,
        "pairs=all",
        "models.ref={other}/lm",
        "ref_cache=false",
        *FEW,
    ),
    "reference of samples": (
        "train",
        "rloo",
        f"model={SFT}",
        "reward=gold",
        PROMPTS,
        "models.ref={other}/lm",
        *SAMPLED,
    ),
    "value": ("train", "ppo", f"model={SFT}", "reward={other}/rm", PROMPTS, *SAMPLED),
    "adapter of values": ("train", "ppo", f"model={SFT}", "reward={other}/rm", PROMPTS, "lora={rank: 2}", *SAMPLED),
    "before": ("train", "before_after", "before={other}/lm", f"after={SFT}", PROMPTS, "max_prompt=48"),
    "prior": ("gap", SFT, "--prior", "{other}/lm", "--reward", "gold", "--beta", "1", PROMPTS, "limit=2"),
}


@pytest.mark.parametrize("words", UNREADABLE.values(), ids=UNREADABLE)
def test_another_tokenizer_is_refused_where_ids_are_shared(
    capsys: pytest.CaptureFixture[str],
    whole: Whole,
    other: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """Ids of one are other words to the other; with a vocabulary that is large enough no shape would show it."""
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, whole, other, *words)
    assert "tokenizer" in said
    assert "\n  got:" in said
    assert "\n  expected: the " in said
    assert "\n  to do:" in said


def test_a_value_of_its_own_reads_beside_a_reward_of_another_tokenizer(
    whole: Whole, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward model reads the responses' text; only a value that begins as its copy would read their ids."""
    monkeypatch.chdir(tmp_path)
    words = ("train", "ppo", f"model={whole.run}/sft", f"reward={other}/rm", f"prompts={whole.run}/world/prompts.jsonl")
    assert main([*words, "value_init=model", *SAMPLED]) == 0


def test_run_and_stage_are_found_below_the_runs(
    capsys: pytest.CaptureFixture[str], whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tiny/sft` is for `train`, `eval` and a reward what it is for `sample`; what is not there is no hub name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiny").symlink_to(whole.run)
    prompts = f"prompts={whole.run}/world/prompts.jsonl"
    assert (
        main(["eval", "models=[tiny/sft]", "reward=tiny/reward", prompts, "limit=2", "max_tokens=4", "max_prompt=48"])
        == 0
    )
    capsys.readouterr()
    for words in (
        ["eval", "models=[tiny/stf]", prompts],
        ["train", "dpo", "model=tiny/stf", f"data={whole.run}/label/rankings.groups.jsonl"],
        ["sample", "tiny/sft", "-p", "Hi", "--infer", "best_of_n", "--reward", "tiny/rewrad"],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "no such stage or path" in said or "there is no such model" in said


def test_a_rule_of_the_command_line_is_checked_like_that_of_a_recipe(
    capsys: pytest.CaptureFixture[str], whole: Whole
) -> None:
    words = ["sample", str(whole.run / "sft"), "-p", "Hi", "--infer", "best_of_n"]
    assert main([*words, "--reward", "{from: rule, max_wrods: 3}"]) == 2
    assert "unknown setting 'reward.max_wrods'\n  to do:    did you mean 'max_words'?" in capsys.readouterr().err
    assert main(words) == 2
    assert "a posterior needs a reward" in capsys.readouterr().err

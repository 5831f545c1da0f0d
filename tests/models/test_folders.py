"""Folders as people bring them: everything that loads is saved again, and what does not fit is named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models import tiny
from tiltyard.batch.forest import pack
from tiltyard.cli import main
from tiltyard.errors import MissingDependency, ModelError
from tiltyard.models.load import (
    check_saving,
    load_language_model,
    load_scalar_model,
    load_tokenizer,
    save_model,
)
from tiltyard.models.saving import SaveDType
from tiltyard.sampling import SampleSettings, sample
from tiltyard.types import Group, Message, Prompt, Response

V = 512
WIDTHS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def written(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A folder as transformers writes it, not this package."""
    tiny.causal(family, dtype=dtype, vocab_size=V, **changes).save_pretrained(folder)
    tiny.chat().tokenizer.save_pretrained(folder)
    return folder


def groups() -> list[Group]:
    prompt = Prompt(messages=(Message("user", "what is the capital?"),))
    return tiny.chat().encode_groups([Group(prompt, (Response(text="the cat sat"), Response(text="yes")))])


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(folder: Path) -> Any:
    return load_language_model(folder, device="cpu")


@pytest.mark.parametrize("width", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_load_save_load_is_the_same_model(family: str, width: str, tmp_path: Path) -> None:
    """Same numbers, width and end tokens, here and in transformers; for every family of the suite."""
    source = written(tmp_path / "source", family, WIDTHS[width])
    declared = {2, 7, 9}
    edit(source / "generation_config.json", eos_token_id=[9, 7], do_sample=False, temperature=0.6, top_p=0.9)
    model = load(source)
    check_saving(model)
    save_model(model, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.logp_R(pack(groups()))[0].equal(model.logp_R(pack(groups()))[0])
    assert {7, 9} | {model.chat.eos_id} <= again.chat.stop_ids == model.chat.stop_ids
    assert "temperature=0.6, top_p=0.9" in " ".join(model.origin.notes)
    assert not any("left out" in line for line in again.origin.notes)
    before, after = (load_file(path / "model.safetensors") for path in (source, tmp_path / "saved"))
    assert {k: (t.dtype, t.shape) for k, t in after.items()} == {k: (t.dtype, t.shape) for k, t in before.items()}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == width
    theirs = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (source, tmp_path / "saved")]
    ids = torch.tensor([[5, 6, 11, 3]])
    with torch.no_grad():
        old, new = (module(input_ids=ids, use_cache=False).logits for module in theirs)
    assert old.equal(new)
    assert set(theirs[1].generation_config.eos_token_id) == model.chat.stop_ids >= declared - {2}


def test_sampling_stops_at_every_declared_token(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    declared = list(range(5, 120))
    edit(source / "generation_config.json", eos_token_id=declared)
    model = load(source)
    assert model.chat.stop_ids >= set(declared)
    prompts = [group.prompt for group in groups()]
    answers = [r for g in sample(model, prompts, 16, SampleSettings(max_tokens=24), seed=1) for r in g.responses]
    assert all(not set(r.ids[:-1]) & model.chat.stop_ids for r in answers)
    ended = {r.ids[-1] for r in answers if r.finish != "length"}
    assert ended & set(declared) - {model.chat.eos_id}


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_a_setting_has_another_width_saved(asked: SaveDType, tmp_path: Path) -> None:
    model = load(written(tmp_path / "source", dtype=torch.bfloat16))
    save_model(model, tmp_path / "saved", dtype=asked)
    assert {t.dtype for t in load_file(tmp_path / "saved" / "model.safetensors").values()} == {WIDTHS[asked]}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == asked
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto").dtype == WIDTHS[asked]


def test_single_tensors_keep_the_width_that_they_had(tmp_path: Path) -> None:
    source = written(tmp_path / "source", dtype=torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-4
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    save_model(load(source), tmp_path / "saved")
    found = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(found[name].equal(tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_a_scalar_head_is_saved_in_full(tmp_path: Path) -> None:
    model = load_scalar_model(written(tmp_path / "source", dtype=torch.bfloat16), device="cpu")
    torch.nn.init.normal_(model.head.weight)
    save_model(model, tmp_path / "saved")
    found = load_file(tmp_path / "saved" / "model.safetensors")
    assert found.pop("score.weight").equal(model.head.weight.detach())
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert (
        load_scalar_model(tmp_path / "saved", device="cpu").score_B(pack(groups())).equal(model.score_B(pack(groups())))
    )


@pytest.mark.parametrize(
    ("fields", "dropped"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1}, 4),
        ({"output_scores": True, "length_penalty": 0.5}, 2),
        ({"pad_token_id": -1}, 1),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, 0),
        ({"max_new_tokens": 5, "repetition_penalty": 1.1}, 0),
    ],
)
def test_generation_settings_can_be_saved_again(fields: dict[str, Any], dropped: int, tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    edit(source / "generation_config.json", **fields)
    model = load(source)
    check_saving(model)
    save_model(model, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    kept = {key: value for key, value in fields.items() if saved.get(key) == value}
    assert len(fields) - len(kept) == dropped
    said = " ".join(model.origin.notes)
    assert all(f"{key}=" in said for key in fields if key not in kept)


@pytest.mark.parametrize("fields", [{"num_return_sequences": 3}, {"early_stopping": "soon"}])
def test_generation_settings_that_nobody_reads_are_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    edit(source / "generation_config.json", **fields)
    with pytest.raises(ModelError, match=next(iter(fields))):
        load(source)


def test_what_cannot_be_saved_is_refused_before_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(written(tmp_path / "source"))

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(type(model.chat.tokenizer), "save_pretrained", refuse)
    with pytest.raises(ModelError, match="can be loaded and not be saved"):
        check_saving(model)


# ---------------------------------------------------------------------------------------------- what does not fit


def test_surplus_layers_are_named(tmp_path: Path) -> None:
    source = written(tmp_path / "source", num_hidden_layers=3)
    edit(source / "config.json", num_hidden_layers=2)
    for load_one in (load, lambda path: load_scalar_model(path, device="cpu")):
        with pytest.raises(ModelError, match=r"9 weights .* used by no part[\s\S]*layers\.2\.input_layernorm"):
            load_one(source)


def test_missing_layers_are_named(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    edit(source / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"9 weights .* not in its files[\s\S]*layers\.2"):
        load(source)


def test_the_head_of_another_task_is_left_out_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "source")
    tensors = load_file(source / "model.safetensors") | {"v_head.summary.weight": torch.zeros(1, 32)}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert "v_head.summary.weight" in " ".join(load(source).origin.notes)
    assert main(["sample", str(source), "-p", "yes", "--max-tokens", "2", "--device", "cpu"]) == 0
    assert "v_head.summary.weight" in capsys.readouterr().err


def test_sizes_that_differ_are_named_with_both_shapes(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    edit(source / "config.json", vocab_size=V - 3)
    with pytest.raises(ModelError, match=r"embed_tokens.weight \(512, 32\)[\s\S]*embed_tokens.weight \(509, 32\)"):
        load(source)


@pytest.mark.parametrize("special", [False, True])
def test_tokens_without_an_embedding(special: bool, tmp_path: Path) -> None:
    """A word without an embedding is refused; a special token that no text becomes is named."""
    source = written(tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([f"<idle{i}>" for i in range(V - len(tokenizer))])
    tokenizer.add_tokens(["lamp"], special_tokens=special)
    tokenizer.save_pretrained(source)
    if special:
        assert "lamp" in " ".join(load(source).origin.notes)
        return
    for load_one in (load, lambda path: load_scalar_model(path, device="cpu")):
        with pytest.raises(ModelError, match=r"1 token has no embedding[\s\S]*lamp \(512\)[\s\S]*below 512"):
            load_one(source)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    pointer = b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 123\n"
    shutil.copytree(source, tmp_path / "pointer")
    (tmp_path / "pointer" / "model.safetensors").write_bytes(pointer)
    with pytest.raises(ModelError, match=r"model.safetensors: the file is a Git LFS pointer"):
        load(tmp_path / "pointer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(ModelError, match=r"no tokenizer[\s\S]*expected: tokenizer.json"):
        load(source)
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(source)


def test_a_quantised_model_without_its_package(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    edit(source / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    with pytest.raises(MissingDependency, match="needs a package that is not installed"):
        load(source)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_of_the_users_umask(umask: int, tmp_path: Path) -> None:
    model = load(written(tmp_path / "source"))
    before = os.umask(umask)
    try:
        save_model(model, tmp_path / "saved")
    finally:
        os.umask(before)
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o777 & ~umask
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()} == {0o666 & ~umask}

"""The table of memory: its parts against modules and optimisers that exist, its sums, and what a dry run prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch.autograd.graph import saved_tensors_hooks

from tiltyard import from_scratch, train_tokenizer
from tiltyard.batch.forest import pack
from tiltyard.cli import main
from tiltyard.models.load import PRESETS, save_model
from tiltyard.stages.footprint import ONE, Layout, Work, engine_bytes, memory_of, parts_of, table
from tiltyard.stages.memory import UNFUSED, Shape, activations
from tiltyard.types import Group, Prompt, Response

TOKENIZER = train_tokenizer((f"word{i} and number {i * 7}" for i in range(2000)), 512)
BIG = Shape.of(128256, 4096, 32, 32, 8, 14336, tied=False)
USUAL = {"vocab_size": 500, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
MORE = {"num_key_value_heads": 2, "intermediate_size": 80}
CONFIGS = {
    "llama": hf.LlamaConfig(**USUAL, **MORE),
    "tied": hf.LlamaConfig(**USUAL, **MORE, tie_word_embeddings=True),
    "qwen2": hf.Qwen2Config(**USUAL, **MORE),
    "qwen3": hf.Qwen3Config(**USUAL, **MORE, head_dim=32),
    "gemma3": hf.Gemma3TextConfig(**USUAL, **MORE, head_dim=16),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_shape_is_read_from_a_config(name: str) -> None:
    """Against transformers' own modules; biases and norms of queries and keys are left out."""
    shape = Shape.read(json.loads(CONFIGS[name].to_json_string(use_diff=False)))
    with torch.device("meta"):
        whole = hf.AutoModelForCausalLM.from_config(CONFIGS[name])
        CONFIGS[name].num_labels = 1
        scalar = hf.AutoModelForSequenceClassification.from_config(CONFIGS[name])
    assert shape.parameters == pytest.approx(sum(p.numel() for p in whole.parameters()), rel=0.01)
    assert shape.scalar().parameters == pytest.approx(sum(p.numel() for p in scalar.parameters()), rel=0.01)
    assert shape.queries == whole.get_submodule("model.layers.0.self_attn.q_proj").out_features
    assert shape.keys == whole.get_submodule("model.layers.0.self_attn.k_proj").out_features


def test_known_models_have_their_published_sizes() -> None:
    """Qwen2.5-0.5B 0.49B, Llama 3.1 8B 8.03B and 70B 70.6B."""
    assert Shape.of(151936, 896, 24, 14, 2, 4864).parameters == pytest.approx(0.494e9, rel=2e-3)
    assert BIG.parameters == pytest.approx(8.030e9, rel=1e-3)
    large = Shape.of(128256, 8192, 80, 64, 8, 28672, tied=False)
    assert large.parameters == pytest.approx(70.55e9, rel=1e-3)


def test_weights_gradients_and_moments_are_those_of_torch() -> None:
    model = from_scratch("1m", TOKENIZER)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weights = sum(p.nbytes for p in model.parameters())
    moments = sum(state[k].nbytes for state in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq"))
    found = {p.what: p.bytes for p in parts_of(Work({"policy": Shape.of(len(TOKENIZER), *PRESETS["1m"])}, {}, 8, 1))}
    assert found["weights"] == found["gradients"] == pytest.approx(weights, rel=0.02)
    assert found["moments"] == pytest.approx(moments, rel=0.02)


def test_what_autocast_stores_is_counted() -> None:
    plain = from_scratch("1m", TOKENIZER)
    model = type(plain)(plain.module, plain.chat, "bfloat16")
    model.use_backend(replace(model.backend, ops="torch", linear="mkl", decoder="modules"))  # as on a GPU
    model.module.train()
    ids = [tuple((7 * i + 3 * k) % 300 + 5 for k in range(96)) for i in range(24)]
    forest = pack([Group(Prompt(ids=x[:64]), (Response(ids=x), Response(ids=x[::-1]))) for x in ids])
    weights = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        out = model.logp_R(forest)[0]
    found = sum(n for at, n in kept.items() if at not in weights)
    del out
    shape = Shape.of(len(TOKENIZER), *PRESETS["1m"])
    work = Work({"policy": shape}, {}, len(forest.ids_T), 1, half=True)
    parts = {part.what: part.bytes for part in parts_of(work)}
    assert parts["activations"] == activations(shape, work.tokens, 4, fused=False, recomputed=False, half=True)
    assert parts["activations"] / 1.2 + parts["weights in bfloat16"] == pytest.approx(found, rel=0.25)


def test_a_shard_is_its_share_and_the_shares_are_the_whole() -> None:
    work = Work({"policy": BIG, "value": BIG.scalar()}, {"ref": BIG}, 2048, 8, responses=64, slots=32, length=100)
    whole = {
        (p.role, p.what): p.bytes for p in parts_of(work) if p.role not in ("sampling", "loading", "without gradient")
    }
    for number in (2, 8, 64):
        shard = {
            (p.role, p.what): p.bytes
            for p in parts_of(work, Layout(number, True))
            if p.role not in ("sampling", "loading", "without gradient")
        }
        for key, size in whole.items():
            assert shard[key] * (1 if key[0] == "a pass" else number) == pytest.approx(size)
        two_blocks = 4 * (3 * BIG.block + 2 * BIG.ends)
        assert shard["a pass", "gathered weights"] == two_blocks
    peaks = [memory_of(work, layout).total for layout in (ONE, Layout(2, True), Layout(8, True), Layout(64, True))]
    assert peaks == sorted(peaks, reverse=True)
    assert memory_of(work, Layout(8)).weights == memory_of(work).weights  # replicated: no less
    found = {p.role: p.bytes for p in parts_of(work, Layout(8)) if p.when == "reducing"}
    assert found["between processes"] == 2 * 4 * (BIG.parameters + BIG.scalar().parameters)
    large = work._replace(responses=0)
    assert memory_of(large, Layout(8)).total == pytest.approx(memory_of(large).weights + found["between processes"])
    sampled = work._replace(trained={"policy": BIG}, tokens=1, slots=4096, responses=4096, length=9000)
    assert memory_of(sampled, Layout(8)).cache < memory_of(sampled).cache  # but each decodes its own responses


def test_a_sharded_run_gathers_blocks_and_has_a_whole_policy_while_it_samples() -> None:
    offline = Work({"policy": BIG}, {"ref": BIG}, 64, 8)
    prepared = offline._replace(prepares=True)
    many = Layout(64, True)
    whole = 2 * 4 * BIG.parameters
    loaded = {(p.role, p.what): p.bytes for p in parts_of(offline, many)}["loading", "ends, a block and the shares"]
    assert loaded == pytest.approx(4 * (2 * BIG.ends + BIG.block) + whole / 64)
    assert memory_of(offline, many).total < 0.5 * whole
    assert memory_of(prepared).total == memory_of(offline).total
    adapted = Work({"policy": BIG}, {}, 64, 8, backbone=BIG, rank=8)
    found = {(p.role, p.what): p.bytes for p in parts_of(adapted, many)}
    assert found["saving", "whole weights"] == 4 * BIG.parameters
    assert memory_of(adapted, many).total == pytest.approx(4 * BIG.parameters)
    half = offline._replace(half=True)
    copies = [
        {p.what: p.bytes for p in parts_of(half._replace(recomputed=recomputed), layout)}["weights in bfloat16"]
        for recomputed, layout in ((True, many), (False, many), (True, ONE))
    ]
    assert copies == [2 * (BIG.block + BIG.ends), 2 * BIG.parameters, 2 * BIG.parameters]
    pass_of_both = 4 * 2 * (BIG.block + BIG.ends)
    found = {(p.role, p.what): p.bytes for p in parts_of(prepared, many)}
    assert found["without gradient", "gathered weights"] == pass_of_both < 0.3 * whole
    sampled = prepared._replace(responses=64, slots=8, length=10, frozen={"ref": BIG, "reward": BIG.scalar()})
    found = {(p.role, p.what): p.bytes for p in parts_of(sampled, many)}
    assert found["sampling", "gathered weights"] == 4 * BIG.parameters
    assert ("sampling", "decoder's copy") not in found
    beside = {(p.role, p.what): p.bytes for p in parts_of(sampled._replace(engine=2), many)}
    assert beside["without gradient", "gathered weights"] == pass_of_both
    narrow = {(p.role, p.what): p.bytes for p in parts_of(prepared._replace(gathered=2, half=True), many)}
    assert narrow["without gradient", "gathered weights"] == pass_of_both / 2
    assert narrow["a pass", "gathered weights"] == 2 * (3 * BIG.block + 2 * BIG.ends)
    assert ("a pass", "weights in bfloat16") not in narrow


def test_the_blocks_of_a_sharded_run_are_not_fused() -> None:
    """FSDP2 calls a block as a module, which the kernels leave alone."""
    work = Work({"policy": BIG}, {}, 64, 8, fused=True)
    stored = [next(p.bytes for p in parts_of(work, one) if p.what == "activations") for one in (ONE, Layout(8, True))]
    assert stored[1] == pytest.approx(UNFUSED * stored[0])


def test_adapters_and_four_bits() -> None:
    work = Work({"policy": BIG}, {}, 2048, 8, backbone=BIG, rank=16, half=True)
    found = {(p.role, p.what): p.bytes for p in parts_of(work)}
    assert found["policy", "adapters"] / found["backbone", "weights"] < 0.01
    assert found["policy", "moments"] == 2 * found["policy", "gradients"]
    small = {(p.role, p.what): p.bytes for p in parts_of(work._replace(four_bits=True))}
    assert 4 < found["backbone", "weights"] / small["backbone", "weights"] < 8
    assert ("a pass", "weights in bfloat16") not in found


def test_an_engine_takes_the_decoder_out_of_the_processes() -> None:
    own = Work({"policy": BIG}, {}, 2048, 8, responses=64, slots=32, length=100)
    beside = own._replace(engine=2)
    assert memory_of(own).cache == pytest.approx(4 * (BIG.parameters + 2 * 3200 * 1024 * 32))
    assert memory_of(beside).cache == 0
    assert engine_bytes(beside) == (2 * BIG.parameters, 2 * 2 * 3200 * 1024 * 32)
    rows = table(beside, [ONE, Layout(8, True)])
    assert [len(row) for row in rows[:-1]] == [len(rows[0])] * (len(rows) - 1)
    assert rows[-1].startswith("vLLM's engine, beside them, GiB: weights 15.0, keys and values 0.39 of 32 responses")
    assert rows[-2].split()[0] == "peak"


def test_a_dry_run_prints_it_for_a_model_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of the model but config.json and the tokenizer is there."""
    save_model(from_scratch("1m", TOKENIZER), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    config |= {"intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False, "head_dim": 128}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "one", "chosen": "two", "rejected": "three"}\n' * 4)
    words = ["train", "dpo", f"model={tmp_path / 'model'}", f"data={tmp_path / 'pairs.jsonl'}", "steps=1", "device=cpu"]
    assert main([*words, "--runs", str(tmp_path / "runs"), "--dry-run"]) == 2
    told = capsys.readouterr()
    rows = {line.split("  ")[1].removeprefix("memory: ").strip(): line.split()[-3:] for line in told.out.splitlines()}
    assert rows["policy: weights"] == ["262.8", "32.9", "4.1"]
    assert rows["policy: moments"] == ["525.7", "65.7", "8.2"]
    assert "there is too little memory for the models of this stage" in told.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("world", "groups", "told"), [(4, 64, ""), (3, 64, "do not divide 64"), (8, 5, "3 of 8 have no group")]
)
def test_processes_that_do_not_divide_the_groups_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    world: int,
    groups: int,
    told: str,
) -> None:
    for name, value in {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    save_model(from_scratch("1m", TOKENIZER), tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "one", "chosen": "two", "rejected": "three"}\n' * 4)
    words = ["train", "dpo", f"model={tmp_path / 'model'}", f"data={tmp_path / 'pairs.jsonl'}", "steps=1", "device=cpu"]
    assert (
        main([*words, f"prompts_per_step={groups}", "shard=true", "--runs", str(tmp_path / "runs"), "--dry-run"]) == 0
    )
    out = " ".join(capsys.readouterr().out.split())
    assert ("groups over processes:" in out) == bool(told)
    assert told in out
    assert f"sharded over {world}" in out


@pytest.mark.parametrize("rank", [0, 4])
def test_sampling_ahead_holds_copies_and_the_cache_while_it_trains(rank: int) -> None:
    """One copy for the sampler and one a version that waits, of what is trained; the cache is there all the time."""
    shape = Shape.of(512, 64, 2, 4, 4, 128)
    adapted = {"backbone": shape, "rank": rank} if rank else {}
    work = Work({"policy": shape}, {}, 100, 1, responses=8, slots=8, length=20, **adapted)  # type: ignore[arg-type]
    later = work._replace(ahead=2)
    own = {part.what: part.bytes for part in parts_of(later)}
    trained = own["adapters"] if rank else own["weights"]
    assert own["copies of the trained weights"] == pytest.approx(3 * trained)
    both = own["decoder's copy"] + own["keys and values"]
    before, after = memory_of(work), memory_of(later)
    assert after.cache < before.cache
    assert after.weights - before.weights == pytest.approx(3 * trained + both)

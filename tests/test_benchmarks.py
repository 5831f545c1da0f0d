"""The benchmark against peers: its floors, its reading of what peers print, its ratios and verdicts. No timed test."""

from __future__ import annotations

import json
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from benchmarks import scaling
from benchmarks.speed import inputs, machine, ours, peers, rows, smol, table
from benchmarks.speed.floor import Shape, Tokens, flops, forward
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 97,
}
SHAPE = Shape.of(CONFIG)


@pytest.mark.parametrize("length", [1, 9])
def test_the_floor_is_what_torch_counts_of_a_llama(length: int) -> None:
    """Attention aside: torch counts the whole square of queries and keys, the floor what a causal mask leaves."""
    module = LlamaForCausalLM(LlamaConfig(**CONFIG, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    tokens = Tokens.of([(0, [length])])
    square = SHAPE.pair * length * length
    assert counter.get_total_flops() == forward(SHAPE, tokens) - SHAPE.pair * tokens.pairs + square


def test_attention_pairs_are_counted_one_by_one() -> None:
    """Every token meets itself and what stands before it on its own branch."""
    prompt, answers = 3, [2, 4]
    met = sum(range(1, prompt + 1)) + sum(prompt + i for a in answers for i in range(1, a + 1))
    tokens = Tokens.of([(prompt, answers)])
    assert (tokens.tree, tokens.scored, tokens.pairs) == (9, 6, met)
    assert (tokens * 2).pairs == 2 * met


def test_a_backward_pass_is_two_forward_passes() -> None:
    tokens = Tokens.of([(3, [2, 4])])
    once = forward(SHAPE, tokens)
    assert flops(SHAPE, tokens, {"train": 1.0, "logp": 1.0}) == pytest.approx(4 * once)
    assert flops(SHAPE, tokens, {"train_score": 1.0}) == pytest.approx(3 * forward(SHAPE, tokens, head=False))
    assert once - forward(SHAPE, tokens, head=False) == 2 * 32 * 97 * 6


def test_lengths_are_those_of_the_work() -> None:
    pairs = [{"prompt_ids": [1] * 4, "chosen_ids": [1] * 5, "rejected_ids": [1] * 6}]
    found = {data: inputs.tokens_of(pairs, data, 2, 128) for data in ("pairs", "texts", "sampled")}
    assert {k: (t.tree, t.scored) for k, t in found.items()} == {
        "pairs": (15, 11),
        "texts": (9, 8),
        "sampled": (260, 256),
    }


# ---------------------------------------------------------------------------------------------------------- the peers

TRL = """=== dpo bench-12m  {'task': 'dpo'}
versions trl 1.16.0 transformers 5.23.0 torch 2.13.0+cpu | import s 9.1 build s 1.2 | waited for quiet 3 | foreign cpu \
per step [0.5, 0.01, 0.2] clean 9 of 10
params 8425728 median s/step 2.616 mean 2.631 min 2.500 max 2.900 first 3.100 own cpu util 0.98 sys share 0.17
phases s/step {'policy.fwd_grad': 0.9, 'backward': 1.3} | counts {'backward': 1.0}
peak RSS MiB 2700 train_total_s 33.0
Traceback (most recent call last):
TypeError: unsupported operand type(s) for +: 'int' and 'str'
"""
HF = """rep tokens 4096 s 3.690 tok/s 1110 foreign 0.01
=== HF generate {'mode': 'generate'} torch 2.13.0 transformers 5.23.0
prompt tokens 1000 padded 2000 start s 3.00 warm s 0.20 median tok/s 1110 best 1120 ms/decode step 28.80 RSS MiB 555
"""
VLLM = """n 256 tokens 32768 s 9.6 tok/s 3397 foreign(if inproc) 0.01
=== vLLM 0.32.0 {'dtype': 'float32'} torch 2.13.0 n 256 median tok/s 3397 best 3400 import s 5.0 RSS MiB self 4979 \
children 12
"""


def test_what_trl_printed_is_read_also_where_its_script_fails_afterwards() -> None:
    found = peers.read_trl(TRL)
    assert (found["seconds"], found["rss_mib"], found["clean"]) == (2.616, 2700, "9 of 10")
    assert found["versions"] == {"trl": "1.16.0", "transformers": "5.23.0", "torch": "2.13.0+cpu"}


def test_cpu_seconds_are_read_or_follow_from_the_share_of_two_cores() -> None:
    assert peers.read_trl(TRL)["cpu_seconds"] == pytest.approx(2 * 2.631 * 0.98)
    ours_of = "median s/step 2.5000 cpu s/step 4.2500 of 3 steps\npeak RSS MiB 100"
    assert (peers.read_trl(ours_of)["seconds"], peers.read_trl(ours_of)["cpu_seconds"]) == (2.5, 4.25)
    assert "cpu_seconds" not in peers.read_sampling(HF)


def test_our_script_is_started_for_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the folder of its inputs, the steps and the threads."""
    python = tmp_path / "trl/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    seen = {}

    def run(command, **how):
        seen.update(command=command, env=how["env"])
        return subprocess.CompletedProcess(command, 0, "median s/step 1.0 cpu s/step 2.0\npeak RSS MiB 3", "")

    monkeypatch.setattr(subprocess, "run", run)
    row = next(row for row in smol.rows(small=True) if row.name == "smol-dpo-lora-bf16")
    found = peers.measure(row.peer, Path("scripts"), tmp_path, tuned=False, steps=2, threads=1)
    assert found["cpu_seconds"] == 2
    assert Path(seen["command"][1]).name == "peer_side.py"
    assert Path(seen["command"][1]).exists()
    assert seen["command"][-5:] == ["--lora", "--steps", "2", "--threads", "1"]
    assert seen["env"]["PEERS_WORK"] == str(tmp_path / "smol")


def test_what_samplers_printed_is_read() -> None:
    hf, vllm = peers.read_sampling(HF), peers.read_sampling(VLLM)
    assert (hf["seconds"], hf["rss_mib"]) == (pytest.approx(4096 / 1110), 555)
    assert (vllm["seconds"], vllm["rss_mib"]) == (pytest.approx(32768 / 3397), 4979)
    assert hf["versions"] == {"torch": "2.13.0", "transformers": "5.23.0"}
    assert vllm["versions"] == {"vllm": "0.32.0", "torch": "2.13.0"}


@pytest.mark.parametrize(("read", "text"), [(peers.read_trl, "killed"), (peers.read_sampling, "killed")])
def test_a_peer_that_printed_nothing_was_not_measured(read, text: str) -> None:
    with pytest.raises(ValueError, match=r"no (median|answers)"):
        read(text)


def test_a_peer_without_environment_was_not_measured(tmp_path: Path) -> None:
    assert "no folder of peers' scripts" in peers.set_up(tmp_path / "absent", tmp_path)
    with pytest.raises(peers.Unmeasured, match="no environment for TRL"):
        peers.measure(rows.ROWS[0].peer, tmp_path, tmp_path, tuned=False)


def test_a_peer_is_started_as_its_scripts_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own Python, its words, an environment without anybody's settings of threads and allocator."""
    python = tmp_path / "trl/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = {}

    def run(command, **how):
        seen.update(command=command, env=how["env"])
        return subprocess.CompletedProcess(command, 1, TRL, "")

    monkeypatch.setattr(subprocess, "run", run)
    peer = rows.trl("ppo", path="trl112")
    found = peers.measure(peer, Path("scripts"), tmp_path, tuned=True, steps=4)
    assert found["seconds"] == 2.616
    assert seen["command"][1:] == ["scripts/bench_trl.py", "--task", "ppo", "--model", "bench-12m", "--steps", "4"]
    assert {k: v for k, v in seen["env"].items() if k.startswith(("MALLOC_", "OMP_"))} == peers.TUNED
    assert (seen["env"]["PYTHONPATH"], seen["env"]["PEERS_WORK"]) == (str(tmp_path / "trl112"), str(tmp_path))


# --------------------------------------------------------------------------------------------------------- the machine


def steps_of(*ends: tuple[float, float, float], skip: int) -> dict:
    steps = machine.Steps(skip)
    steps.marks = list(ends)
    return steps.result()


def test_the_median_leaves_out_the_warm_up_and_steps_with_others() -> None:
    cores = machine.cores()
    seconds, foreign = [9.0, 9.0, 1.0, 2.0, 5.0], [0.0, 0.0, 0.0, 0.01, 0.5]
    marks = [(0.0, 0.0, 0.0)]
    for took, share in zip(seconds, foreign, strict=True):
        now, busy, own = marks[-1]
        marks.append((now + took, busy + took * (1 + share * cores), own + took))
    found = steps_of(*marks, skip=2)
    assert found["seconds"] == 1.5
    assert found["clean"] == "2 of 3"
    assert found["foreign"] == pytest.approx(foreign, abs=1e-3)
    assert found["steps"] == pytest.approx([b[0] - a[0] for a, b in pairwise(marks)])


# ----------------------------------------------------------------------------------------------------------- the table

FLOOR = {"gflop": 100.0, "gemm_gflops": 200.0, "best_gflops": 400.0}


def found_of(row: rows.Row, ours: float, peer: float, rss: float) -> table.Found:
    mine = {"as_it_comes": {"seconds": ours, "rss_mib": rss, "versions": {"tiltyard": "0"}}}
    mine["no_tune"] = {"seconds": 2 * ours, "rss_mib": rss, "versions": {}}
    theirs = {"as_it_comes": {"seconds": peer, "rss_mib": 1000.0, "versions": {"trl": "1"}}}
    theirs["tuned"] = {"seconds": peer / 2, "rss_mib": 1100.0, "versions": {"trl": "1"}}
    return table.record(row, mine, theirs, FLOOR, {})


def test_ratios_are_the_peer_s_time_over_ours() -> None:
    found = found_of(rows.ROWS[0], ours=1.0, peer=3.0, rss=400.0)
    keys = {"work", "ours", "peer", "ratio", "peak_rss_ratio", "floor", "versions"}
    assert keys <= set(found)
    assert (found["ratio"], found["ratio_both_tuned"], found["ratio_neither_tuned"]) == (3.0, 1.5, 1.5)
    assert found["peak_rss_ratio"] == 0.4
    assert (found["floor"]["seconds"], found["share_of_floor"], found["share_of_best"]) == (0.5, 0.5, 0.25)
    assert table.verdicts(found) == {"ratio": True, "peak_rss_ratio": True}


def test_what_is_missed_is_said() -> None:
    big = next(row for row in rows.ROWS if row.name == "dpo-60m")
    found = found_of(big, ours=1.0, peer=2.0, rss=600.0)
    assert table.verdicts(found) == {"ratio": False, "peak_rss_ratio": False, "share_of_floor": False}
    alone = table.record(big, {"as_it_comes": {"seconds": 0.5, "rss_mib": 1.0}}, {}, FLOOR, {"why": "absent"})
    assert table.verdicts(alone) == {"ratio": None, "peak_rss_ratio": None, "share_of_floor": True}


def test_the_table_the_files_and_the_picture(tmp_path: Path) -> None:
    found = [found_of(row, 1.0, 3.0, 400.0) for row in rows.ROWS[:2]]
    found.append(table.record(rows.ROWS[2], {}, {}, FLOOR, {"why": "absent"}))
    console = Console(width=220, record=True, file=(tmp_path / "out").open("w"))
    table.show(found, console)
    text = console.export_text()
    assert "SFT, 8 rows" in text
    assert "reached: 4, missed: 0, not measured: 2" in text
    for row, one in zip(rows.ROWS, found, strict=False):
        table.write(one, tmp_path, row.name)
    assert json.loads((tmp_path / "sft-12m.json").read_text())["ratio"] == 3.0
    table.picture(found, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_rows_have_names_of_their_own_and_are_chosen_by_them() -> None:
    names = [row.name for row in rows.ROWS]
    assert len(set(names)) == len(names) == 15
    assert [row.name for row in rows.chosen("sft, dpo-60m")] == ["sft-12m", "dpo-60m"]
    assert len(rows.chosen("")) == 15
    with pytest.raises(SystemExit, match="no row begins with 'dqo'"):
        rows.chosen("dqo")


def test_rows_of_a_real_model_are_chosen_by_name_alone() -> None:
    real = smol.rows(small=False)
    assert len({row.name for row in (*rows.ROWS, *real)}) == 15 + 14
    assert [row.name for row in rows.chosen("smol-dpo-lora,sft", real)] == [
        "sft-12m",
        "smol-dpo-lora",
        "smol-dpo-lora-bf16",
    ]
    assert rows.chosen("", real) == list(rows.ROWS)
    for row in real:  # both sides are told the same
        said = " ".join(row.peer.words)
        assert (f"--task {row.work.task} " in said, f"--dtype {row.work.dtype} " in said) == (True, True)
        assert ("--lora" in row.peer.words) == ("--lora" in row.work.words) == row.work.lora
        assert f"--batch {row.work.rows or row.work.batch} --tokens {row.work.tokens}" in said
        assert row.groups == (row.work.rows or row.work.batch)


# ------------------------------------------------------------------------------------------------------------- scaling


def points(panel: str, **named: list[float]) -> list[dict]:
    return [{"at": at, **{k: v[i] for k, v in named.items()}} for i, at in enumerate(scaling.PANELS[panel][:3])]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> ours.Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    inputs.make(folder, presets=("1m",), vocabulary=600)
    return ours.Inputs(folder, "bench-1m")


@pytest.mark.parametrize("task", rows.STEPS)
def test_our_side_of_every_row_runs(task: str, given: ours.Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the public API: a name that moved would otherwise be noticed at the next benchmark, hours later."""
    monkeypatch.setattr(ours, "TOKENS", 3)
    monkeypatch.setattr(ours, "VALUE_PROMPTS", 4)
    result = ours.sampled(given, 4, 2, lambda: 0.0) if task == "sample" else ours.trained(task, given, 1, lambda: 0.0)
    assert result["seconds"] > 0
    assert task == "sample" or any(name.startswith("loss") for name in result["last_metrics"])
    assert result["cpu_seconds"] > 0


@pytest.mark.parametrize(("task", "lora"), [("dpo", True), ("grpo", True), ("sft", False), ("sample", False)])
def test_our_side_runs_in_bfloat16_and_with_adapters(task: str, lora: bool, given: ours.Inputs) -> None:
    """Under LoRA the reference is the same backbone without its adapters."""
    same = ours.Inputs(given.path.parents[1], given.path.name, "bfloat16", lora=lora, batch=2, tokens=3)
    result = ours.sampled(same, 4, 2, lambda: 0.0) if task == "sample" else ours.trained(task, same, 1, lambda: 0.0)
    assert result["seconds"] > 0
    if lora:
        policy = same.policy()
        assert same.reference(policy).module is policy.module
        assert not any(p.requires_grad for n, p in policy.module.named_parameters() if "lora_" not in n)


def test_inputs_of_a_real_model(tmp_path: Path, given: ours.Inputs) -> None:
    """The folder itself, a reward model whose scores differ, and pairs of at most that many tokens; made once."""
    whose = inputs.make_real(tmp_path / "smol", given.path, tmp_path / "none", rows=6, longest=20)
    assert whose == "made-up pairs"
    pairs = inputs.read_pairs(tmp_path / "smol")
    assert len(pairs) == len({p["raw_prompt"] for p in pairs}) == 6
    assert max(len(p[key]) for p in pairs for key in ("prompt_ids", "chosen_ids", "rejected_ids")) == 20
    assert (tmp_path / "smol/models/smollm2").resolve() == given.path
    found = ours.Inputs(tmp_path / "smol", "smollm2", batch=2)
    assert found.scalar(trained=False).head.weight.std() > 0.01
    (tmp_path / "smol/pairs.json").write_text("[]")
    assert inputs.make_real(tmp_path / "smol", given.path, tmp_path / "none") == "made-up pairs"
    assert inputs.read_pairs(tmp_path / "smol") == []


def test_what_scaling_is_expected_to_be() -> None:
    """Rows cost nothing, parameters in proportion; a shared prompt is paid once; attention makes long texts dearer."""
    flat = points("rows", us_per_token=[5.0, 6.0, 7.0], peak_mib=[100.0, 120.0, 130.0])
    assert scaling.expected("rows", flat) == {"us_per_token": [5.0] * 3, "peak_mib": [100.0] * 3}
    sizes = points("model", us_per_token=[5.0, 6.0, 8.0], peak_mib=[100.0, 120.0, 300.0], parameters=[1.0, 2.0, 4.0])
    wanted = scaling.expected("model", sizes)
    assert wanted["us_per_token"] == [2.0, 4.0, 8.0]
    assert wanted["peak_mib"] == pytest.approx([100.0, 100 + 200 / 3, 300.0])
    packed = [32.0 * (256 + 128), 32 * 128 + 16 * 256.0, 32 * 128 + 8 * 256.0]
    groups = points("group", us_per_token=[9.0] * 3, peak_mib=[900.0, 700.0, 600.0], packed=packed, tokens=[1.0] * 3)
    wanted = scaling.expected("group", groups)
    assert wanted["us_per_token"][0] == pytest.approx(9.0)
    blocks = [9.0 * (256 / k + 128) / (256 + 128) for k in (1, 2, 4)]  # without attention and the output head
    assert blocks[2] < wanted["us_per_token"][2] < wanted["us_per_token"][1] < 9.0
    assert wanted["peak_mib"][1] == pytest.approx(900 - 300 * (packed[0] - packed[1]) / (packed[0] - packed[2]))
    texts = points("tokens", us_per_token=[9.0] * 3, peak_mib=[300.0, 400.0, 600.0], tokens=[512.0, 1024.0, 2048.0])
    wanted = scaling.expected("tokens", texts)
    assert 9.0 < wanted["us_per_token"][1] < wanted["us_per_token"][2] < 18
    assert wanted["peak_mib"] == [300.0, 400.0, 600.0]
    dearer = [b - a for a, b in pairwise(wanted["us_per_token"])]
    assert dearer[1] == pytest.approx(2 * dearer[0], rel=0.02)  # attention: in proportion to the length


def test_a_picture_of_four_panels(tmp_path: Path) -> None:
    panels = {}
    for panel in scaling.PANELS:
        named = {k: [1.0, 2.0, 3.0] for k in ("us_per_token", "peak_mib", "parameters", "tokens")}
        if panel != "model":
            named.pop("parameters")
        found = points(panel, **named)
        panels[panel] = {"points": found, "expected": scaling.expected(panel, found)}
    scaling.picture(panels, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000

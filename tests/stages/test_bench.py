"""`tiltyard bench`: its parts add up to the whole, its arithmetic is torch's, it writes nothing. No timed test."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tiltyard import cli
from tiltyard.cli import bench
from tiltyard.cli.output import print_bench
from tiltyard.errors import ConfigError
from tiltyard.profiler import REST, Step

METHODS: dict[str, dict[str, Any]] = {
    "sft": {"data": "world/demonstrations_held_out.jsonl", "prompts_per_step": 3},
    "dpo": {"data": "label/rankings.groups.jsonl", "pairs": "all", "prompts_per_step": 2, "ref_cache": False},
    "ppo": {
        "prompts": "world/prompts.jsonl",
        "reward": "reward",
        "prompts_per_step": 2,
        "max_tokens": 6,
        "max_prompt": 48,
    },
}


def values_of(method: str, start: Path) -> dict[str, Any]:
    paths = ("data", "prompts", "reward")
    named = {k: str(start / v) if k in paths else v for k, v in METHODS[method].items()}
    return {"model": str(start / "sft"), "device": "cpu", **named}


# ---------------------------------------------------------------------------------------------------- the measurement


@pytest.fixture(scope="module")
def found(start: Path) -> dict[str, dict[str, Any]]:
    return {method: bench.measure(method, values_of(method, start), steps=2, warmup=1) for method in METHODS}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_parts_add_up_to_the_whole(found, method: str) -> None:
    report = found[method]
    parts = report["parts"]
    assert sum(p["seconds"] for p in parts.values()) == pytest.approx(report["seconds"])
    assert sum(p["share"] for p in parts.values()) == pytest.approx(1)
    assert sum(p["gflop"] for p in parts.values()) == pytest.approx(report["gflop"])
    assert sum(report["steps"]) / 2 == pytest.approx(report["seconds"])
    assert len(report["steps"]) == 2
    for name, part in parts.items():
        inner = sum(seconds for key, seconds in report["within"].items() if key.startswith(f"{name}/"))
        assert inner <= part["seconds"] * (1 + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "idle", "models"),
    [("sft", {"sample", "score"}, 1), ("dpo", {"sample"}, 2), ("ppo", set(), 4)],
)
def test_a_method_takes_time_where_it_works(found, method: str, idle: set[str], models: int) -> None:
    report = found[method]
    assert {name for name, part in report["parts"].items() if not part["seconds"]} == idle
    worked = {name for name, part in report["parts"].items() if part["gflop"]}
    assert worked == {"sample", "score", "forward", "backward"} - idle
    assert report["models_in_memory"] == models
    positive = ("peak_gflops", "share_of_peak", "peak_memory_mib", "parameters", "threads")
    assert all(report[key] > 0 for key in positive)
    speed = report["tokens_per_second"]
    assert speed["trained"] > 0
    assert (speed["sampled"] > 0) == (method == "ppo")


@pytest.mark.slow
def test_a_backward_pass_is_two_forward_passes(found) -> None:
    """Of the blocks and of the output head: 2; its logits are computed again: 1 more of the head; attention: 2.5."""
    parts = found["sft"]["parts"]
    assert 2 < parts["backward"]["gflop"] / parts["forward"]["gflop"] < 2.6


@pytest.mark.slow
def test_nothing_is_written_and_json_is_the_report(start: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    given = values_of("dpo", start)
    words = [
        given["model"],
        "--method",
        "dpo",
        "--data",
        given["data"],
        "pairs=all",
        "prompts_per_step=2",
        "device=cpu",
    ]
    assert cli.main(["bench", *words, "--steps", "1", "--warmup", "0", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["method"], report["device"], len(report["steps"])) == ("dpo", "cpu", 1)
    assert report["models_in_memory"] == 1  # what the reference says was computed before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_table(found, capsys) -> None:
    print_bench(found["ppo"], Console(width=120))
    text = capsys.readouterr().out
    for word in ("sample", "RewardScorer", "OldLogp", "optimiser", "overhead", "tokens a second", "GFLOP/s", "MiB"):
        assert word in text


# -------------------------------------------------------------------------------------------------------- adding it up


def test_steps_are_averaged_and_arithmetic_is_scaled_to_their_tokens() -> None:
    def step(forward: float, score: float, tokens: float, gflop: float = 0.0) -> Step:
        parts = {
            "forward": {"seconds": forward, "gflop": gflop},
            "score/RefLogp": {"seconds": score, "gflop": 0.0},
            REST: {"seconds": 1.0, "gflop": 0.0},
        }
        return Step(parts, {"tokens": tokens, "sampled": 10.0})

    report = bench.summarise([step(2.0, 0.5, 100.0), step(4.0, 1.5, 300.0)], step(9.0, 9.0, 400.0, gflop=8.0), peak=2.0)
    assert {name: p["seconds"] for name, p in report["parts"].items() if p["seconds"]} == {
        "forward": 3.0,
        "score": 1.0,
        REST: 1.0,
    }
    assert report["within"] == {"score/RefLogp": 1.0}
    assert report["steps"] == [3.5, 6.5]
    assert (report["seconds"], report["gflop"]) == (5.0, 4.0)  # 8 GFLOP for 400 tokens: 4 for the mean step's 200
    assert report["parts"]["forward"]["share_of_peak"] == pytest.approx(4.0 / 3.0 / 2.0)
    assert report["share_of_peak"] == pytest.approx(4.0 / 5.0 / 2.0)
    assert report["tokens_per_second"] == {"trained": 40.0, "sampled": 2.0}


def counted(work: Any) -> int:
    counter = bench.FlopCounter(after=1)
    counter.log(0, {})
    torch.ones(3, 3) @ torch.ones(3, 3)  # not yet
    counter.log(1, {})
    try:
        work()
    finally:
        counter.close()
    torch.ones(3, 3) @ torch.ones(3, 3)  # no longer
    return round(counter() * 1e9)


def test_products_in_place_and_of_onednn_are_counted() -> None:
    a, b, c = torch.ones(4, 5), torch.ones(5, 6), torch.zeros(4, 6)
    assert counted(lambda: a @ b) == 2 * 4 * 5 * 6
    assert counted(lambda: c.addmm_(a, b)) == 2 * 4 * 5 * 6
    assert counted(lambda: torch.mm(a, b, out=c)) == 2 * 4 * 5 * 6
    if torch.backends.mkldnn.is_available():
        weight = torch.ones(7, 5)
        assert counted(lambda: torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], "")) == 2 * 4 * 5 * 7


def test_attention_on_the_cpu_is_counted_like_its_products() -> None:
    """The fused kernel, forward and backward, against the same written out (whose backward keeps the weights)."""
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (5, 7, 7))
    fused = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)  # noqa: E731
    plain = lambda: torch.softmax(q @ k.transpose(-1, -2), -1) @ v  # noqa: E731
    once = counted(plain)
    assert once == 2 * math.prod((2, 3, 5, 7, 8 + 8))
    assert counted(fused) == once
    assert counted(lambda: plain().sum().backward()) == 3 * once
    assert counted(lambda: fused().sum().backward()) == 3.5 * once


def test_the_peak_is_a_speed() -> None:
    assert bench.gemm_gflops(torch.device("cpu"), times=1) > 0.1


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("pp", {}, "no training method\n  to do:    did you mean 'ppo'"),
        ("evaluate", {}, "'evaluate' is no training method"),
        ("sft", {"steps": 3}, "bench sets 'steps' itself"),
        ("sft", {"save_every": 3}, "bench sets 'save_every' itself"),
        ("sft", {"bacth": 3}, "unknown setting 'bacth'"),
        ("sft", {}, "the setting 'data' is required"),
    ],
)
def test_wrong_input_is_said(method: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        bench.measure(method, {"model": "owner/name", **values})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("method", "option", "wanted"), [("ppo", "--data", "give it --prompts"), ("dpo", "--prompts", "give it --data")]
)
def test_data_of_the_wrong_kind_is_said(tmp_path: Path, capsys, method: str, option: str, wanted: str) -> None:
    assert cli.main(["bench", str(tmp_path), "--method", method, option, "x.jsonl"]) == 2
    assert wanted in capsys.readouterr().err

"""The checks of a machine with a GPU, tried on a CPU: each runs, finds what is planted, and hides no other one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import resume
from benchmarks.gpu.engine import histogram, measured
from benchmarks.gpu.equal import Pass, as_near, near
from benchmarks.gpu.law import SIGMAS, fit_of, truncated
from benchmarks.gpu.report import Bench, Result
from benchmarks.gpu.shapes import TINY, groups, language
from benchmarks.gpu.steps import PEAKS

from tiltyard import NativeSampler, SampleSettings
from tiltyard.batch.forest import pack
from tiltyard.sampling.distribution import probs_NV

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_script_runs_on_a_cpu(tmp_path: Path) -> None:
    words = ["bash", str(ROOT / "benchmarks/gpu/check.sh"), "--tiny", "--device", "cpu"]
    here = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "WHEELS": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert {one["check"] for one in found} == set(gpu.CHECKS)
    assert not [one for one in found if one["state"] == "FAIL"]
    assert {"dpo, 0M", "grpo, 0M", "ppo, 0M"} <= {one["what"] for one in found}
    not_run = {one["what"] for one in found if one["state"] == "not run"}
    assert {"vLLM", "push by NCCL or IPC", "TRL with vLLM in its process"} <= not_run
    shard = {one["what"]: one for one in found if one["check"] == "shard"}
    assert shard["same loss"]["state"] == "ok"
    assert all(rank["planned_mib"] > 0 for rank in shard["2 processes, sharded"]["numbers"]["ranks"])


def test_an_engine_is_measured_by_its_interface(tmp_path: Path) -> None:
    """The toolkit's sampler in the engine's place, which is as near to the trainer as float32 allows."""
    bench = Bench(torch.device("cpu"), True, tmp_path)
    model = language("Llama", TINY, bench.device)
    model.chat.stop_ids = frozenset({-1})
    found = {one.what: one for one in measured(bench, model, NativeSampler(), TINY[-1])}
    assert len(found["push through a folder"].numbers["pushes"]) == 3
    assert found["sampling"].numbers["engine"] > 0
    for name in ("engine", "toolkit's sampler"):
        assert found[f"mismatch, {name}"].numbers["mean"] < 1e-5
        assert found[f"mismatch, {name}"].numbers["off"] == 0


def test_a_mismatch_is_counted(tmp_path: Path) -> None:
    model = language("Llama", TINY, torch.device("cpu"))
    group = groups([(3, (4, 4))], TINY[-1])[0]
    with torch.no_grad():
        own = model.logp_R(pack([group]))[0].tolist()
    off = [own[0] + 0.2, *own[1:]]
    shifted = [replace(one, logps=tuple(off[4 * i : 4 * i + 4])) for i, one in enumerate(group.responses)]
    _, numbers = histogram(model, [replace(group, responses=tuple(shifted))])
    assert numbers["above_0.1"] == numbers["off"] == 1 / 8
    assert numbers["mean"] == pytest.approx(0.2 / 8, rel=1e-3)


def test_an_error_of_one_check_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def breaks(bench: Bench) -> Iterator[Result]:
        yield Result("breaks", "before", "ok", f"on {bench.device}")
        raise RuntimeError("CUDA error: no kernel image\nand more")

    def stands(bench: Bench) -> Iterator[Result]:
        yield Result("stands", "all", "ok", "fine")

    monkeypatch.setattr(gpu, "CHECKS", {"breaks": breaks, "stands": stands})
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert [(one["check"], one["state"]) for one in results] == [("breaks", "ok"), ("breaks", "FAIL"), ("stands", "ok")]
    assert "RuntimeError: CUDA error: no kernel image | and more (" in capsys.readouterr().out
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--only", "stands"]) == 0
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--seconds", "-1"]) == 0
    assert {one["state"] for one in json.loads((tmp_path / "gpu.json").read_text())["results"]} == {"not run"}
    with pytest.raises(SystemExit):
        gpu.main(["--only", "stand"])


def test_a_gap_of_packed_and_padded_is_found() -> None:
    exact = Pass(torch.tensor([-1.0, -2.0]), [torch.tensor([3.0, 4.0])])
    assert near("Llama", exact, exact).state == "ok"
    assert near("Llama", Pass(exact.logp_R + 1e-3, exact.gradients), exact).state == "FAIL"
    assert near("Llama", Pass(exact.logp_R, [torch.tensor([3.1, 4.0])]), exact).state == "FAIL"
    rounded = Pass(exact.logp_R + 1e-2, [torch.tensor([3.01, 4.0])])
    assert as_near("Llama", rounded, rounded, exact).state == "ok"
    assert as_near("Llama", Pass(exact.logp_R + 3e-2, rounded.gradients), rounded, exact).state == "FAIL"


def test_a_wrong_law_is_found_and_the_right_one_passes() -> None:
    generator = torch.Generator().manual_seed(0)
    law = (2.5 * torch.randn(200, generator=generator)).double().softmax(-1)
    drawn = torch.multinomial(law, 20_000, replacement=True, generator=generator)
    counts = torch.bincount(drawn, minlength=200)
    assert abs(fit_of(counts, law).sigmas) < SIGMAS
    assert fit_of(counts, law.pow(0.95) / law.pow(0.95).sum()).sigmas > SIGMAS
    first = truncated(law, SampleSettings(top_k=40, top_p=0.8))
    assert fit_of(counts, first).sigmas == float("inf")  # truncated tokens were drawn
    assert torch.allclose(first, probs_NV(law.log()[None], SampleSettings(top_k=40, top_p=0.8))[0])


@pytest.mark.parametrize(("shift", "state"), [(0.0, "ok"), (1e-6, "FAIL")])
def test_where_no_algorithm_is_deterministic_the_bits_decide(
    shift: float, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def trained(bench: Bench, method: str, dtype: str, how: str) -> list[torch.Tensor]:
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")
        return [torch.ones(3) + (shift if how.startswith(resume.PARTED) else 0.0)]

    monkeypatch.setattr(resume, "trained", trained)
    found = resume.compared(Bench(torch.device("cpu"), True, tmp_path), "grpo", "float32")
    assert found.state == state
    assert "no deterministic algorithm: cumsum_cuda_kernel" in found.text
    assert not torch.are_deterministic_algorithms_enabled()


def test_of_two_names_of_a_device_the_longer_stands_first() -> None:
    names = list(PEAKS)
    assert not [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a in b]

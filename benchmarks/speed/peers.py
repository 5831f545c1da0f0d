"""The peers' side: their folder of scripts is run as it is, each script in its own environment and process.

The scripts print what they measured; this reads it. They are no part of this repository: where their folder is not
there, the peers' columns say so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.speed import inputs
from benchmarks.speed.rows import Peer

# what the peers' README advises against the page faults that glibc's malloc causes
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}
NUMBER = r"([\d.]+)"


class Unmeasured(Exception):
    """A peer could not be measured; the message says why."""


def environment(work: Path, added: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings of threads and allocator, and the peers' folder in it."""
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("MALLOC_", "OMP_", "PYTHONPATH", "LD_PRELOAD", "TILTYARD_"))
    }
    return {**own, "PEERS_WORK": str(work), "PYTHONWARNINGS": "ignore", **added}


def set_up(scripts: Path, work: Path) -> str:
    """Makes the peers' environments and the common models; why there are none, or nothing."""
    if not (scripts / "setup.sh").exists():
        return f"there is no folder of peers' scripts here ({scripts})"
    log = work / "setup.log"
    if not (work / "trl/bin/python").exists() or not (work / "vllm/bin/python").exists():
        print(f"setting the peers up in {work} (gigabytes; {log})", flush=True)
        with log.open("w") as file:
            command = ["bash", str(scripts / "setup.sh")]
            done = subprocess.run(command, env=environment(work, {}), stdout=file, stderr=file, check=False)
        if done.returncode:
            return f"the peers could not be set up: see {log}"
    return ""


def make_inputs(scripts: Path, work: Path) -> str:
    """The models and pairs, by the peers' own script where it is; in words whose they are."""
    if not inputs.ready(work):
        prepare = scripts / "prep.py"
        command = [str(prepare)] if prepare.exists() else ["-m", "benchmarks.speed.inputs", str(work)]
        with (work / "inputs.log").open("w") as log:
            given = {**os.environ, "PEERS_WORK": str(work)}
            subprocess.run([sys.executable, *command], env=given, stdout=log, stderr=log, check=True)
        (work / "inputs.txt").write_text("the peers'" if prepare.exists() else "made here, random")
    kept = work / "inputs.txt"
    return kept.read_text() if kept.exists() else "the peers'"


def measure(peer: Peer, scripts: Path, work: Path, *, tuned: bool, steps: int = 0, threads: int = 2) -> dict[str, Any]:
    """Runs the peer's script and reads what it printed: seconds a step (or call), peak RSS, versions.

    Raises:
        Unmeasured: its environment is not there, or it printed no result.
    """
    python = work / peer.python / "bin/python"
    if not python.exists():
        raise Unmeasured(f"no environment for {peer.name}")
    added = {**(TUNED if tuned else {}), **({"PYTHONPATH": str(work / peer.path)} if peer.path else {})}
    own = bool(peer.folder)
    count = ("--steps", str(steps)) if steps and (own or peer.script == "bench_trl.py") else ()
    count += ("--threads", str(threads)) if own else ()
    script = Path(__file__).parent / peer.script if own else scripts / peer.script
    command, given = [str(python), str(script), *peer.words, *count], environment(work / peer.folder, added)
    done = subprocess.run(command, cwd=work, env=given, capture_output=True, text=True, check=False)
    log = work / "logs" / f"{peer.key}{'-tuned' if tuned else ''}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(done.stdout + "\n----\n" + done.stderr)
    try:
        trainer = peer.name.startswith("TRL")
        found = read_trl(done.stdout) if trainer else read_sampling(done.stdout)
    except ValueError as error:
        raise Unmeasured(f"{peer.name} gave no result ({error}): see {log}") from error
    return {**found, "log": log.name}


def _number(pattern: str, text: str, what: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(what)
    return float(match.group(1))


def _cpu_seconds(text: str) -> dict[str, float]:
    """CPU seconds of a step, as printed or as the share of two cores over a step; nothing where neither is there."""
    if said := re.search(rf"cpu s/step {NUMBER}", text):
        return {"cpu_seconds": float(said[1])}
    mean, share = re.search(rf"mean {NUMBER}", text), re.search(rf"own cpu util {NUMBER}", text)
    return {"cpu_seconds": 2 * float(mean[1]) * float(share[1])} if mean and share else {}


def read_trl(text: str) -> dict[str, Any]:
    """What bench_trl.py printed."""
    versions = re.search(r"versions trl (\S+) transformers (\S+) torch (\S+)", text)
    clean = re.search(r"clean (\d+) of (\d+)", text)
    phases = re.search(r"phases s/step (\{[^}]*\})", text)
    return {
        "seconds": _number(rf"median s/step {NUMBER}", text, "no median"),
        **_cpu_seconds(text),
        "rss_mib": _number(rf"peak RSS MiB {NUMBER}", text, "no peak RSS"),
        "clean": f"{clean[1]} of {clean[2]}" if clean else "",
        "phases": phases[1] if phases else "",
        "versions": dict(zip(("trl", "transformers", "torch"), versions.groups(), strict=True)) if versions else {},
    }


def read_sampling(text: str) -> dict[str, Any]:
    """What bench_gen_hf.py or bench_gen_vllm.py printed; seconds are those of one whole call."""
    lines = re.findall(r"tokens (\d+) s [\d.]+ tok/s", text)
    if not lines:
        raise ValueError("no answers")
    speed = _number(rf"median tok/s {NUMBER}", text, "no median")
    versions = re.search(r"=== vLLM (\S+)", text)
    torch = re.search(r"torch (\d\S+)", text)
    transformers = re.search(r"transformers (\d\S+)", text)
    named = {"vllm": versions, "torch": torch, "transformers": transformers}
    return {
        "seconds": int(lines[-1]) / speed,
        **_cpu_seconds(text),
        "tokens_per_second": speed,
        "rss_mib": _number(rf"RSS MiB (?:self )?{NUMBER}", text, "no peak RSS"),
        "versions": {name: match[1] for name, match in named.items() if match},
    }

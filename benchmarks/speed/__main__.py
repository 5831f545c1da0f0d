"""Tiltyard against TRL, transformers and vLLM on the same work: speed, memory, and how near the machine's limit it is.

    python -m benchmarks.speed [--only dpo,sample32] [--ours-only] [--reuse-peers] [--steps 3]

Each measurement runs in a process of its own; ours and the peer's take turns, row by row. Results are in
benchmarks/results: a JSON a row and speed.png. Run it from the repository's folder on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.models.__main__ import DEFAULT_CACHE as MODELS
from benchmarks.speed import inputs, peers, smol, table
from benchmarks.speed.floor import Shape, flops
from benchmarks.speed.machine import processor, wait_quiet
from benchmarks.speed.rows import THREADS, Row, Work, chosen
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
PREFERENCES = ROOT.parent / "shared/data/preferences/train.jsonl.gz"


class Bench:
    """One run: what was asked for, and what was measured so far (several rows may share a measurement)."""

    def __init__(self, asked: argparse.Namespace):
        self.asked, self.work = asked, Path(asked.work).resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.scripts = Path(asked.peers).resolve()
        self.console = Console()
        self.known: dict[str, Any] = {}
        self.absent = "not asked for" if asked.ours_only else ""
        if not (asked.ours_only or asked.reuse_peers):
            self.absent = peers.set_up(self.scripts, self.work)
        if self.absent:
            self.console.print(f"peers: {self.absent}", highlight=False)
        self.whose = peers.make_inputs(self.scripts, self.work)
        self.pairs = inputs.read_pairs(self.work)
        self.console.print(f"models and pairs: {self.whose}; {inputs.described(self.pairs)}", highlight=False)

    def ours(self, work: Work, *, tuned: bool) -> dict[str, Any]:
        """One of our measurements, made once; empty (and said) where this version cannot do the work."""
        key = f"{work.name}-{'as-it-comes' if tuned else 'no-tune'}"
        if key not in self.known:
            self.known[key] = self._worker(key, work.words, tuned, self.work / work.folder)
        return self.known[key]

    def _worker(self, key: str, words: list[str], tuned: bool, given: Path) -> dict[str, Any]:
        out = self.work / "logs" / f"ours-{key}.json"
        out.parent.mkdir(exist_ok=True)
        out.unlink(missing_ok=True)
        steps = ["--steps", str(self.asked.steps)] if self.asked.steps else []
        how = [*(["--no-wait"] if self.asked.no_wait else []), *([] if tuned else ["--no-tune"])]
        command = [sys.executable, "-m", "benchmarks.speed.ours", *words, *steps, *how]
        command += ["--inputs", str(given), "--out", str(out), "--threads", str(self.asked.threads)]
        added = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))}
        done = subprocess.run(
            command, cwd=ROOT, env=peers.environment(self.work, added), capture_output=True, text=True, check=False
        )
        if not out.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            self.console.print(f"[red]{key}[/]: {last}", highlight=False, soft_wrap=True)
            return {}
        return json.loads(out.read_text())

    def peer(self, row: Row, *, tuned: bool) -> dict[str, Any]:
        """One of a peer's measurements, made once or read from an earlier run's results."""
        key = f"{row.peer.key}{'-tuned' if tuned else ''}"
        if self.absent or key in self.known:
            return self.known.get(key, {})
        if self.asked.reuse_peers:
            kept = RESULTS / f"{row.name}.json"
            before = json.loads(kept.read_text())["measured"]["peer"] if kept.exists() else {}
            self.known[key] = before.get("tuned" if tuned else "as_it_comes", {})
            return self.known[key]
        if not self.asked.no_wait:
            wait_quiet()
        try:
            how = {"tuned": tuned, "steps": self.asked.steps, "threads": self.asked.threads}
            found = peers.measure(row.peer, self.scripts, self.work, **how)
        except peers.Unmeasured as error:
            self.console.print(f"[red]{error}[/]", highlight=False, soft_wrap=True)
            found = {}
        self.known[key] = found
        return found

    def row(self, row: Row, limits: dict[str, float]) -> table.Found:
        """Both sides of one row, in turns."""
        self.console.print(f"[bold]{row.name}[/] ...", highlight=False)
        whose = self.whose_of(row)
        ours: dict[str, Any] = {}
        peer: dict[str, Any] = {}
        for mine, theirs in (("as_it_comes", "as_it_comes"), ("no_tune", "tuned")):
            if mine == "as_it_comes" or not self.asked.quick:
                if found := self.ours(row.work, tuned=mine == "as_it_comes"):
                    ours[mine] = found
                if found := self.peer(row, tuned=theirs == "tuned"):
                    peer[theirs] = found
        about = {"inputs": whose, "threads": self.asked.threads, "when": time.strftime("%Y-%m-%d %H:%M:%S")}
        about["processor"] = processor()
        about |= {"why": self.absent} if self.absent else {}
        found = table.record(row, ours, peer, self.floor(row, limits), about)
        table.write(found, RESULTS, row.name)
        return found

    def floor(self, row: Row, limits: dict[str, float]) -> dict[str, float]:
        """The row's arithmetic, and the machine's speed."""
        given = self.work / row.work.folder
        shape = Shape.of(json.loads((given / "models" / row.work.model / "config.json").read_text()))
        group = inputs.tokens_of(inputs.read_pairs(given), row.data, row.answers, row.tokens)
        gflop = flops(shape, group * row.groups, row.passes) / 1e9
        return {"gflop": gflop, "tokens": group.tree * row.groups, **limits}

    def whose_of(self, row: Row) -> str:
        """Whose the pairs of a row are; those of a real model are made at its first row.

        Raises:
            SystemExit: the model's folder is not there.
        """
        if not row.work.folder:
            return self.whose
        model = Path(self.asked.smol)
        if not (model / "config.json").exists():
            raise SystemExit(f"there is no model in {model}: python -m benchmarks.models smollm2, or --smol FOLDER")
        return inputs.make_real(self.work / row.work.folder, model, PREFERENCES)

    def limits(self) -> dict[str, float]:
        """What the machine can do at most."""
        found = self._worker("limits", ["--work", "limits"], tuned=True, given=self.work)
        if not found:
            raise SystemExit("the machine's own speed could not be measured")
        return {key: found[key] for key in ("gemm_gflops", "best_gflops", "copy_gbs")}


def main() -> None:
    """Measures the rows that were asked for and shows them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose names begin so, separated by commas")
    parser.add_argument("--ours-only", action="store_true", help="leave the peers out")
    parser.add_argument("--reuse-peers", action="store_true", help="take the peers' numbers from benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="both sides as they come only")
    parser.add_argument("--steps", type=int, default=0, help="steps of every work (0: as many as the peers' scripts)")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until the machine is quiet")
    parser.add_argument("--peers", default=ROOT.parent / "shared/bench/peers", help="the folder of the peers' scripts")
    default = os.environ.get("PEERS_WORK", str(ROOT / "runs/peers"))
    parser.add_argument("--work", default=default, help="environments, models and logs (default: PEERS_WORK)")
    parser.add_argument("--threads", type=int, default=THREADS, help="of both sides (the peers' own scripts take 2)")
    parser.add_argument("--smol", default=MODELS / "smollm2", help="the folder of SmolLM2, for the rows smol-*")
    parser.add_argument(
        "--small", action="store_true", help="rows smol-* of 2 prompts and 32 tokens instead of 8 and 128"
    )
    asked = parser.parse_args()
    rows = chosen(asked.only, smol.rows(asked.small))
    bench = Bench(asked)
    limits = bench.limits()
    found = [bench.row(row, limits) for row in rows]
    table.show(found, Console(width=max(200, bench.console.width)))
    table.picture(found, RESULTS / "speed.png")
    speed = ", ".join(f"{name} {value:.0f}" for name, value in limits.items())
    bench.console.print(
        f"{processor()}; {speed}; every row and speed.png are in {RESULTS}", highlight=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()

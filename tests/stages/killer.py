"""Kills a run with SIGKILL at random moments of every stage, then lets it finish.

`python -m tests.stages.killer RECIPE ROOT SEED KILLS SECONDS.json [OVERRIDE ...]`: each attempt is a forked child of a
process that has done the imports, so that an attempt takes the time of its work alone. Prints how many kills hit each
stage in the middle.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tiltyard.pipeline import run_recipe
from tiltyard.stages.base import load_all


def attempt(recipe: str, root: Path, overrides: Sequence[str] = ()) -> int:
    """Starts the run in a child; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run_recipe(recipe, overrides, runs_root=root, console=Console(file=io.StringIO()))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def finished(child: int) -> bool:
    done, status = os.waitpid(child, os.WNOHANG)
    if done and status:
        raise SystemExit(f"an attempt failed by itself (status {status})")
    return bool(done)


def kill_in(stage: Path, child: int, seconds: float) -> bool:
    """SIGKILL that many seconds after the stage began (or went on); whether it was in the middle of it."""
    began = stage / "config.json"
    before = began.stat().st_mtime_ns if began.exists() else 0
    while not began.exists() or began.stat().st_mtime_ns == before:
        if finished(child):
            return False
        time.sleep(0.002)
    time.sleep(seconds)
    if finished(child):
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return not (stage / "done.json").exists()


def main(recipe: str, root: Path, seed: int, kills: int, seconds: dict[str, float], overrides: Sequence[str]) -> None:
    load_all()
    rng = random.Random(seed)
    hits = dict.fromkeys(seconds, 0)
    run = root / "tiny"
    for name, length in seconds.items():
        left = length
        for _ in range(kills):
            if (run / name / "done.json").exists():
                break
            wait = rng.uniform(0.05, 0.8) * left
            hits[name] += kill_in(run / name, attempt(recipe, root, overrides), wait)
    last = attempt(recipe, root, overrides)
    _, status = os.waitpid(last, 0)
    print(json.dumps(hits))
    sys.exit(1 if status else 0)


if __name__ == "__main__":
    recipe, root, seed, kills, seconds, *overrides = sys.argv[1:]
    main(recipe, Path(root), int(seed), int(kills), json.loads(Path(seconds).read_text()), overrides)

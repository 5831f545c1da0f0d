"""The same model and pairs through Tiltyard and TRL: loss, rewards and gradient norm of a step, and a run of DPO.

    python -m benchmarks.agree MODEL PAIRS [--peers FOLDER] [--only dpo,kto] [--steps 20]
    python -m benchmarks.agree --tiny [--peers FOLDER]

MODEL is the folder of a chat model in float32, PAIRS a file of preferences. FOLDER holds TRL's environment
(`trl/bin/python`; `make bench` makes one, docs/bench.md); without it our side is printed alone. Both sides get the same
token ids, in the same order, in one batch, without dropout; the reference is the model with some noise, so that no
margin is 0.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from benchmarks.agree import ours, peer
from benchmarks.agree.cases import CASES, Case, chosen
from benchmarks.agree.data import Folders, Row, make_folders, make_tiny, rows_of
from benchmarks.agree.table import Number, show
from rich.console import Console

APART = {"orpo": ("loss", "gradient norm")}  # defined differently: the case's note says how
REWARDS = ("chosen_reward", "rejected_reward", "margin", "good_reward", "bad_reward")
FROZEN = "gradient norm, padding frozen"


def numbers_of(case: Case, mine: dict[str, float], free: dict[str, float], frozen: dict[str, float]) -> list[Number]:
    """The numbers of one step: TRL with a padding token that learns as ours does, and as it comes."""
    pairs = {"loss": "loss", **case.numbers, "grad_norm": "grad_norm"}
    largest = max((abs(mine[name]) for name in REWARDS if name in case.numbers), default=0.0)
    found = []
    for name, theirs in pairs.items():
        shown = "gradient norm" if name == "grad_norm" else name
        apart = shown in APART.get(case.name, ())
        found.append(Number(case.name, shown, mine[name], free.get(theirs), apart, largest if name in REWARDS else 0.0))
    return [*found, Number(case.name, FROZEN, mine["grad_norm"], frozen.get("grad_norm"), apart=True)]


def one_step(cases: list[Case], rows: list[Row], folders: Folders, python: Path | None, asked: Any) -> list[Number]:
    """Every case at its first step."""
    jobs = []
    for case in cases:
        told = peer.job(case, folders, batch=len(rows))
        jobs += [told, told | {"name": f"{case.name} free", "padding_learns": True}]
    out = asked.work / "trl-step.json"
    theirs = peer.run(python, jobs, {"rows": rows}, out, asked.threads)["jobs"] if python else {}
    found = []
    for case in cases:
        mine = ours.run(case, rows, folders)[0]
        frozen, free = (theirs[name]["steps"][0] if python else {} for name in (case.name, f"{case.name} free"))
        found += numbers_of(case, mine, free, frozen)
    return found


def whole_run(rows: list[Row], folders: Folders, python: Path | None, asked: Any, console: Console) -> dict[str, Any]:
    """DPO from the reference on, step by step: ours, ours in smaller micro-batches, TRL."""
    case, batch = next(c for c in CASES if c.name == "dpo"), asked.batch
    how = {"steps": asked.steps, "batch": batch, "lr": asked.lr}
    theirs: list[dict[str, float]] = []
    if python:  # first: what we free may stay with this process
        job = peer.job(case, folders, ref=str(folders.model), padding_learns=True, **how)
        found = peer.run(python, [job], {"rows": rows}, asked.work / "trl-run.json", asked.threads)
        theirs = found["jobs"]["dpo"]["steps"]
    mine = ours.run(case, rows, folders, ref=folders.model, **how)
    again = ours.run(case, rows, folders, ref=folders.model, microbatch=256, **how)
    said = f"\nDPO, {asked.steps} steps of {batch} pairs, lr {asked.lr:g}, from the reference on"
    console.print(said, highlight=False)
    for step in sorted({0, 1, 4, 9, 14, len(mine) - 1} & set(range(len(mine)))):
        row, other = mine[step], theirs[step] if theirs else {"loss": math.nan, "rewards/margins": math.nan}
        line = f"step {step + 1:3}: loss {row['loss']:.6f}, TRL {other['loss']:.6f}; "
        line += f"margin {row['margin']:+.6f}, TRL {other['rewards/margins']:+.6f}"
        console.print(line, highlight=False)
    apart = [max(abs(a["loss"] - b["loss"]) for a, b in zip(mine, x, strict=True)) for x in (again, theirs) if x]
    names = ("ours in smaller micro-batches", "TRL")
    told = ", ".join(f"{name} {gap:.1e}" for name, gap in zip(names, apart, strict=False))
    console.print(f"largest difference of losses from ours: {told}", highlight=False)
    return {"ours": mine, "again": again, "trl": theirs}


def same_ids(rows: list[Row], model: Path, python: Path, asked: Any, console: Console) -> None:
    """Whether TRL makes the same ids of the same conversations."""
    data = {"conversations": rows}
    found = peer.run(python, [], data, asked.work / "trl-ids.json", asked.threads, ids_of=str(model))["ids"]
    prompts = sum(a["prompt_ids"] == b["prompt_ids"] for a, b in zip(rows, found, strict=True))
    answers, more = 0, set()
    for mine, theirs in zip(rows, found, strict=True):
        for side in ("chosen_ids", "rejected_ids"):
            same = theirs[side][: len(mine[side])] == mine[side]
            answers += same
            more |= {tuple(theirs[side][len(mine[side]) :])} if same else set()
    tail = "; ".join(str(list(ids)) for ids in more if ids)
    said = f"; TRL's go on behind the end of the turn with the ids {tail}" if tail else ""
    console.print(
        f"ids of text: {prompts} of {len(rows)} prompts equal, {answers} of {2 * len(rows)} answers equal{said}"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a chat model")
    parser.add_argument("pairs", type=Path, nargs="?", help="file of preferences")
    parser.add_argument("--tiny", action="store_true", help="a random model and made-up pairs")
    parser.add_argument("--only", default="", help="cases whose names begin so, separated by commas")
    parser.add_argument("--rows", type=int, default=4, help="pairs of the step that is compared")
    parser.add_argument("--longest", type=int, default=160, help="tokens of a prompt and its longer answer, at most")
    parser.add_argument("--steps", type=int, default=20, help="of the run of DPO; 0: none")
    parser.add_argument("--batch", type=int, default=2, help="pairs a step of that run")
    parser.add_argument("--lr", type=float, default=5e-6, help="of that run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=peer.peers_folder(), help="default: PEERS_WORK")
    parser.add_argument("--work", type=Path, default=Path("runs/agree"), help="folders of models, results and logs")
    asked = parser.parse_args()
    if not asked.tiny and (asked.model is None or asked.pairs is None):
        parser.error("MODEL and PAIRS, or --tiny")
    return asked


def main() -> None:
    """Compares what was asked for and shows it."""
    asked, console = parsed(), Console(width=150)
    cases = chosen(asked.only)
    torch.set_num_threads(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    model, pairs = make_tiny(asked.work) if asked.tiny else (asked.model, asked.pairs)
    count = max(asked.rows, asked.steps * asked.batch)
    rows, folders = rows_of(pairs, model, count, asked.longest), make_folders(model, asked.work)
    python = peer.python_of(asked.peers)
    if python is None:
        console.print(f"{peer.ABSENT} are not here (--peers or PEERS_WORK names their folder): our side alone")
    else:
        same_ids(rows, model, python, asked, console)
    numbers = one_step(cases, rows[: asked.rows], folders, python, asked)
    show(numbers, {case.name: case.note for case in cases}, console)
    found: dict[str, Any] = {"numbers": [vars(number) | {"difference": number.difference} for number in numbers]}
    if asked.steps:
        found["run"] = whole_run(rows[: asked.steps * asked.batch], folders, python, asked, console)
    (asked.work / "agree.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

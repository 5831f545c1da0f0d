"""A model that Tiltyard trained, in other people's programs: vLLM serves it, PEFT loads its adapter, lm-eval scores it.

    python -m benchmarks.agree.served MODEL PAIRS [--peers FOLDER] [--only vllm,peft,lm-eval]
    python -m benchmarks.agree.served --tiny [--peers FOLDER]

A few steps of DPO with LoRA are trained by the command line first; its folder has the merged model and the adapter.
FOLDER holds environments (`vllm/bin/python`; `trl/bin/python`, which has peft; `lmeval/bin/python` with lm-eval); a
program without one is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.agree import harness, peer, server
from benchmarks.agree.data import Row, make_tiny, rows_of
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from tiltyard import Group, LanguageModel, Message, Prompt, SampleSettings, load_language_model, sample
from tiltyard.batch.forest import pack

Line = tuple[str, str, str]  # program, what was compared, what came out
PROGRAMS = {"vllm": "vllm", "peft": "trl", "lm-eval": "lmeval"}  # program: its environment


def train(rows: list[Row], model: Path, work: Path, steps: int, threads: int) -> Path:
    """Trains as a user does; the stage's folder.

    Raises:
        SystemExit: the stage failed; the message names the log.
    """
    data, log = work / "pairs.jsonl", work / "train.log"
    keys = ("prompt", "chosen", "rejected")
    data.write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows))
    words = [f"model={model}", f"data={data}", "lora.rank=8", f"steps={steps}", "prompts_per_step=4", "lr=2e-4"]
    command = [sys.executable, "-m", "tiltyard.cli", "train", "dpo", "--runs", str(work), "name=served", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise SystemExit(f"training failed with {done.returncode}: see {log}")
    return work / "served/dpo"


def vllm_lines(stage: Path, rows: list[Row], python: Path, asked: argparse.Namespace) -> list[Line]:
    """Greedy answers of vLLM's OpenAI server against ours, token for token."""
    model = load_language_model(stage, device="cpu")
    prompts = [
        Prompt(messages=tuple(Message(**m) for m in row["prompt"]), ids=tuple(row["prompt_ids"])) for row in rows
    ]
    settings = SampleSettings(temperature=0.0, max_tokens=asked.tokens)
    mine = [list(group.responses[0].ids) for group in sample(model, prompts, 1, settings)]
    with server.serving(python, stage / "model", asked.work, threads=asked.threads) as address:
        theirs = [server.greedy(address, row["prompt"], asked.tokens) for row in rows]
    same_prompts = sum(found["prompt_ids"] == row["prompt_ids"] for found, row in zip(theirs, rows, strict=True))
    equal, apart = 0, []
    for i, (own, found) in enumerate(zip(mine, theirs, strict=True)):
        place = first_difference(without_end(own, model), without_end(found["ids"], model))
        equal += place is None
        if place is not None:
            gap = logit_gap(
                model, rows[i]["prompt_ids"] + own[:place], own[place : place + 1], found["ids"][place : place + 1]
            )
            apart.append(f"answer {i + 1} at token {place + 1} of {len(own)} (logits {gap:.1e} apart)")
    said = f"{equal} of {len(rows)} equal" + (f"; first difference: {', '.join(apart)}" if apart else "")
    tokens = sum(len(ids) for ids in mine)
    return [
        ("vLLM", "ids of the conversations", f"{same_prompts} of {len(rows)} equal"),
        ("vLLM", f"greedy answers ({tokens} tokens)", said),
    ]


def without_end(ids: list[int], model: LanguageModel) -> list[int]:
    """An answer without its end token: servers differ in whether they give it."""
    return ids[:-1] if ids and ids[-1] in model.chat.stop_ids else ids


def first_difference(a: list[int], b: list[int]) -> int | None:
    """The first place where two answers differ, an end included; None where they are equal."""
    for i in range(max(len(a), len(b))):
        if a[i : i + 1] != b[i : i + 1]:
            return i
    return None


def logits_of(model: LanguageModel, ids: list[int]) -> torch.Tensor:
    """Logits [tokens, vocabulary] of one row."""
    with torch.no_grad():
        return model.logits_T(pack([Group(Prompt(ids=tuple(ids), text=""), ())]))


def logit_gap(model: LanguageModel, before: list[int], own: list[int], other: list[int]) -> float:
    """How far the logits of the two tokens are apart there: rounding decides between near equals."""
    logits = logits_of(model, before)[-1]
    ends = min(model.chat.stop_ids)
    return float(logits[(own or [ends])[0]] - logits[(other or [ends])[0]])


def peft_lines(stage: Path, rows: list[Row], python: Path, asked: argparse.Namespace) -> list[Line]:
    """Logits of the adapter over its base in PEFT against those of the merged model here."""
    given = [row["prompt_ids"] + row["chosen_ids"] for row in rows[:3]]
    base = json.loads((stage / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    work, out, log = asked.work / "peft.json", asked.work / "peft.safetensors", asked.work / "peft.log"
    work.write_text(
        json.dumps({"base": base, "adapter": str(stage / "adapter"), "rows": given, "threads": asked.threads})
    )
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "TILTYARD_", "OMP_"))}
    with log.open("w") as file:
        script = Path(__file__).with_name("peft_side.py")
        done = subprocess.run(
            [str(python), str(script), str(work), str(out)], env=own, stdout=file, stderr=file, check=False
        )
    if done.returncode:
        raise SystemExit(f"PEFT failed with {done.returncode}: see {log}")
    theirs = load_file(out)
    merged, start = load_language_model(stage, device="cpu"), load_language_model(base, device="cpu")
    worst = moved = scale = 0.0
    for i, ids in enumerate(given):
        logits = logits_of(merged, ids)
        worst = max(worst, float((logits - theirs[str(i)]).abs().max()))
        moved = max(moved, float((logits - logits_of(start, ids)).abs().max()))
        scale = max(scale, float(logits.abs().max()))
    said = f"at most {worst:.1e} apart (largest logit {scale:.2g}; training moved them by up to {moved:.2g})"
    return [("PEFT", "logits, adapter over its base against merged model", said)]


def lm_eval_lines(stage: Path, rows: list[Row], python: Path, asked: argparse.Namespace) -> list[Line]:  # noqa: ARG001
    """Accuracy on a task of our own by lm-eval and by our log-probs."""
    theirs = harness.run(python, stage / "model", asked.work, asked.threads)
    mine = harness.accuracy(load_language_model(stage, device="cpu"))
    count = len(harness.FACTS)
    return [("lm-eval", f"{count} questions of four choices", f"{theirs:.1%} right, {mine:.1%} by our log-probs")]


LINES: dict[str, Callable[[Path, list[Row], Path, argparse.Namespace], list[Line]]] = {
    "vllm": vllm_lines,
    "peft": peft_lines,
    "lm-eval": lm_eval_lines,
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="folder of a chat model")
    parser.add_argument("pairs", type=Path, nargs="?", help="file of preferences")
    parser.add_argument("--tiny", action="store_true", help="a random model and made-up pairs")
    parser.add_argument("--only", default=",".join(PROGRAMS), help="programs, separated by commas")
    parser.add_argument("--rows", type=int, default=8, help="pairs that are trained on, and conversations answered")
    parser.add_argument("--longest", type=int, default=160, help="tokens of a prompt and its longer answer, at most")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=40, help="of an answer, at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=peer.peers_folder(), help="default: PEERS_WORK")
    parser.add_argument("--work", type=Path, default=Path("runs/served"), help="folders of models, results and logs")
    asked = parser.parse_args()
    if not asked.tiny and (asked.model is None or asked.pairs is None):
        parser.error("MODEL and PAIRS, or --tiny")
    asked.work = asked.work.resolve()
    return asked


def main() -> None:
    """Trains, lets each program at it, and shows what came out."""
    asked, console = parsed(), Console(width=150)
    torch.set_num_threads(asked.threads)
    asked.work.mkdir(parents=True, exist_ok=True)
    model, pairs = make_tiny(asked.work) if asked.tiny else (asked.model.resolve(), asked.pairs)
    rows = rows_of(pairs, model, asked.rows, asked.longest)
    stage = train(rows, model, asked.work, asked.steps, asked.threads)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("program", "compared", "found"):
        table.add_column(title)
    found: list[Line] = []
    for program in asked.only.split(","):
        python = peer.python_of(asked.peers, PROGRAMS[program])
        absent: list[Line] = [(program, "", f"no environment: {asked.peers}/{PROGRAMS[program]}")]
        found += absent if python is None else LINES[program](stage, rows, python, asked)
        for line in found[len(table.rows) :]:
            table.add_row(*line)
    console.print(table)
    (asked.work / "served.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Divides real preference pairs by prompt: one part trains, the other trains the judge that compares what came out.

    python -m benchmarks.real.data FOLDER_OF_DATA OUT

`FOLDER_OF_DATA` holds `preferences/`, `prompts/` and `judging/` as gzipped JSON lines; OUT receives

* `a.jsonl`, `b.jsonl`: the pairs of a half of the prompts each, without the answers that are given to many prompts;
* `balanced.jsonl`: pairs of `a` in which the chosen response is the longer one exactly as often as the shorter one,
  with the same distribution of the difference, so that length says nothing about the label;
* `dev.jsonl`: held-out pairs; `llmbar_natural.jsonl`, `llmbar_adversarial.jsonl`, `human.jsonl`, `hhh.jsonl`.

Both halves and all samples are drawn with fixed seeds: the same input gives the same files.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, object]


def read(path: Path) -> list[Row]:
    """Returns the rows of a gzipped file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(path: Path, rows: Iterable[Row]) -> int:
    """Writes JSON lines and returns their number."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def half(prompt: object) -> str:
    """Returns `a` or `b`, by a digest of the prompt: independent of the order of the rows."""
    digest = hashlib.sha256(json.dumps(prompt, ensure_ascii=False).encode()).digest()
    return "ab"[digest[0] & 1]


def without_stock_answers(rows: list[Row], most: int = 20) -> list[Row]:
    """Leaves out pairs with an answer that stands under more than `most` prompts: it fools the judge that labelled."""
    prompts: dict[object, set[str]] = defaultdict(set)
    for row in rows:
        prompts[row["chosen"]].add(json.dumps(row["prompt"]))
        prompts[row["rejected"]].add(json.dumps(row["prompt"]))
    return [row for row in rows if len(prompts[row["chosen"]]) <= most and len(prompts[row["rejected"]]) <= most]


def balanced(rows: list[Row], width: int = 100, seed: int = 0) -> list[Row]:
    """Returns equally many pairs with a longer and with a shorter chosen response in every bin of the difference.

    Args:
        rows: pairs.
        width: of a bin, in characters.
        seed: of the choice.
    """
    bins: dict[int, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for row in rows:
        difference = len(str(row["chosen"])) - len(str(row["rejected"]))
        if difference:
            bins[abs(difference) // width][difference > 0].append(row)
    rng = random.Random(seed)
    taken: list[Row] = []
    for key in sorted(bins):
        shorter, longer = bins[key]
        count = min(len(shorter), len(longer))
        taken += rng.sample(shorter, count) + rng.sample(longer, count)
    rng.shuffle(taken)
    return taken


def longer_share(rows: list[Row]) -> float:
    """Returns the share of pairs whose chosen response is the longer one; equal lengths count one half."""
    wins = [
        (len(str(row["chosen"])) > len(str(row["rejected"])))
        + (len(str(row["chosen"])) == len(str(row["rejected"]))) / 2
        for row in rows
    ]
    return sum(wins) / len(wins)


def main(data: Path, out: Path) -> None:
    """Writes all files and prints their sizes."""
    out.mkdir(parents=True, exist_ok=True)
    rows = without_stock_answers(read(data / "preferences/train.jsonl.gz"))
    parts = {name: [row for row in rows if half(row["prompt"]) == name] for name in "ab"}
    random.Random(0).shuffle(parts["a"])
    random.Random(1).shuffle(parts["b"])
    files: dict[str, list[Row]] = {**parts, "balanced": balanced(parts["a"])}
    files["balanced_b"] = balanced(parts["b"])
    files["dev"] = without_stock_answers(read(data / "preferences/dev.jsonl.gz"))
    random.Random(2).shuffle(files["dev"])
    llmbar = read(data / "judging/llmbar.jsonl.gz")
    files["llmbar_natural"] = [row for row in llmbar if "atural" in str(row["source"])]
    files["llmbar_adversarial"] = [row for row in llmbar if "atural" not in str(row["source"])]
    files["human"] = read(data / "judging/human_pairs.jsonl.gz")
    files["hhh"] = read(data / "judging/hhh.jsonl.gz")
    for name, part in files.items():
        if name.startswith(("llmbar", "human")):
            part = [{key: value for key, value in row.items() if key != "verdicts"} for row in part]
        count = write(out / f"{name}.jsonl", part)
        prompts = len({json.dumps(row["prompt"]) for row in part})
        length = f", chosen longer in {longer_share(part):.1%}" if "chosen" in part[0] else ""
        print(f"{name}: {count} rows of {prompts} prompts{length}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

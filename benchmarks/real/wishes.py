"""Prompts that end with a wish whose keeping can be checked, and the reward that checks it.

    python -m benchmarks.real.wishes FOLDER_OF_DATA OUT

Each instruction of `prompts/train` gets one of four wishes, by turns; each of `prompts/dev` gets all four. `kept` is
the reward of `benchmarks/real/wishes.yaml`: 1 where the response keeps the wish of its prompt's row, else 0; `brief`,
`asks`, `prose` and `json` are the same for the prompts of one wish, and abstain from the others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.real.data import read, write

from tiltyard.scoring.rules import Rule, RuleFunction
from tiltyard.types import Prompt, Response

WISHES = {
    "brief": ("Answer in at most 40 words.", Rule(min_words=5, max_words=40)),
    "asks": ("End your answer with a question.", Rule(min_words=5, ends_with_question=True)),
    "prose": ("Do not use a list, and write at least 30 words.", Rule(min_words=30, no_list=True)),
    "json": ('Answer with a JSON object that has the key "answer", and nothing else.', Rule(json_keys=["answer"])),
}
CHECKS = {name: RuleFunction(rule) for name, (_, rule) in WISHES.items()}


def kept(prompt: Prompt, response: Response, row: Mapping[str, Any]) -> float:
    """Returns 1 where the response ended by itself and keeps the wish that its prompt asked for, else 0."""
    return float(response.finish != "length" and CHECKS[str(row["wish"])](prompt, response, dict(row)))


def _one(name: str) -> Callable[[Prompt, Response, Mapping[str, Any]], float | None]:
    """`kept` for the prompts of one wish alone."""
    return lambda prompt, response, row: kept(prompt, response, row) if row["wish"] == name else None


brief, asks, prose, json = (_one(name) for name in WISHES)


def main(data: Path, out: Path) -> None:
    """Writes `wishes.jsonl` (train) and `wishes_dev.jsonl`."""
    out.mkdir(parents=True, exist_ok=True)
    names = list(WISHES)

    def row(instruction: object, name: str) -> dict[str, object]:
        return {"prompt": f"{instruction}\n\n{WISHES[name][0]}", "wish": name}

    train = [row(r["prompt"], names[i % len(names)]) for i, r in enumerate(read(data / "prompts/train.jsonl.gz"))]
    dev = [row(r["prompt"], name) for r in read(data / "prompts/dev.jsonl.gz") for name in names]
    print(write(out / "wishes.jsonl", train), write(out / "wishes_dev.jsonl", dev))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

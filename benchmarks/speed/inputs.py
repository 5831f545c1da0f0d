"""The models and pairs that both sides are measured on: the peers' own where they are, else some of the same kind.

python -m benchmarks.speed.inputs FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.speed.floor import Tokens

VOCABULARY = 8192


def read_pairs(folder: Path) -> list[dict[str, Any]]:
    """Rows with `prompt_ids`, `chosen_ids`, `rejected_ids`, `raw_prompt`: prompts and answers of at most 128 tokens."""
    return json.loads((folder / "pairs.json").read_text())


def ready(folder: Path) -> bool:
    """Whether the models and the pairs are there."""
    models = (folder / "models" / name for name in ("bench-12m", "bench-12m-rm", "bench-60m", "bench-60m-rm"))
    return (folder / "pairs.json").exists() and all((model / "config.json").exists() for model in models)


def tokens_of(pairs: list[dict[str, Any]], data: str, answers: int, tokens: int) -> Tokens:
    """Mean lengths of a group: `pairs`, `texts` (all tokens but the first are learnt), or `answers` sampled ones."""
    if data == "sampled":
        return Tokens.of([(len(p["prompt_ids"]), [tokens] * answers) for p in pairs[:256]])
    if data == "texts":
        return Tokens.of([(1, [len(p["prompt_ids"]) + len(p["chosen_ids"]) - 1]) for p in pairs])
    return Tokens.of([(len(p["prompt_ids"]), [len(p["chosen_ids"]), len(p["rejected_ids"])]) for p in pairs])


def make(folder: Path, presets: Sequence[str] = ("12m", "60m"), vocabulary: int = VOCABULARY) -> None:
    """Random models of the peers' shapes and random pairs of about their lengths: for our side alone."""
    import torch

    from tiltyard import from_scratch, save_model, scalar_from, train_tokenizer

    tokenizer = train_tokenizer((f"word{i} and number {i * 7}" for i in range(2000)), 512)
    for preset in presets:
        model = from_scratch(preset, tokenizer, context=2048)
        model.module.resize_token_embeddings(vocabulary)
        save_model(model, folder / "models" / f"bench-{preset}")
        reward = scalar_from(model)
        torch.nn.init.normal_(reward.head.weight, std=0.02)  # scores that differ
        save_model(reward, folder / "models" / f"bench-{preset}-rm")
    chance = random.Random(0)

    def ids(low: int, high: int) -> list[int]:
        return [chance.randrange(5, len(tokenizer)) for _ in range(chance.randint(low, high))]

    lengths = {"prompt_ids": (15, 75), "chosen_ids": (30, 128), "rejected_ids": (30, 128)}
    rows = [{"raw_prompt": f"prompt {i}", **{key: ids(*of) for key, of in lengths.items()}} for i in range(512)]
    (folder / "pairs.json").write_text(json.dumps(rows))


def make_real(folder: Path, model: Path, data: Path, rows: int = 64, longest: int = 128) -> str:
    """A real model's inputs, made once: the folder itself, a reward model with a random head, and pairs of its ids.

    Args:
        data: preferences (`prompt`, `chosen`, `rejected`); where the file is not there, words of about their lengths.
        longest: tokens of a prompt, and of an answer, at most.

    Returns:
        Whose the pairs are.
    """
    import gzip

    import torch

    from tiltyard import load_language_model, load_scalar_model, save_model

    models = folder / "models"
    if not (folder / "pairs.json").exists():
        models.mkdir(parents=True, exist_ok=True)
        (models / "smollm2").unlink(missing_ok=True)
        (models / "smollm2").symlink_to(model.resolve())
        chat = load_language_model(model, device="cpu").chat
        end = min(chat.stop_ids)
        reward = load_scalar_model(model, device="cpu")
        torch.nn.init.normal_(reward.head.weight, std=0.02)  # scores that differ
        save_model(reward, models / "smollm2-rm")
        chance, seen = random.Random(0), set()
        real = gzip.decompress(data.read_bytes()).decode().splitlines() if data.exists() else []
        texts = real or _made_up(chance, 8 * rows)
        found = []
        for row in map(json.loads, texts):
            if row["prompt"] not in seen and len(found) < rows:
                seen.add(row["prompt"])
                prompt = chat.tokenizer(row["prompt"])["input_ids"][:longest]
                sides = {side: chat.tokenizer(row[side])["input_ids"][: longest - 1] for side in ("chosen", "rejected")}
                ids = {f"{side}_ids": [*answer, end] for side, answer in sides.items()}
                found.append({"raw_prompt": row["prompt"], "prompt_ids": prompt, **ids})
        (folder / "pairs.json").write_text(json.dumps(found))
        (folder / "inputs.txt").write_text("real pairs" if data.exists() else "made-up pairs")
    return (folder / "inputs.txt").read_text()


def _made_up(chance: random.Random, rows: int) -> list[str]:
    def words(low: int, high: int) -> str:
        return " ".join(f"word{chance.randrange(999)}" for _ in range(chance.randint(low, high)))

    made = ({"prompt": words(5, 25), "chosen": words(15, 45), "rejected": words(15, 45)} for _ in range(rows))
    return [json.dumps(row) for row in made]


def described(pairs: list[dict[str, Any]]) -> str:
    """The pairs in one line."""
    sizes = {key: mean(len(p[f"{key}_ids"]) for p in pairs) for key in ("prompt", "chosen", "rejected")}
    return f"{len(pairs)} pairs, mean tokens: {', '.join(f'{key} {size:.0f}' for key, size in sizes.items())}"


if __name__ == "__main__":
    make(Path(sys.argv[1]))

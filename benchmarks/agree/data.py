"""The model folders and rows that both sides read: a real model with real pairs, or a tiny one with made-up pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tiltyard import (
    Group,
    Prompt,
    Response,
    from_scratch,
    load_groups,
    load_language_model,
    load_scalar_model,
    save_model,
    train_tokenizer,
)
from tiltyard.types import Preference

Row = dict[str, Any]
Pair = tuple[Group, Response, Response]  # with the chosen answer first
NOISE = 0.05  # of the reference's weights, as a share of each tensor's own spread


@dataclass(frozen=True)
class Folders:
    """The start, a reference that differs from it (so that margins and KTO's KL are not 0), and a reward model."""

    model: Path
    ref: Path
    reward: Path


def rows_of(source: Path, model: Path, count: int, longest: int) -> list[Row]:
    """`count` pairs whose prompt and longer answer have at most `longest` tokens, those of new prompts first.

    Each has `prompt_ids`, `chosen_ids`, `rejected_ids`, `label` (True and False in turns) and the messages.

    Raises:
        SystemExit: the file has fewer.
    """
    chat = load_language_model(model, device="cpu").chat
    groups, _ = load_groups(source, "comparisons", chat, max_length=longest)
    first: dict[tuple[int, ...], Pair] = {}
    others: list[Pair] = []
    for group in groups:
        ranks = group.preference.ranks if group.preference else None
        if ranks in ((1, 2), (2, 1)) and group.responses[0].ids != group.responses[1].ids:
            chosen, rejected = group.responses if ranks == (1, 2) else group.responses[::-1]
            if first.setdefault(group.prompt.ids, (group, chosen, rejected))[0] is not group:
                others.append((group, chosen, rejected))
    found = [*first.values(), *others]
    if len(found) < count:
        raise SystemExit(f"{source} has {len(found)} pairs of at most {longest} tokens, not {count}")
    return [_row(*pair, label=i % 2 == 0) for i, pair in enumerate(found[:count])]


def _row(group: Group, chosen: Response, rejected: Response, label: bool) -> Row:
    messages = [{"role": m.role, "content": m.content} for m in group.prompt.messages or ()]
    sides = {"chosen": chosen, "rejected": rejected}
    ids = {f"{side}_ids": list(r.ids) for side, r in sides.items()}
    texts = {side: [{"role": "assistant", "content": r.text}] for side, r in sides.items()}
    return {"prompt_ids": list(group.prompt.ids), "label": label, **ids, "prompt": messages, **texts}


def groups_of(rows: Sequence[Row], data: str) -> list[Group]:
    """The rows as our sources take them: `pairs`, `chosen` or `alternating` (see `cases.Case`)."""
    found = []
    for i, row in enumerate(rows):
        prompt = Prompt(ids=tuple(row["prompt_ids"]), text="", id=f"{i}")
        chosen, rejected = (Response(ids=tuple(row[f"{side}_ids"])) for side in ("chosen", "rejected"))
        if data == "pairs":
            found.append(Group(prompt, (chosen, rejected), preference=Preference(ranks=(1, 2))))
        elif data == "chosen":
            found.append(Group(prompt, (chosen,)))
        else:
            answer = chosen if row["label"] else rejected
            found.append(Group(prompt, (answer,), preference=Preference(labels=(row["label"],))))
    return found


def make_folders(model: Path, work: Path) -> Folders:
    """Writes the reference and the reward model of a start; what is there is not made again."""
    made = Folders(model, work / f"{model.name}-ref", work / f"{model.name}-reward")
    if not (made.ref / "config.json").exists():
        moved = load_language_model(model, device="cpu")
        generator = torch.Generator().manual_seed(0)
        for parameter in moved.module.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += NOISE * parameter.data.std() * noise
        save_model(moved, made.ref)
    if not (made.reward / "config.json").exists():
        reward = load_scalar_model(model, device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            torch.nn.init.normal_(reward.head.weight, std=0.02)  # a new head is 0, and every score with it
        save_model(reward, made.reward)
    return made


def make_tiny(work: Path, preset: str = "1m") -> tuple[Path, Path]:
    """A random model whose padding token ends turns, and a file of preferences: (model folder, file)."""
    model, file = work / "tiny", work / "tiny.jsonl"
    words = ["red", "blue", "green", "seven", "nine", "the sky", "a stone", "of course", "perhaps", "nobody"]
    ask = [f"What do you say of {a} and {b}?" for a in words for b in words if a != b]
    rows = [
        {"prompt": q, "chosen": f"{words[i % 10]} {words[i % 7]} it is", "rejected": " ".join(words[i % 3 : i % 3 + 4])}
        for i, q in enumerate(ask)
    ]
    if not (model / "config.json").exists():
        tokenizer = train_tokenizer([" ".join(row.values()) for row in rows], 400)
        tokenizer.pad_token = tokenizer.eos_token
        made = from_scratch(preset, tokenizer, context=256)
        made.module.config.pad_token_id = tokenizer.eos_token_id
        save_model(made, model)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, file

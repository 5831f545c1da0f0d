"""Model card: README.md in the form of the Hugging Face hub, from facts alone: no times, no paths of a machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tiltyard.files import write_atomic
from tiltyard.report.text import plain

NAME = "README.md"
MEASURED = "## Measured"
ALARMS = "## Alarms of training"
LOADS = {
    "text-generation": """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)  # the folder of this file
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [{"role": "user", "content": "What is the capital of France?"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0, ids["input_ids"].shape[1]:]))""",
    "text-classification": """from tiltyard import load_scalar_model  # docs/models.md: what its score means

model = load_scalar_model(folder)  # the folder of this file""",
    "fill-mask": """from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)  # the folder of this file
model = AutoModelForMaskedLM.from_pretrained(folder)""",
}


@dataclass(frozen=True)
class Base:
    """The model that was trained on: as it is called, its name on the hub, its licence; "" for what is not known."""

    name: str = ""
    hub: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Card:
    """Facts of a trained model.

    Args:
        title: run and stage. pipeline: the hub's name of its task, a key of `LOADS`.
        method, summary, formula, paper: of its training. lora: of an adapter that was merged, "" without one.
        data: (setting, name, digest or ""). datasets: names on the hub. counts: e.g. groups, prompts, steps.
        settings: (key, value, default) of those that differ from their defaults.
        figures: what was measured, by name. alarms: (step, text) of those of training. versions: of the packages.
    """

    title: str
    pipeline: str
    method: str
    summary: str = ""
    formula: str = ""
    paper: str = ""
    base: Base = Base()
    lora: str = ""
    data: Sequence[tuple[str, str, str]] = ()
    datasets: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    settings: Sequence[tuple[str, str, str]] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    alarms: Sequence[tuple[int, str]] = ()
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


def render(card: Card) -> str:
    """The card as markdown with its YAML head. Text of users and models is shown as code, never as markup."""
    base = card.base
    head: dict[str, Any] = {
        **({"base_model": base.hub} if base.hub else {}),
        **({"license": base.licence} if base.licence else {}),
        **({"datasets": list(card.datasets)} if card.datasets else {}),
        "library_name": "transformers",
        "pipeline_tag": card.pipeline,
        "tags": ["tiltyard", _tag(card.method), *(["lora"] if card.lora else [])],
    }
    start = f"Trained from {code(base.name)}" if base.name else "Trained from random weights"
    licence = (
        f" (licence: {code(base.licence)})" if base.licence else " (its licence is not known)" if base.name else ""
    )
    adapter = f" The adapter ({code(card.lora)}) is merged." if card.lora else ""
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=True, allow_unicode=True)}---",
        f"# {code(card.title)}",
        f"{start}{licence} with {code(card.method)}: {plain(card.summary)}{adapter}".rstrip(),
        *([f"```text\n{plain(card.formula)}\n```"] if card.formula else []),
        *([f"Method: {plain(card.paper)}."] if card.paper else []),
        "## Data",
        _table(("setting", "name", "sha256"), card.data) if card.data else "None.",
        ", ".join(f"{name}: {count:,}" for name, count in card.counts.items()),
        "## Settings",
        f"Seed {card.seed}. Those that differ from their defaults (`tiltyard show` lists all):",
        _table(("setting", "value", "default"), card.settings) if card.settings else "None.",
        *([MEASURED, _figures(card.figures)] if card.figures else []),
        *([ALARMS, *_alarms(card.alarms)] if card.alarms else []),
        "## Loading",
        f"```python\n{LOADS[card.pipeline]}\n```",
        "Made with " + ", ".join(f"{name} {version}" for name, version in card.versions.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def add_figures(folder: Path, heading: str, figures: Mapping[str, float | str]) -> None:
    """Adds a table of figures to the card of a model, in place of an earlier one of that heading.

    Not for the `model/` of a stage, which is an input of others that would run again.
    """
    path, start = folder / NAME, f"{MEASURED}: {plain(heading)}\n"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    text = re.sub(rf"{re.escape(start)}.*?(?=^## |\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    section = f"{start}\n{_figures(figures)}\n\n"
    before, loading, after = text.partition("## Loading\n")
    write_atomic(path, (before + section + loading + after).encode())


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML head of a model's card; {} where there is none that can be read."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
        found = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
        value = yaml.safe_load(found[1]) if found else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def code(text: str) -> str:
    """A text in one line as code, in which nothing is markup."""
    line = " ".join(plain(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{line[:200]}`"


def _tag(method: str) -> str:
    return re.sub(r"[^\w.-]+", "-", method.rpartition(":")[2])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(code(cell) if cell else "" for cell in row) + " |" for row in rows)])


def _alarms(alarms: Sequence[tuple[int, str]]) -> list[str]:
    intro = "Raised by limits on the training metrics; the responses of these steps are worth reading."
    return [intro, _table(("step", "alarm"), [(f"{step:,}", text) for step, text in alarms])]


def _figures(figures: Mapping[str, float | str]) -> str:
    rows = [(name, value if isinstance(value, str) else f"{value:.6g}") for name, value in figures.items()]
    return _table(("figure", "value"), rows)

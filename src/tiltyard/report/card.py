"""Model card: README.md in the form of the Hugging Face hub, from facts alone: no dates, no paths of a machine.

What was measured after training is added to it, as a section and as `model-index` of its head. Those parts belong to no
digest of the model (`runs.model_card`): a model that was evaluated is the same model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tiltyard.files import write_atomic
from tiltyard.report.text import plain
from tiltyard.runs.model_card import COST, HEAD, MEASURED, NAME

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
class Figure:
    """One measurement of a model.

    Args:
        name: with what it is against. text: as it is shown, with its interval.
        value, interval, n: for the card's metadata; value None: the text alone. key: the metric there, e.g. `win_rate`.
    """

    name: str
    text: str
    key: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0


@dataclass(frozen=True)
class Card:
    """Facts of a trained model.

    Args:
        title: run and stage. pipeline: the hub's name of its task, a key of `LOADS`.
        method, summary, formula, paper: of its training. lora: of an adapter that was merged, "" without one.
        data: (setting, name, digest or ""). datasets: names on the hub. counts: e.g. groups, prompts, steps.
        settings: (key, value, default) of those that differ from their defaults.
        figures: what was measured, by name. alarms: (step, text) of those of training. cost: what training took, in
            words. versions: of the packages.
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
    cost: Mapping[str, str] = field(default_factory=dict)
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
        *([COST, _table(("", ""), list(card.cost.items()))] if card.cost else []),
        "## Licence",
        _licence(card),
        "## Loading",
        f"```python\n{LOADS[card.pipeline]}\n```",
        "Made with " + ", ".join(f"{name} {version}" for name, version in card.versions.items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _licence(card: Card) -> str:
    base, data = card.base, "Those of the data are not known to Tiltyard: look them up before this model is passed on."
    if not base.name:
        return f"The model was trained from random weights. {data}"
    if not base.licence:
        return f"The licence of the base {code(base.name)} is not known; it binds this model too. {data}"
    return f"The base {code(base.name)} is under {code(base.licence)}, which binds this model too. {data}"


def add_figures(folder: Path, heading: str, about: str, figures: Sequence[Figure], data: str) -> None:
    """Adds a table of figures to the card of a model and to its metadata, in place of an earlier one of that heading.

    Args:
        heading: of the measurement, e.g. RUN/STAGE. about: a sentence below it. data: name of what it was measured on.
    """
    path, start = folder / NAME, f"{MEASURED}: {plain(heading)}\n"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    text = re.sub(rf"^{re.escape(start)}.*?(?=^## |\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    rows = [(figure.name, figure.text) for figure in figures]
    section = f"{start}\n{plain(about)}\n\n{_table(('figure', 'value'), rows)}\n\n"
    at = next((found.start() for mark in (COST, "## Licence", "## Loading") if (found := _at(mark, text))), len(text))
    write_atomic(path, _with_index(text[:at] + section + text[at:], heading, figures, data).encode())


def _at(heading: str, text: str) -> re.Match[str] | None:
    return re.search(rf"^{heading}\n", text, re.MULTILINE)


def _with_index(text: str, heading: str, figures: Sequence[Figure], data: str) -> str:
    """The card with the figures in `model-index` of its head, beside those of other measurements."""
    found = HEAD.match(text)
    head = _loaded(text)
    if found is None or not head:
        return text
    index = one if isinstance(one := head.pop("model-index", None), list) and one else [{}]
    others = [row for row in index[0].get("results", []) if row.get("task", {}).get("name") != plain(heading)]
    metrics = [
        {
            "type": figure.key,
            "value": float(f"{figure.value:.6g}"),
            "name": plain(figure.name),
            **({"args": _args(figure)} if _args(figure) else {}),
        }
        for figure in figures
        if figure.value is not None
    ]
    task = {"type": head.get("pipeline_tag", "text-generation"), "name": plain(heading)}
    results = [
        *others,
        *([{"task": task, "dataset": {"type": data, "name": data}, "metrics": metrics}] if metrics else []),
    ]
    title = re.search(r"^# `(.*)`$", text, re.MULTILINE)
    if results:
        head["model-index"] = [{"name": title[1] if title else "model", "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=True, allow_unicode=True)}---\n{text[found.end() :]}"


def _args(figure: Figure) -> dict[str, Any]:
    ends = None if figure.interval is None else [float(f"{end:.6g}") for end in figure.interval]
    return {**({"interval_95": ends} if ends else {}), **({"n": figure.n} if figure.n else {})}


def front_matter(folder: Path) -> dict[str, Any]:
    """The YAML head of a model's card; {} where there is none that can be read."""
    try:
        text = (folder / NAME).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    return _loaded(text)


def _loaded(text: str) -> dict[str, Any]:
    found = HEAD.match(text)
    try:
        value = yaml.safe_load(found[1]) if found else {}
    except (ValueError, yaml.YAMLError):
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

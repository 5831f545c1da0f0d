"""What the user sees at the end: a table, a summary file, and answers side by side.

Model output is untrusted: it is shown literally, never read as rich markup, terminal codes or Markdown.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tiltyard.errors import ConfigError, DataError
from tiltyard.evaluation.record import Answer, ModelResult
from tiltyard.files import write_atomic
from tiltyard.stats.intervals import Interval

_MODEL_COLUMN = 28  # a narrower column of prose is stacked instead
_ODD = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # control, format (bidi), private, surrogate, odd line ends
_JOINERS = "\u200c\u200d"  # needed by some scripts and emoji


class _Column(NamedTuple):
    header: str
    cells: list[str]


def plain(text: str) -> str:
    """The text with nothing a terminal could obey: control, direction and surrogate characters become `\\x1b`."""

    def shown(c: str) -> str:
        if c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in _ODD:
            return c
        return c.encode("unicode_escape").decode("ascii")

    return "".join(map(shown, text.replace("\r\n", "\n")))


def print_table(results: Sequence[ModelResult], console: Console | None = None) -> None:
    """One row a model, with a legend in plain words; stacked tables where one is too wide for the terminal."""
    console = console or Console()
    if not results:
        raise DataError("there are no results to show")
    sign = "±" if _utf(console) else "+/-"
    dash = "—" if _utf(console) else "-"
    goal, cost = _columns(results, sign, dash)
    names = [r.name for r in results]
    tables = _fit(names, [goal + cost], console) or _fit(names, [goal, cost], console, split=True)
    parts: list[RenderableType] = []
    for table in tables:
        parts += [table, Text()]
    console.print(Group(*parts, _legend(results, sign, dash)))


def write_summary(
    path: str | Path,
    results: Sequence[ModelResult],
    seconds: Mapping[str, float] | None = None,
    extra: Mapping[str, Any] | None = None,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """`{"models": {name: {gold, gold_ci, ...}}, "seconds": {stage: s}, **extra}`, written whole or not at all.

    `costs`: further facts of a model, e.g. what its training sampled and asked. What is not known is null; an interval
    is [low, high].
    """
    names = [r.name for r in results]
    if len(set(names)) < len(names):
        raise DataError("two results have the same name", got=", ".join(names))
    extra = dict(extra or {})
    if taken := {"models", "seconds"} & set(extra):
        raise ConfigError("extra facts may not replace the summary's own", got=", ".join(sorted(taken)))
    models = {r.name: {k: v for k, v in asdict(r).items() if k != "name"} for r in results}
    for name, facts in (costs or {}).items():
        models[name] |= facts
    body = {"models": models, "seconds": dict(seconds or {}), **extra}
    return write_atomic(path, (json.dumps(_jsonable(body), indent=2, allow_nan=False) + "\n").encode())


def side_by_side(
    answers_by_model: Mapping[str, Sequence[Answer]],
    n: int = 5,
    console: Console | None = None,
    *,
    max_chars: int = 700,
) -> None:
    """Print n prompts with each model's first answer next to each other (below each other where it is narrow)."""
    console = console or Console()
    rows, total = _pick(answers_by_model, n)
    models = list(answers_by_model)
    beside = (console.width - 4) // max(1, len(models)) >= _MODEL_COLUMN
    dot = " · " if _utf(console) else ", "
    console.print(Text(_picked(len(rows), total), style="dim"))
    for i, row in enumerate(rows, 1):
        console.print(Rule(f"prompt {i}", align="left", characters="─" if _utf(console) else "-"))
        console.print(Padding(_shown(row[0].prompt_text, max_chars, console, "bold"), (0, 0, int(not beside), 0)))
        cells = [_shown(a.text, max_chars, console) if a.text.strip() else Text("(empty)", "dim") for a in row]
        facts = [Text(dot.join(_facts(a)), "dim") for a in row]
        if beside:
            table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), pad_edge=False)
            for model in models:
                table.add_column(Text(plain(model), "cyan"), ratio=1, overflow="fold")
            table.add_row(*cells)
            table.add_row(*facts)
            console.print(table)
            continue
        for model, cell, fact in zip(models, cells, facts, strict=True):
            console.print(Text(plain(model), "cyan"))
            console.print(Padding(Group(cell, fact), (0, 0, 1, 2)))


def write_samples_markdown(
    path: str | Path, answers_by_model: Mapping[str, Sequence[Answer]], n: int = 5, *, title: str = "Samples"
) -> Path:
    """The same prompts and answers as Markdown; texts stand in code fences that no text can close."""
    rows, total = _pick(answers_by_model, n)
    lines = [f"# {_md(title)}", "", _md(_picked(len(rows), total)), ""]
    for i, row in enumerate(rows, 1):
        lines += [f"## Prompt {i}", "", *_fenced(row[0].prompt_text), ""]
        for model, answer in zip(answers_by_model, row, strict=True):
            facts = " · ".join(_facts(answer))
            lines += [f"**{_md(model)}** ({_md(facts)})", "", *_fenced(answer.text), ""]
    return write_atomic(path, "\n".join(lines).encode("utf-8"))


def _columns(results: Sequence[ModelResult], sign: str, dash: str) -> tuple[list[_Column], list[_Column]]:
    """The columns that say whether a model is good, and those that say what it cost."""

    def column(header: str, cell: Any) -> _Column:
        return _Column(header, [cell(r) or dash for r in results])

    baseline = _baseline(results)
    goal = [
        column("gold\nreward", lambda r: _value(r.gold, r.gold_ci, sign)),
        column("helpful", lambda r: _percent(r.helpful)),
        column("truthful", lambda r: _percent(r.truthful)),
        column("harmless", lambda r: _percent(r.harmless)),
        column(f"wins vs\n{plain(baseline or 'baseline')}", lambda r: _wins(r, sign)),
    ]
    cost = [
        column("proxy\nreward", lambda r: _value(r.proxy, r.proxy_ci, sign)),
        column("KL\n(nats)", lambda r: _value(r.kl, r.kl_ci, sign, 1)),
        column("length\n(tokens)", lambda r: f"{r.length:.0f}"),
        column("cut\noff", lambda r: _percent(r.truncated)),
    ]
    return goal, cost


def _fit(
    names: Sequence[str], groups: Sequence[list[_Column]], console: Console, *, split: bool = False
) -> list[Table]:
    """A table for each group of columns; one too wide is split between columns, or gives no tables at all."""
    tables = []
    for group in groups:
        while group:
            take = len(group)
            while take > 1 and not _fits(_table(names, group[:take], console), console):
                if not split:
                    return []
                take -= 1
            tables.append(_table(names, group[:take], console))
            group = group[take:]
    return tables


def _fits(table: Table, console: Console) -> bool:
    return console.measure(table, options=console.options.update(max_width=1000)).maximum <= console.width


def _table(names: Sequence[str], columns: Sequence[_Column], console: Console) -> Table:
    style = box.SIMPLE_HEAD if _utf(console) else box.ASCII2
    table = Table(box=style, pad_edge=False, header_style="bold", padding=(0, 1), collapse_padding=True)
    width = min(24, max(5, *(cell_len(plain(name)) for name in names)))
    table.add_column(Text("model"), style="cyan", overflow="fold", width=width, vertical="bottom")
    for column in columns:
        table.add_column(Text(column.header), justify="right", no_wrap=True)
    for i, name in enumerate(names):
        table.add_row(Text(plain(name)), *(Text(c.cells[i]) for c in columns))
    return table


def _legend(results: Sequence[ModelResult], sign: str, dash: str) -> RenderableType:
    baseline = plain(_baseline(results) or "baseline")
    by = "gold" if results[0].win_by == "gold" else "proxy"
    entries = [
        ("gold reward", "the true score, by rules that no model saw in training. Higher is better."),
        ("helpful, truthful, harmless", "share of answers that pass, where the rule applies. Higher is better."),
        (
            f"wins vs {baseline}",
            f"answers beating {baseline}'s to the same prompt by {by} reward (a tie is half). Higher is better.",
        ),
        ("proxy reward", "what the trained reward model believes. Proxy up while gold falls is reward hacking."),
        ("KL", "how far the answers moved from the reference model's. 0: not at all; lower is closer."),
        ("length, cut off", "mean tokens of an answer; share stopped by the token limit (fewer is better)."),
    ]
    if not any(r.win_rate is not None for r in results):
        entries.pop(2)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=False, max_width=28)
    grid.add_column(style="dim")
    for term, meaning in entries:
        grid.add_row(Text(term), Text(meaning))
    few = min(r.prompts for r in results)
    note = f"{sign} is a 95% interval over {few} prompts. {dash} means not measured."
    return Group(grid, Text(note, "dim"))


def _baseline(results: Sequence[ModelResult]) -> str | None:
    return next((r.baseline for r in results if r.baseline), None)


def _value(value: float | None, ci: Interval | None, sign: str, digits: int = 2) -> str:
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    text = text.lstrip("-") if float(text) == 0 else text
    return text if ci is None else f"{text} {sign} {_half(value, ci):.{digits}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def _wins(result: ModelResult, sign: str) -> str:
    if result.win_rate is None:
        return ""
    text = _percent(result.win_rate)
    if result.name == result.baseline or result.win_rate_ci is None:
        return text
    return f"{text} {sign} {100 * _half(result.win_rate, result.win_rate_ci):.0f}"


def _half(value: float, ci: Interval) -> float:
    """The wider side: what is shown as +- never claims more than the interval does."""
    return max(ci[1] - value, value - ci[0])


def _pick(answers_by_model: Mapping[str, Sequence[Answer]], n: int) -> tuple[list[list[Answer]], int]:
    """For n prompts that all models answered, spread evenly over the set, the first answer of each model."""
    if not answers_by_model:
        raise DataError("there are no models to show")
    first: list[dict[str, Answer]] = []
    for answers in answers_by_model.values():
        by_prompt: dict[str, Answer] = {}
        for answer in answers:
            by_prompt.setdefault(answer.prompt_id, answer)
        first.append(by_prompt)
    shared = [p for p in first[0] if all(p in other for other in first)]
    if not shared:
        raise DataError("no prompt was answered by all models", got=", ".join(answers_by_model))
    n = max(1, min(n, len(shared)))
    chosen = [shared[i * len(shared) // n] for i in range(n)]
    return [[by_prompt[p] for by_prompt in first] for p in chosen], len(shared)


def _picked(n: int, total: int) -> str:
    return f"{n} of {total} prompts, spread evenly (not picked by quality); each model's first answer"


def _facts(answer: Answer) -> list[str]:
    facts = [
        f"{name} {value:.2f}" for name, value in (("gold", answer.gold), ("proxy", answer.proxy)) if value is not None
    ]
    return [*facts, f"{answer.length} tokens", *(["cut off"] if answer.truncated else [])]


def _shown(text: str, max_chars: int, console: Console, style: str = "") -> Text:
    shown = plain(text.strip())
    if len(shown) > max_chars:
        shown = shown[:max_chars] + f" ... ({len(shown) - max_chars} more characters)"
    if not _utf(console):
        shown = shown.encode(console.encoding, "backslashreplace").decode(console.encoding)
    return Text(shown, style, overflow="fold")


def _fenced(text: str) -> list[str]:
    shown = plain(text)
    longest = max(map(len, re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", shown, fence]


def _md(text: str) -> str:
    """Text for a Markdown line: one line, every mark that Markdown or HTML reads escaped."""
    return re.sub(r"([\\`*_\[\]<>#|~&$@])", r"\\\1", " ".join(plain(text).split()))


def _utf(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def _jsonable(value: Any) -> Any:
    """Plain JSON values: numpy numbers become numbers, tuples lists, paths text, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(v) for v in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)

"""Tables of evaluated policies, the summary file, and samples side by side.

Model output is untrusted: it is printed literally, never interpreted as rich markup, terminal codes or Markdown.
"""

from __future__ import annotations

import json
import re
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
from tiltyard.evaluation.policies import EvaluatedResponse, PolicySummary, RewardMean
from tiltyard.files import write_atomic
from tiltyard.report.text import plain
from tiltyard.stats.intervals import Interval

_MODEL_COLUMN = 28  # a narrower column of prose is stacked instead


class _Column(NamedTuple):
    header: str
    cells: list[str]


def print_table(results: Sequence[PolicySummary], console: Console | None = None) -> None:
    """Prints one row for each model, and a legend; stacked tables if one is too wide for the terminal."""
    console = console or Console()
    if not results:
        raise DataError("there are no results to print")
    sign = "±" if _utf(console) else "+/-"
    dash = "—" if _utf(console) else "-"
    quality, cost = _columns(results, sign, dash)
    names = [r.name for r in results]
    tables = _fit(names, [quality + cost], console) or _fit(names, [quality, cost], console, split=True)
    parts: list[RenderableType] = []
    for table in tables:
        parts += [table, Text()]
    partly = any(cell == dash for column in quality + cost for cell in column.cells)
    console.print(Group(*parts, _legend(results, sign, dash if partly else "")))


def write_summary(
    path: str | Path,
    results: Sequence[PolicySummary],
    seconds: Mapping[str, float] | None = None,
    extra: Mapping[str, Any] | None = None,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes `{"models": {name: {gold, gold_ci, ...}}, "seconds": {stage: s}, **extra}` atomically.

    Args:
        costs: further facts of a model, e.g. the samples and judge calls of its training.

    Unknown values are null; an interval is [low, high].

    Raises:
        DataError: two results of one name. ConfigError: `extra` would replace the summary's own keys.
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
    responses_by_model: Mapping[str, Sequence[EvaluatedResponse]],
    n: int = 5,
    console: Console | None = None,
    *,
    max_chars: int = 700,
) -> None:
    """Prints n prompts with each model's first response side by side (one below the other on narrow terminals)."""
    console = console or Console()
    rows, total = _pick(responses_by_model, n)
    models = list(responses_by_model)
    side = (console.width - 4) // max(1, len(models)) >= _MODEL_COLUMN
    dot = " · " if _utf(console) else ", "
    console.print(Text(_picked(len(rows), total), style="dim"))
    for i, row in enumerate(rows, 1):
        console.print(Rule(f"prompt {i}", align="left", characters="─" if _utf(console) else "-"))
        console.print(Padding(_shown(row[0].prompt_text, max_chars, console, "bold"), (0, 0, int(not side), 0)))
        cells = [_shown(a.text, max_chars, console) if a.text.strip() else Text("(empty)", "dim") for a in row]
        facts = [Text(dot.join(_facts(a)), "dim") for a in row]
        if side:
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
    path: str | Path,
    responses_by_model: Mapping[str, Sequence[EvaluatedResponse]],
    n: int = 5,
    *,
    title: str = "Samples",
) -> Path:
    """Writes the same prompts and responses as Markdown, in code fences that no text can close."""
    rows, total = _pick(responses_by_model, n)
    lines = [f"# {_md(title)}", "", _md(_picked(len(rows), total)), ""]
    for i, row in enumerate(rows, 1):
        lines += [f"## Prompt {i}", "", *_fenced(row[0].prompt_text), ""]
        for model, response in zip(responses_by_model, row, strict=True):
            facts = " · ".join(_facts(response))
            lines += [f"**{_md(model)}** ({_md(facts)})", "", *_fenced(response.text), ""]
    return write_atomic(path, "\n".join(lines).encode("utf-8"))


def _columns(results: Sequence[PolicySummary], sign: str, dash: str) -> tuple[list[_Column], list[_Column]]:
    """Returns the columns of quality, and those of distance and length; none that was measured of no model."""

    def column(header: str, cell: Any) -> _Column:
        return _Column(header, [cell(r) or dash for r in results])

    baseline = _baseline(results)
    quality = [
        column("gold\nreward", lambda r: _value(r.gold, r.gold_ci, sign)),
        column("helpful", lambda r: _percent(r.helpful)),
        column("truthful", lambda r: _percent(r.truthful)),
        column("harmless", lambda r: _percent(r.harmless)),
        column(f"wins vs\n{plain(baseline or 'baseline')}", lambda r: _wins(r, sign)),
        column("at equal\nlength", lambda r: _share(r.win_rate_equal_length, r.win_rate_equal_length_ci, sign)),
    ]
    kind = results[0].proxy_kind
    header = {"model": "proxy\nreward", "rule": "pass\nrate", "other": "reward"}[kind]
    reward = column(header, lambda r: (_share if kind == "rule" else _value)(r.proxy, r.proxy_ci, sign))
    further = list(dict.fromkeys(name for r in results for name in r.rewards))
    cost = [
        reward,
        *(column(plain(name), lambda r, name=name: _reward_mean(r.rewards.get(name), sign)) for name in further),
        column("KL\n(nats)", lambda r: _value(r.kl, r.kl_ci, sign, 1)),
        column("length\n(tokens)", lambda r: f"{r.length:.0f}"),
        column("cut\noff", lambda r: _percent(r.truncated)),
    ]
    measured = [[c for c in columns if any(cell != dash for cell in c.cells)] for columns in (quality, cost)]
    return measured[0], measured[1]


def _fit(
    names: Sequence[str], groups: Sequence[list[_Column]], console: Console, *, split: bool = False
) -> list[Table]:
    """Returns a table for each group of columns; a group that is too wide is split, or no tables are returned."""
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


def _legend(results: Sequence[PolicySummary], sign: str, dash: str) -> RenderableType:
    baseline = plain(_baseline(results) or "baseline")
    wins = {
        "gold": f"responses that beat {baseline}'s to the same prompt by gold reward (ties: half). Higher is better.",
        "proxy": f"responses that beat {baseline}'s to the same prompt by {_REWARDS[results[0].proxy_kind][2]} "
        "(ties: half). Higher is better.",
        "judge": f"the judge's mean probability that a response beats {baseline}'s to the same prompt; pairs "
        "without a verdict are left out. Higher is better.",
    }[results[0].win_by]
    entries = [
        ("gold reward", "the true score, by rules that no model was trained on. Higher is better.", "gold"),
        (
            "helpful, truthful, harmless",
            "share of responses that pass, where the rule applies. Higher is better.",
            "helpful truthful harmless",
        ),
        (f"wins vs {baseline}", wins, "win_rate"),
        (
            "at equal length",
            "what a regression of the wins on the difference in length leaves of them where it is 0.",
            "win_rate_equal_length",
        ),
        (*_REWARDS[results[0].proxy_kind][:2], "proxy"),
        ("KL", "divergence from the reference model, per response. 0: identical; lower is closer.", "kl"),
        ("length, cut off", "mean tokens of a response; share cut by the token limit (lower is better).", "length"),
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=False, max_width=28)
    grid.add_column(style="dim")
    for term, meaning, fields in entries:
        if any(getattr(result, field) is not None for result in results for field in fields.split()):
            grid.add_row(Text(term), Text(meaning))
    few = min(r.prompts for r in results)
    note = f"{sign} is a 95% interval over {few} prompts."
    note += f" {dash} means not measured of this model." if dash else ""
    return Group(grid, Text(note, "dim"))


_REWARDS = {  # term, meaning, what wins are by
    "model": (
        "proxy reward",
        "the trained reward model's score. Rising proxy with falling gold is reward hacking.",
        "proxy reward",
    ),
    "rule": ("pass rate", "share of responses that keep every wish of the rule. Higher is better.", "the rule"),
    "other": ("reward", "what the setting reward computes. Higher is better.", "reward"),
}


def _baseline(results: Sequence[PolicySummary]) -> str | None:
    return next((r.baseline for r in results if r.baseline), None)


def _value(value: float | None, ci: Interval | None, sign: str, digits: int = 2) -> str:
    if value is None:
        return ""
    text = f"{value:.{digits}f}"
    text = text.lstrip("-") if float(text) == 0 else text
    return text if ci is None else f"{text} {sign} {_half(value, ci):.{digits}f}"


def _share(value: float | None, ci: Interval | None, sign: str) -> str:
    text = _percent(value)
    return text if value is None or ci is None else f"{text} {sign} {100 * _half(value, ci):.0f}"


def _reward_mean(one: RewardMean | None, sign: str) -> str:
    if one is None:
        return ""
    return (_share if one.is_rate else _value)(one.value, one.ci, sign)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def _wins(result: PolicySummary, sign: str) -> str:
    if result.win_rate is None:
        return ""
    text = _percent(result.win_rate)
    if result.name == result.baseline or result.win_rate_ci is None:
        return text
    return f"{text} {sign} {100 * _half(result.win_rate, result.win_rate_ci):.0f}"


def _half(value: float, ci: Interval) -> float:
    """Returns the wider side, so that +- never understates the interval."""
    return max(ci[1] - value, value - ci[0])


def _pick(
    responses_by_model: Mapping[str, Sequence[EvaluatedResponse]], n: int
) -> tuple[list[list[EvaluatedResponse]], int]:
    """Returns the first response of each model to n prompts common to all models, spread evenly over the set."""
    if not responses_by_model:
        raise DataError("there are no models to print")
    first: list[dict[str, EvaluatedResponse]] = []
    for responses in responses_by_model.values():
        by_prompt: dict[str, EvaluatedResponse] = {}
        for response in responses:
            by_prompt.setdefault(response.key, response)
        first.append(by_prompt)
    shared = [p for p in first[0] if all(p in other for other in first)]
    if not shared:
        raise DataError("no prompt has responses of all models", got=", ".join(responses_by_model))
    n = max(1, min(n, len(shared)))
    chosen = [shared[i * len(shared) // n] for i in range(n)]
    return [[by_prompt[p] for by_prompt in first] for p in chosen], len(shared)


def _picked(n: int, total: int) -> str:
    return f"{n} of {total} prompts, spread evenly (not picked by quality); each model's first response"


def _facts(response: EvaluatedResponse) -> list[str]:
    facts = [
        f"{name} {value:.2f}"
        for name, value in (("gold", response.gold), ("proxy", response.proxy), *response.rewards.items())
        if value is not None
    ]
    return [*facts, f"{response.length} tokens", *(["cut off"] if response.truncated else [])]


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
    """Returns one line of text with all Markdown and HTML characters escaped."""
    return re.sub(r"([\\`*_\[\]<>#|~&$@])", r"\\\1", " ".join(plain(text).split()))


def _utf(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


def _jsonable(value: Any) -> Any:
    """Converts to JSON values: numpy numbers to numbers, tuples to lists, paths to text, NaN and infinities to null."""
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(v) for v in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)

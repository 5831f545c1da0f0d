"""Tables of methods: `tiltyard methods` compares them, `tiltyard show METHOD` describes one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiltyard.files import jsonable

Row = dict[str, Any]

HEADINGS = (
    "method",
    "family",
    "data",
    "human labels",
    "samples the policy",
    "feedback refreshed",
    "external API",
    "models",
    "paper",
)
PAPER = 40  # columns that papers get at least
NARROW = 120  # on a console of fewer columns a setting's type stands below its meaning


# --------------------------------------------------------------------------------------------------- the comparison


def cells(row: Row) -> tuple[str, ...]:
    """Returns the texts of a row, one for each of `HEADINGS`."""
    return (
        row["name"],
        row["family"],
        row["data_kind"],
        _yes(row["human_labels"]),
        row["samples"],
        row["feedback"],
        _yes(row["external_api"]),
        _count(row),
        row["paper"],
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _count(row: Row) -> str:
    """Formats `1 + 1 (1 + 0 cached)`: trained + frozen, and with cached models left out."""
    trained, frozen, cached = row["models_trainable"], row["models_frozen"], row["models_frozen_cached"]
    return f"{trained} + {frozen}" + ("" if cached == frozen else f" ({trained} + {cached} cached)")


def print_comparison(rows: Sequence[Row], console: Console) -> None:
    """Prints the table; on narrow consoles family and paper are a second table below."""
    if not rows:
        console.print("no methods of this family")
        return
    table = _table(HEADINGS, rows)
    if _fits(table, console):
        console.print(table)
        return
    first = [h for h in HEADINGS if h not in ("family", "paper")]
    wide = _table(first, rows)
    console.print(wide if _fits(wide, console) else _table(first, rows, tight=True))
    console.print()
    console.print(_table(("method", "family", "paper"), rows, separated=False))


def _fits(table: Table, console: Console) -> bool:
    """Returns whether no column would be cut (measured on a wide console, since measures never exceed the console)."""
    return console.measure(table, options=console.options.update(width=10_000)).minimum <= console.width


def _table(headings: Sequence[str], rows: Sequence[Row], tight: bool = False, separated: bool = True) -> Table:
    """Returns a table of some columns; only papers take several lines.

    Args:
        headings: some of `HEADINGS`, the method first; headings of several words take several lines.
        rows: of `compare`.
        tight: cells of two words take two lines too, gaps are small, and the rest is folded.
        separated: with a blank line between families.
    """
    lines = []
    for row in rows:
        texts = dict(zip(HEADINGS, cells(row), strict=True))
        if tight:
            texts["models"] = texts["models"].replace(" (", "\n").rstrip(")")
            texts |= {h: texts[h].replace(" ", "\n") for h in ("samples the policy", "feedback refreshed")}
        lines.append([texts[h] for h in headings])
    table = Table(box=None, pad_edge=False, padding=(0, 1 if tight else 2, 0, 0), header_style="dim")
    for i, heading in enumerate(headings):
        title = heading.replace(" ", "\n")
        longest = max(cell_len(line) for text in (title, *(texts[i] for texts in lines)) for line in text.splitlines())
        least = longest if heading != "paper" else PAPER if "data" in headings else 0
        table.add_column(title, overflow="fold", min_width=None if tight else least)
    for row, line, after in zip(rows, lines, [*rows[1:], None], strict=True):
        table.add_row(f"[bold]{escape(line[0])}[/]", *map(escape, line[1:]))
        if separated and after is not None and after["family"] != row["family"]:
            table.add_row()
    return table


# ------------------------------------------------------------------------------------------------------ one method


def print_stage(shown: Row, console: Console) -> None:
    """Prints the description of a stage or method (`stages.methods.expand`)."""
    console.print(f"[bold]{shown['kind']}[/]: {escape(shown['summary'])}", highlight=False)
    if "family" not in shown:
        console.print(_settings_table(shown["settings"]))
        return
    console.print()
    console.print(_facts(shown))
    for title, rows in _sections(shown["settings"]):
        console.print(f"\n[bold]{title}[/]", highlight=False)
        console.print(_settings_table(rows, narrow=console.width < NARROW))
    if any(row.get("changed") for row in shown["settings"]):
        source = escape(shown["defaults_from"] or "not given")
        console.print(f"* changed by {shown['kind']}; from: {source}", style="dim", highlight=False)


def _sections(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Groups the settings under headings: the method's own, those of its stage, then each record."""
    sections = {"its own settings": [row for row in rows if row["own"]]}
    sections["the stage's settings"] = [row for row in rows if not row["own"] and "." not in row["key"]]
    for row in rows:
        record, dot, _ = row["key"].partition(".")
        if dot:
            sections.setdefault(record, []).append(row)
    return [(title, rows_of_section) for title, rows_of_section in sections.items() if rows_of_section]


def _facts(shown: Row) -> Table:
    """Returns the table of names and texts, without the settings."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    yes = {"human labels": "human_labels", "external API": "external_api"}
    refreshed = {"samples the policy": shown["samples"], "feedback refreshed": shown["feedback"]}
    facts = [
        ("family", shown["family"]),
        ("paper", shown["paper"]),
        ("formula", shown["formula"]),
        ("optimum", shown["oracle"]),
        ("pitfalls", shown["pitfalls"]),
        *((name, _yes(shown[key])) for name, key in yes.items()),
        *refreshed.items(),
        ("models", _models(shown)),
        *_piece_lines(shown),
    ]
    for name, text in facts:
        table.add_row(name, escape(text))
    return table


def _models(shown: Row) -> str:
    """Formats `2 + 2: trains policy, value; keeps ref, reward frozen`."""
    text = f"{_count(shown)}: trains {', '.join(shown['trains'])}"
    if shown["frozen"]:
        text += f"; keeps {', '.join(shown['frozen'])} frozen"
    if shown["cached"]:
        text += f"; {', '.join(shown['cached'])} not needed once its log-probs of the data are on disk"
    if shown["optional"]:
        text += f"; {', '.join(shown['optional'])} not needed with show_kl=false if only the KL is measured to it"
    return text


def _piece_lines(shown: Row) -> list[tuple[str, str]]:
    """Returns the pieces, one line each, in their order of execution."""
    parts = shown["pieces"]
    if parts is None:
        return [("pieces", "they depend on a setting that has no default")]
    shape = ", two responses each" if shown["source"] == "Pairs" else ""
    loss, reduce, passes, updates = parts["loss"], parts["reduce"], parts["epochs"], parts["minibatches"]
    weight = f", weighted by {reduce['weight']}" if reduce["weight"] else ""
    often = f"{passes} pass{'es' * (passes > 1)} a step, {updates} update{'s' * (updates > 1)} a pass"
    lines = [("source", f"{_with_doc(parts['source'])} (reads {shown['data_kind']}{shape})")]
    lines += [("encode", _with_doc(parts["encode"]))] if parts["encode"] else []
    lines += [("prepare", f"{_with_doc(p)} (writes {', '.join(p['writes'])})") for p in parts["prepare"]]
    lines += [("loss", f"{_with_doc(loss)} (needs {', '.join(loss['needs'])})")]
    lines += [("reduce", f"{reduce['name']} over {reduce['over']}{weight}; {often}")]
    return lines + [("after", _with_doc(hook)) for hook in parts["after"]]


def _with_doc(piece: Row) -> str:
    return f"{piece['name']}: {piece['doc']}" if piece["doc"] else str(piece["name"])


def _settings_table(rows: Sequence[Row], narrow: bool = False) -> Table:
    """Returns setting, type, default and meaning; the source of a default (narrow: also the type) below the meaning."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("setting", "default", "meaning") if narrow else ("setting", "type", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for row in rows:
        default = "required" if row["required"] else _json(row["default"])
        below = [row["type"]] if narrow else []
        if row.get("own") and row["source"]:
            below.append(f"[{row['source']}]")
        if row.get("changed"):
            below.append(f"(other methods: {_json(row['usual'])})")
        meaning = escape(row["doc"]) + (f"\n[dim]{escape('  '.join(below))}[/]" if below else "")
        mark = " *" if row.get("changed") else ""
        texts = [escape(default), meaning] if narrow else [escape(row["type"]), escape(default), meaning]
        table.add_row(f"[bold]{row['key'].rpartition('.')[2]}[/]{mark}", *texts)
    return table


def _json(value: Any) -> str:
    return json.dumps(jsonable(value), ensure_ascii=False)

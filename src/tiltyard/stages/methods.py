"""Methods compared and expanded, from what they declare and from what they compose: `tiltyard methods`, `show`."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tiltyard.config import REQUIRED, Setting, describe
from tiltyard.errors import CompositionError, ConfigError, nearest
from tiltyard.files import jsonable
from tiltyard.methods import METHODS
from tiltyard.methods.base import Family, Method
from tiltyard.stages.base import Stage, get_stage
from tiltyard.stages.settings import method_settings
from tiltyard.training.algorithm import Algorithm, Source
from tiltyard.training.forward import column_names
from tiltyard.training.source import Offline
from tiltyard.types import Group, Prompt, Response

Row = dict[str, Any]

FILE_METHODS: dict[str, Method] = {}  # methods of users' files, by `file.py:function`

FAMILIES: tuple[str, ...] = get_args(Family)
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
ITEMS = {"R": "response tokens", "B": "responses", "G": "groups"}
STEPS = 100  # of a round that stands for any
PAPER = 40  # columns that papers get at least
NARROW = 120  # on a console of fewer columns a setting's type stands below its meaning


# --------------------------------------------------------------------------------------------------- the comparison


def compare(family: str = "") -> list[Row]:
    """What users choose methods by, derived from the declarations: families in their order, then names.

    Args:
        family: keep this one alone; empty keeps all.
    """
    if family and family not in FAMILIES:
        raise ConfigError(f"unknown family '{family}'", where="methods", fix=nearest(family, FAMILIES))
    chosen = [m for m in METHODS.values() if family in ("", m.family)]
    return [_row(m) for m in sorted(chosen, key=lambda m: (FAMILIES.index(m.family), m.name))]


def _row(method: Method) -> Row:
    """One method; `models_frozen_cached` counts what stays in memory once what the others say is on disk."""
    return {
        "name": method.name,
        "family": method.family,
        "human_labels": method.human_labels,
        "on_policy": method.samples_policy,
        "online_feedback": method.source.feedback != "no",
        "external_api": method.external_api,
        "models_trainable": len(method.trains),
        "models_frozen": len(method.frozen),
        "paper": method.paper,
        "data_kind": method.source.data_kind,
        "source": type(method.source).__name__,
        "models_frozen_cached": len([name for name in method.frozen if name not in method.cached]),
        "samples": method.source.samples,
        "feedback": method.source.feedback,
        "trains": list(method.trains),
        "frozen": list(method.frozen),
        "cached": list(method.cached),
        "optional": list(method.optional),
        "summary": method.summary,
    }


def cells(row: Row) -> tuple[str, ...]:
    """A row as the table shows it, one text under each of `HEADINGS`."""
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
    """`1 + 1 (1 + 0 cached)`: trained + frozen, and again where fewer need to stay."""
    trained, frozen, kept = row["models_trainable"], row["models_frozen"], row["models_frozen_cached"]
    return f"{trained} + {frozen}" + ("" if kept == frozen else f" ({trained} + {kept} cached)")


def print_comparison(rows: Sequence[Row], console: Console) -> None:
    """The table; where the console is too narrow for all of it, family and paper stand in a second table below."""
    if not rows:
        console.print("no method of this family is here yet")
        return
    whole = _table(HEADINGS, rows)
    if _fits(whole, console):
        console.print(whole)
        return
    first = [h for h in HEADINGS if h not in ("family", "paper")]
    roomy = _table(first, rows)
    console.print(roomy if _fits(roomy, console) else _table(first, rows, tight=True))
    console.print()
    console.print(_table(("method", "family", "paper"), rows, parted=False))


def _fits(table: Table, console: Console) -> bool:
    """Whether no column would be cut (measured as if there were room, since a measure never exceeds the console)."""
    return console.measure(table, options=console.options.update(width=10_000)).minimum <= console.width


def _table(headings: Sequence[str], rows: Sequence[Row], tight: bool = False, parted: bool = True) -> Table:
    """Chosen columns, of which only the papers take several lines.

    Args:
        headings: some of `HEADINGS`, the method first; those of several words stand on several lines.
        rows: of `compare`.
        tight: cells of two words take two lines too, the gaps are small, and what still does not fit is folded.
        parted: with a blank line between families.
    """
    listed = []
    for row in rows:
        texts = dict(zip(HEADINGS, cells(row), strict=True))
        if tight:
            texts["models"] = texts["models"].replace(" (", "\n").rstrip(")")
            texts |= {h: texts[h].replace(" ", "\n") for h in ("samples the policy", "feedback refreshed")}
        listed.append([texts[h] for h in headings])
    table = Table(box=None, pad_edge=False, padding=(0, 1 if tight else 2, 0, 0), header_style="dim")
    for i, heading in enumerate(headings):
        title = heading.replace(" ", "\n")
        longest = max(cell_len(line) for text in (title, *(texts[i] for texts in listed)) for line in text.splitlines())
        least = longest if heading != "paper" else PAPER if "data" in headings else 0
        table.add_column(title, overflow="fold", min_width=None if tight else least)
    for row, line, after in zip(rows, listed, [*rows[1:], None], strict=True):
        table.add_row(f"[bold]{escape(line[0])}[/]", *map(escape, line[1:]))
        if parted and after is not None and after["family"] != row["family"]:
            table.add_row()
    return table


# ------------------------------------------------------------------------------------------------- what a method is


def expand(kind: str) -> Row:
    """A stage's settings and meaning; a method's pieces, models, formula, oracle and sources of defaults besides."""
    stage = get_stage(kind)
    shown: Row = {"kind": kind, "summary": stage.summary, "refers": list(stage.refers)}
    method = METHODS.get(kind) or FILE_METHODS.get(kind)
    if method is None:
        return shown | {"settings": [_setting(s) for s in describe(stage.settings)]}
    declared = {key: value for key, value in _row(method).items() if key not in ("name", "summary")}
    for key in ("formula", "oracle", "pitfalls", "defaults_from"):
        declared[key] = getattr(method, key)
    return shown | declared | {"pieces": pieces(method), "settings": method_rows(method, stage)}


def _setting(setting: Setting) -> Row:
    row = {"key": setting.key, "type": setting.type, "required": setting.default is REQUIRED, "doc": setting.doc}
    return row if setting.default is REQUIRED else row | {"default": setting.default}


def common_settings(method: Method) -> dict[str, Any]:
    """Dotted keys of the settings that a method shares with others of its kind, and their defaults there."""

    def nothing(source: Source) -> Algorithm:
        raise CompositionError("this stands for a method without settings of its own", got=source)

    shared = method_settings(dataclasses.replace(method, build=nothing, defaults={}))
    return {s.key: s.default for s in describe(shared)}


def own_keys(method: Method) -> tuple[str, ...]:
    """The method's own settings: what its function takes besides the common ones."""
    return tuple(key for key in _arguments(method) if key not in common_settings(method))


def _arguments(method: Method) -> tuple[str, ...]:
    parameters = inspect.signature(method.build).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def split_source(doc: str) -> tuple[str, str]:
    """An argument's doc as (meaning, where its default comes from): the bracketed text that ends it.

    Brackets without a word in them are an interval and belong to the meaning.
    """
    found = re.fullmatch(r"(.*?)\s*\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", doc, re.DOTALL)
    if found is None or not re.search(r"[^\W\d_]{2}", found.group(2)):
        return doc, ""
    return found.group(1), found.group(2)


def method_rows(method: Method, stage: Stage) -> list[Row]:
    """A method's settings, its own first; each says whose it is, and where its default comes from if that is known.

    A common setting is `changed` if the method's default differs from what other methods of its kind start with;
    `usual` is that default.
    """
    usual = common_settings(method)
    mine, common = [], []
    for setting in describe(stage.settings):
        row = _setting(setting)
        if setting.key not in usual:
            row["doc"], source = split_source(setting.doc)
            mine.append(row | {"own": True, "source": source})
        else:
            short = setting.key.rpartition(".")[2]
            source = method.defaults_from if short in method.defaults else ""
            row |= {"own": False, "source": source, "changed": setting.default != usual[setting.key]}
            common.append(row | ({"usual": usual[setting.key]} if row["changed"] else {}))
    return mine + common


def compose(method: Method, settings: Mapping[str, Any] | None = None) -> Algorithm:
    """The method built with these or its default settings, over a made-up item that stands for data, not computed.

    Args:
        settings: by dotted key.
    """
    values = settings or {s.key: s.default for s in describe(method_settings(method))}
    source = method.source.placeholder(values)
    takes = [p for p in inspect.signature(method.build).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    aux = [Offline([Group(Prompt(ids=(0,)), (Response(ids=(0,)),))], 1)] if len(takes) > 1 else []
    return method.build(source, *aux, **{key: values[key] for key in _arguments(method)})


def pieces(method: Method) -> Row | None:
    """What the method composes, read from the composition itself; None if a setting without a default decides it."""
    required = {s.key for s in describe(method_settings(method)) if s.default is REQUIRED}
    if required & set(_arguments(method)):
        return None
    algorithm = compose(method)
    encode = getattr(method.source, "encode", None)
    return {
        "source": _piece(algorithm.source),
        "encode": _piece(encode) if encode else None,
        "prepare": [_piece(p) | {"needs": list(p.needs), "writes": list(p.writes)} for p in algorithm.prepare],
        "loss": _piece(algorithm.loss)
        | {
            "needs": list(column_names(algorithm.loss.needs)),
            "writes": [c for need in algorithm.loss.needs if not isinstance(need, str) for c in need.writes],
            "item": algorithm.loss.item,
        },
        "reduce": _piece(algorithm.reduce) | {"over": ITEMS[algorithm.loss.item], "weight": algorithm.reduce.weight},
        "epochs": algorithm.epochs,
        "minibatches": algorithm.minibatches,
        "after": [_piece(hook) for hook in algorithm.after],
    }


def _piece(piece: Any) -> Row:
    """A piece's name and the first paragraph of its docstring (a data class without one has its signature there)."""
    what = piece if hasattr(piece, "__name__") else type(piece)
    doc = " ".join((inspect.getdoc(what) or "").split("\n\n")[0].split())
    return {"name": what.__name__, "doc": "" if doc.startswith(f"{what.__name__}(") else doc}


# ---------------------------------------------------------------------------------------------------- what is shown


def print_stage(shown: Row, console: Console) -> None:
    """Prints what `expand` found."""
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
    """The settings under headings: the method's own, those of its stage, then each record."""
    sections = {"its own settings": [row for row in rows if row["own"]]}
    sections["the stage's settings"] = [row for row in rows if not row["own"] and "." not in row["key"]]
    for row in rows:
        record, dot, _ = row["key"].partition(".")
        if dot:
            sections.setdefault(record, []).append(row)
    return [(title, some) for title, some in sections.items() if some]


def _facts(shown: Row) -> Table:
    """Name and text, one under the other, without the settings."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    yes = {"human labels": "human_labels", "external API": "external_api"}
    asked = {"samples the policy": shown["samples"], "feedback refreshed": shown["feedback"]}
    facts = [
        ("family", shown["family"]),
        ("paper", shown["paper"]),
        ("formula", shown["formula"]),
        ("optimum", shown["oracle"]),
        ("pitfalls", shown["pitfalls"]),
        *((name, _yes(shown[key])) for name, key in yes.items()),
        *asked.items(),
        ("models", _models(shown)),
        *_piece_lines(shown),
    ]
    for name, text in facts:
        table.add_row(name, escape(text))
    return table


def _models(shown: Row) -> str:
    """`2 + 2: trains policy, value; keeps ref, reward frozen`."""
    text = f"{_count(shown)}: trains {', '.join(shown['trains'])}"
    if shown["frozen"]:
        text += f"; keeps {', '.join(shown['frozen'])} frozen"
    if shown["cached"]:
        text += f"; {', '.join(shown['cached'])} may leave once its log-probs of the data are on disk"
    if shown["optional"]:
        text += f"; {', '.join(shown['optional'])} may leave with show_kl=false where it would only show the KL"
    return text


def _piece_lines(shown: Row) -> list[tuple[str, str]]:
    """The pieces, a line each, in the order in which they work."""
    parts = shown["pieces"]
    if parts is None:
        return [("pieces", "they depend on a setting that has no default")]
    shape = ", two responses each" if shown["source"] == "Pairs" else ""
    loss, reduce, passes, updates = parts["loss"], parts["reduce"], parts["epochs"], parts["minibatches"]
    weight = f", weighted by {reduce['weight']}" if reduce["weight"] else ""
    often = f"{passes} pass{'es' * (passes > 1)} a step, {updates} update{'s' * (updates > 1)} a pass"
    lines = [("source", f"{_said(parts['source'])} (reads {shown['data_kind']}{shape})")]
    lines += [("encode", _said(parts["encode"]))] if parts["encode"] else []
    lines += [("prepare", f"{_said(p)} (writes {', '.join(p['writes'])})") for p in parts["prepare"]]
    lines += [("loss", f"{_said(loss)} (needs {', '.join(loss['needs'])})")]
    lines += [("reduce", f"{reduce['name']} over {reduce['over']}{weight}; {often}")]
    return lines + [("after", _said(hook)) for hook in parts["after"]]


def _said(piece: Row) -> str:
    return f"{piece['name']}: {piece['doc']}" if piece["doc"] else str(piece["name"])


def _settings_table(rows: Sequence[Row], narrow: bool = False) -> Table:
    """Setting, type, default, meaning; below the meaning what else is known of a default, if narrow also the type."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("setting", "default", "meaning") if narrow else ("setting", "type", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for row in rows:
        default = "required" if row["required"] else _json(row["default"])
        below = [row["type"]] if narrow else []
        if row.get("own") and row["source"]:
            below.append(f"[{row['source']}]")
        if row.get("changed"):
            below.append(f"(elsewhere {_json(row['usual'])})")
        meaning = escape(row["doc"]) + (f"\n[dim]{escape('  '.join(below))}[/]" if below else "")
        mark = " *" if row.get("changed") else ""
        texts = [escape(default), meaning] if narrow else [escape(row["type"]), escape(default), meaning]
        table.add_row(f"[bold]{row['key'].rpartition('.')[2]}[/]{mark}", *texts)
    return table


def _json(value: Any) -> str:
    return json.dumps(jsonable(value), ensure_ascii=False)

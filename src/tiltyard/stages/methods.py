"""Descriptions of methods from their declarations and compositions, for `tiltyard methods` and `tiltyard show`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any, get_args

from tiltyard.config import REQUIRED, Setting, describe
from tiltyard.errors import CompositionError, ConfigError, nearest
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
ITEMS = {"R": "response tokens", "B": "responses", "G": "groups"}
STEPS = 100  # of a round that stands for any


# --------------------------------------------------------------------------------------------------- the comparison


def compare(family: str = "") -> list[Row]:
    """Returns the methods as rows derived from their declarations: families in their order, then names.

    Args:
        family: keep this one alone; empty keeps all.
    """
    if family and family not in FAMILIES:
        raise ConfigError(f"unknown family '{family}'", where="methods", fix=nearest(family, FAMILIES))
    chosen = [m for m in METHODS.values() if family in ("", m.family)]
    return [_row(m) for m in sorted(chosen, key=lambda m: (FAMILIES.index(m.family), m.name))]


def _row(method: Method) -> Row:
    """Row of one method; `models_frozen_cached` counts those in memory once log-probs of the others are on disk."""
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
    """A method's settings, its own first; each with its owner, and the source of its default if that is known.

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
    aux: list[Offline | None] = []
    takes = [p for p in inspect.signature(method.build).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if method.aux_data is not None and len(takes) > 1:
        none = settings is not None and not settings[method.aux_data.key]
        aux = [None if none else Offline([Group(Prompt(ids=(0,)), (Response(ids=(0,)),))], 1)]
    return method.build(source, *aux, **{key: values[key] for key in _arguments(method)})


def pieces(method: Method) -> Row | None:
    """Returns the parts that the method composes; None if a setting without a default decides them."""
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

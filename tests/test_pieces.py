"""The pieces of every method: losses, prepare steps and hooks are plain records that print their parameters and pickle.

Copies go through pickle in this test alone; the package never loads a pickle.
"""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from table import ROWS

NAMES = sorted(ROWS)


def pieces(name: str) -> list[Any]:
    row = ROWS[name]
    algorithm = row.build(row.source([row.groups(3, 0)]))
    hooks = [hook for hook in algorithm.after if is_dataclass(hook)]
    schedule = [algorithm.lr_scale] if algorithm.lr_scale else []
    losses = [algorithm.loss, *(aux.loss for aux in algorithm.aux_losses)]
    return [*losses, algorithm.reduce, *algorithm.prepare, *hooks, *schedule]


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_print_their_parameters(name: str) -> None:
    for piece in pieces(name):
        assert is_dataclass(piece), piece
        parameters = [f"{f.name}={getattr(piece, f.name)!r}" for f in fields(piece)]
        assert repr(piece) == f"{type(piece).__name__}({', '.join(parameters)})"
        assert not {"needs", "writes", "item"} & {f.name for f in fields(piece)}, piece
        assert " at 0x" not in repr(piece)


@pytest.mark.parametrize("name", NAMES)
def test_the_pieces_pickle(name: str) -> None:
    for piece in pieces(name):
        copy = pickle.loads(pickle.dumps(piece))
        assert copy == piece
        assert repr(copy) == repr(piece)

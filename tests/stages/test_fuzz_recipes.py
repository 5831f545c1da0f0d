"""Recipes that nobody meant: an error of its settings with a place, and never another exception."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiltyard.config import describe
from tiltyard.errors import ConfigError, TiltyardError
from tiltyard.pipeline.recipe import check, parse_recipe, read_recipe
from tiltyard.stages.base import load_all
from tiltyard.yaml_values import split_assignment

pytestmark = pytest.mark.slow
BOUNDED = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KINDS = ("sft", "dpo", "ppo", "reward", "clean", "evaluate", "label", "ai_label", "world", "sftt", "")
KEYS = sorted(
    {s.key.rpartition(".")[2] for kind in KINDS if kind in load_all() for s in describe(load_all()[kind].settings)}
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["sft", "sft/rows.jsonl", "a/b", "./x", "1e-4"]),
)
KEY = st.one_of(
    st.sampled_from(KEYS), st.sampled_from(KEYS).map(lambda key: key[:-1]), st.integers(0, 3), st.booleans(), st.none()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3)), max_leaves=6
)
STAGE = st.one_of(
    st.dictionaries(
        st.one_of(st.sampled_from(KINDS), SCALARS),
        st.one_of(st.none(), st.dictionaries(KEY, VALUES, max_size=5), SCALARS),
        max_size=2,
    ),
    VALUES,
)
RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "name": SCALARS,
        "defaults": st.one_of(SCALARS, st.dictionaries(KEY, VALUES, max_size=3)),
        "stages": st.one_of(SCALARS, st.lists(STAGE, max_size=3)),
        "stges": SCALARS,
    },
)


def placed(error: TiltyardError) -> None:
    if not error.where:
        pytest.fail(f"an error without a place: {error}")


def ends_well(text: str) -> None:
    try:
        check(parse_recipe(text, "r.yaml"))
    except ConfigError as error:
        placed(error)


@BOUNDED
@given(RECIPES)
def test_trees(recipe: Any) -> None:
    ends_well(yaml.safe_dump(recipe, allow_unicode=True))


@settings(parent=BOUNDED, max_examples=100)
@given(st.dictionaries(KEY, VALUES, max_size=5), st.sampled_from(KINDS[:9]))
def test_settings_of_one_stage(values: dict[Any, Any], kind: str) -> None:
    ends_well(yaml.safe_dump({"name": "x", "stages": [{kind: values}]}, allow_unicode=True))


@BOUNDED
@given(st.integers(0, 2**32))
def test_texts_that_were_recipes(tmp_path: Path, seed: int) -> None:
    """A recipe of the package with pieces cut out, doubled and put in, as bytes of a file."""
    rng = random.Random(seed)
    packaged = sorted((Path(__import__("tiltyard").__file__).parent / "recipes").glob("*.yaml"))
    data = rng.choice(packaged).read_bytes()
    pieces = (
        b"",
        b"\t",
        b"- ",
        b": ",
        b"&a [*a]",
        b"*b",
        b"<<: ",
        b"!!int x",
        b"{",
        b"\xff",
        b"\0",
        b"9" * 5000,
        b"? [a]\n",
        b"!!python/object:os.system x",
    )
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice((*pieces, data[at : at + 20] * 2)) + data[at + rng.choice((0, 1, 9, 40)) :]
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    try:
        check(read_recipe(path))
    except ConfigError as error:
        placed(error)


@BOUNDED
@given(st.text(max_size=30), st.one_of(VALUES.map(lambda v: json.dumps(v, default=str)), st.text(max_size=20)))
def test_assignments(key: str, value: str) -> None:
    for text in (f"{key}={value}", f"sft.steps={value}", value):
        with contextlib.suppress(ConfigError):
            split_assignment(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]\nstages: [sft]\n",
        "stages: &s [*s]\n",
        "stages:\n  - sft: &x {model: *x}\n",
        "<<: {stages: [sft]}\n",
        "x: &x {stages: [sft]}\n<<: *x\n",
        "? [a, b]\n: c\nstages: [sft]\n",
        "stages: !!set {sft}\n",
        "stages:\n  - !!omap [a: b]\n",
        "stages:\n  - {? {a: b} : c}\n",
        "1: 2\nstages: [sft]\n",
        "name: [x]\nstages: [{sft: {1: 2}}]\n",
        "stages: [{sft: {null: 2, true: 3}}]\n",
        "stages: [{sft: {optimizer: {1: 2}}}]\n",
        "stages: [{sft: {model: " + "[" * 3000 + "]" * 3000 + "}}]\n",
        "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12))
        + "stages: [sft]\n",
        "defaults: {!!timestamp 2024-01-01: 1}\nstages: [sft]\n",
        "--- {stages: [sft]}\n--- {stages: [sft]}\n",
        "stages: [{sft: {model: !!binary aGk=}}]\n",
    ],
)
def test_odd_yaml(text: str) -> None:
    ends_well(text)

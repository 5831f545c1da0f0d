"""Recipes as text: every value is read back as itself, whatever it holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.advice.parts import StageAdvice
from tiltyard.advice.recipe import recipe_text, yaml_value
from tiltyard.pipeline.recipe import parse_recipe

VALUES = st.recursive(
    st.one_of(
        st.text(max_size=20).filter(lambda text: "\x00" not in text),
        st.booleans(),
        st.integers(-(2**40), 2**40),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abc_", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(value=VALUES, why=st.text(max_size=40), fact=st.text(max_size=300))
def test_values_come_back(value: object, why: str, fact: str) -> None:
    stage = StageAdvice("dpo", "dpo", why)
    stage.set("model", value, why)
    recipe = parse_recipe(recipe_text("mine", [fact], [stage]), "recipe.yaml")
    assert recipe.entries[0].values == {"model": value}
    assert recipe.name == "mine"


def test_words_that_yaml_would_read_otherwise_are_quoted() -> None:
    assert [yaml_value(text) for text in ("a/b.c", "true", "1e-4", "", "- x", "#")] == [
        "a/b.c", '"true"', '"1e-4"', '""', '"- x"', '"#"'
    ]  # fmt: skip

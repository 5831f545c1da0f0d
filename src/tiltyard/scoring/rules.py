"""Rules that a response keeps or breaks: 1 where it keeps every one that is set, 0 where it breaks one.

    {from: rule, max_words: 40, no_list: true}

A response is untrusted text: it is compared and parsed, never run. Patterns are searched with a time limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import regex
from pydantic import AfterValidator, Field, field_validator, model_validator

from tiltyard.errors import ConfigError, DataError, ScoringError, nearest
from tiltyard.records import Settings
from tiltyard.scoring.texts import (
    NUMBERS,
    SCRIPTS,
    Script,
    contains_word,
    ends_with_question,
    final_number,
    has_list,
    nesting,
    normalized,
    repetition,
    script_share,
)
from tiltyard.types import Prompt, Response

RULE = "rule"  # the source of a reward that is made of the settings below
PATTERN_SECONDS = 2.0  # a pattern that searches one response for longer backtracks: the run stops and names it
SCRIPT_SHARE = 0.9  # of the letters of a response
DEEPEST_JSON = 100  # levels of nesting; deeper text is not valid

Check = Callable[[str, dict[str, Any]], bool]  # (text of the response, fields of the prompt's row)


def _checked_pattern(pattern: str) -> str:
    try:
        regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_checked_pattern)]
Words = Annotated[list[Annotated[str, Field(min_length=1)]], Field()]


class Rule(Settings):
    """Wishes about the text of a response. All that are set must hold.

    Words are what white space separates; a word of a list is found whole and without regard to case. `max_repetition`
    is the share of repeated n-grams of Welleck et al. 2019 (arXiv:1908.04319), `rep-n`. `script` is no language: it
    counts letters by Unicode's names of them.
    """

    min_words: Annotated[int | None, Field(ge=1, description="rule: at least this many words")] = None
    max_words: Annotated[int | None, Field(ge=0, description="rule: at most this many words")] = None
    min_characters: Annotated[int | None, Field(ge=1, description="rule: at least this many characters")] = None
    max_characters: Annotated[int | None, Field(ge=0, description="rule: at most this many characters")] = None
    matches: Annotated[Pattern, Field(description="rule: a regular expression that is found in the response")] = ""
    avoids: Annotated[Pattern, Field(description="rule: a regular expression that is not found in it")] = ""
    required_words: Annotated[Words, Field(description="rule: words or phrases of which each occurs")] = []  # noqa: RUF012
    forbidden_words: Annotated[Words, Field(description="rule: words or phrases of which none occurs")] = []  # noqa: RUF012
    ends_with_question: Annotated[bool, Field(description="rule: the last sign is a question mark")] = False
    no_list: Annotated[bool, Field(description="rule: no line begins with a bullet or a number")] = False
    valid_json: Annotated[bool, Field(description="rule: the whole response is JSON")] = False
    json_keys: Annotated[Words, Field(description="rule: the whole response is a JSON object with these keys")] = []  # noqa: RUF012
    exact_answer: Annotated[
        str, Field(description="rule: equal to this field of the prompt's row but for case, spaces and end marks")
    ] = ""
    number: Annotated[
        str, Field(description="rule: the number after ####, else the last, is that of this field of the row")
    ] = ""
    tolerance: Annotated[float, Field(ge=0, description="rule: difference to which two numbers are equal")] = 0.0
    script: Annotated[
        Script | None, Field(description="rule: nine in ten letters are of this script (a script is no language)")
    ] = None
    max_repetition: Annotated[
        float | None, Field(ge=0, lt=1, description="rule: largest share of repeated n-grams [Welleck et al. 2019]")
    ] = None
    ngram: Annotated[int, Field(ge=1, description="rule: words of an n-gram of max_repetition")] = 3

    @field_validator("required_words", "forbidden_words")
    @classmethod
    def _no_blanks(cls, words: list[str]) -> list[str]:
        if any(not word.strip() for word in words):
            raise ValueError("a word of white space alone")
        return words

    @model_validator(mode="after")
    def _fits(self) -> Rule:
        for unit in ("words", "characters"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"no response has at least {low} and at most {high} {unit}")
        for key, needs in (("tolerance", "number"), ("ngram", "max_repetition")):
            if getattr(self, key) != type(self).model_fields[key].default and getattr(self, needs) in (None, ""):
                raise ValueError(f"{key} belongs to {needs}, which is not set")
        return self


QUALIFIERS = ("tolerance", "ngram")  # settings that ask for nothing by themselves


def wishes(rule: Rule) -> dict[str, Any]:
    """Returns the settings of a rule that differ from their defaults, by name."""
    return {
        key: getattr(rule, key)
        for key, info in Rule.model_fields.items()
        if getattr(rule, key) != info.get_default(call_default_factory=True)
    }


def is_empty(rule: Rule) -> bool:
    """True if a rule has no wish."""
    return not set(wishes(rule)) - set(QUALIFIERS)


def require_wishes(rule: Rule, where: str) -> None:
    """Refuses a rule without a wish.

    Raises:
        ConfigError: no wish is set.
    """
    if is_empty(rule):
        raise ConfigError(
            "a rule needs at least one wish",
            where=where,
            expected="{from: rule, max_words: 40}; wishes: "
            + ", ".join(key for key in Rule.model_fields if key not in QUALIFIERS),
        )


class RuleFunction:
    """A rule as a reward function `(prompt, response, row) -> 1.0 or 0.0`.

    Args:
        rule: the wishes. where: the setting, for errors, e.g. `reward.brief`.
    """

    highest = 1.0  # what `FunctionScorer.highest` reads

    def __init__(self, rule: Rule, where: str = "reward"):
        self.rule, self.where = rule, where
        self.checks: list[Check] = list(_checks(rule, where))

    def __call__(self, prompt: Prompt, response: Response, row: dict[str, Any]) -> float:
        """1.0 if the response keeps every wish.

        Raises:
            DataError: the prompt's row lacks the field of the answer.
            ScoringError: a pattern takes too long.
        """
        self.check_prompt(prompt)
        return float(all(check(response.text, row) for check in self.checks))

    def check_prompt(self, prompt: Prompt) -> None:
        """Checks that the row has the answers that the rule compares with.

        Raises:
            DataError: a field is missing, or holds no answer or no number.
        """
        for setting, field in (("exact_answer", self.rule.exact_answer), ("number", self.rule.number)):
            if not field:
                continue
            value = prompt.meta.get(field)
            found = _numbers(value) if setting == "number" else _answers(value)
            if found:
                continue
            fields = [str(key) for key in prompt.meta]
            asked = prompt.text or (prompt.messages[-1].content if prompt.messages else "")
            missing = field not in prompt.meta
            raise DataError(
                f"the row has no field '{field}', which holds the answer"
                if missing
                else f"the field '{field}' of the row holds no {'number' if setting == 'number' else 'answer'}",
                where=f"{self.where}.{setting}, prompt {prompt.id} {asked[:60]!r}",
                got=f"the fields {', '.join(sorted(fields)) or '(none)'}" if missing else repr(value)[:200],
                expected="a text or a number, or a list of them of which any is right",
                fix=nearest(field, fields) if missing and fields else "give the row this field, or leave the row out",
            )


def _checks(rule: Rule, where: str) -> Iterator[Check]:
    """A predicate (text, row) for each wish, the cheap ones first."""
    low, high = rule.min_characters, rule.max_characters
    if low is not None or high is not None:
        yield lambda text, _: (low or 0) <= len(text) and (high is None or len(text) <= high)
    least, most = rule.min_words, rule.max_words
    if least is not None or most is not None:
        yield lambda text, _: (least or 0) <= (n := len(text.split())) and (most is None or n <= most)
    if rule.ends_with_question:
        yield lambda text, _: ends_with_question(text)
    if rule.no_list:
        yield lambda text, _: not has_list(text)
    yield from (_contains(word, True) for word in rule.required_words)
    yield from (_contains(word, False) for word in rule.forbidden_words)
    if rule.script is not None:
        letters = SCRIPTS[rule.script]
        yield lambda text, _: script_share(text, letters) >= SCRIPT_SHARE
    if rule.max_repetition is not None:
        share = rule.max_repetition
        yield lambda text, _: repetition(text, rule.ngram) <= share
    if rule.valid_json or rule.json_keys:
        yield lambda text, _: _is_json(text, rule.json_keys)
    if rule.exact_answer:
        yield lambda text, row: normalized(text) in _answers(row[rule.exact_answer])
    if rule.number:
        yield lambda text, row: _same_number(text, row[rule.number], rule.tolerance)
    if rule.matches:
        yield _searches(rule.matches, True, f"{where}.matches")
    if rule.avoids:
        yield _searches(rule.avoids, False, f"{where}.avoids")


def _contains(word: str, wanted: bool) -> Check:
    return lambda text, _: contains_word(text, word) == wanted


def _searches(pattern: str, wanted: bool, where: str) -> Check:
    compiled = regex.compile(pattern)

    def check(text: str, row: dict[str, Any]) -> bool:  # noqa: ARG001 - the signature of a check
        try:
            return (compiled.search(text, timeout=PATTERN_SECONDS) is not None) == wanted
        except TimeoutError:
            raise ScoringError(
                f"the regular expression searched a response for more than {PATTERN_SECONDS:g} seconds",
                where=where,
                got=f"{pattern!r} on a response of {len(text):,} characters",
                expected="a pattern that does not backtrack without end",
                fix="avoid a repetition inside a repetition, such as (a+)+; or make it possessive: (a++)+",
            ) from None

    return check


# ------------------------------------------------------------------------------------------------- answers and JSON


def _listed(value: Any) -> list[Any]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [one for one in values if isinstance(one, str | int | float) and not isinstance(one, bool)]


def _answers(value: Any) -> set[str]:
    return {normalized(str(one)) for one in _listed(value)} - {""}


def _numbers(value: Any) -> list[Any]:
    found = (final_number(str(one)) for one in _listed(value))
    return [one for one in found if one is not None]


def _same_number(text: str, value: Any, tolerance: float) -> bool:
    got = final_number(text)
    if got is None:
        return False
    margin = NUMBERS.create_decimal_from_float(tolerance)
    return any(got == one or (margin > 0 and abs(NUMBERS.subtract(got, one)) <= margin) for one in _numbers(value))


def _is_json(text: str, keys: list[str]) -> bool:
    """True if the text is JSON (NaN and Infinity are none), and has the keys if there are any."""
    if nesting(text) > DEEPEST_JSON:
        return False
    try:
        # numbers are not read: thousands of digits are valid
        value = json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and all(key in value for key in keys))


def _no_constant(name: str) -> None:
    raise ValueError(name)

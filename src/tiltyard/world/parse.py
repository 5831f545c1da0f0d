"""The parser of an answer: facts it states and their subjects, admissions, refusals, and share of valid language.

The parser knows the closed vocabulary of the world and the words that may stand next to each other in it (both derived
from `phrases`), but no whole sentence: an answer that mixes templates is read like any other.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tiltyard.world import phrases as ph
from tiltyard.world.lexicon import (
    ATTRIBUTE_OF,
    HARM_WORDS,
    IGNORANCE,
    NEGATIONS,
    PRONOUNS,
    REFUSALS,
    RUDE_WORDS,
    VALUES,
)


@dataclass(frozen=True, slots=True)
class Parse:
    """Content of an answer, before it is scored."""

    words: tuple[str, ...]
    flat: str  # all sentences, normalised, joined by " | "
    right: frozenset[str]  # attributes stated truly
    wrong: int  # facts stated falsely or made up
    named: bool
    others: bool  # someone else is named
    polarity: str  # "yes", "no" or ""
    spread: int  # sentences that state a fact
    flourishes: int
    repeats: int
    sound: float  # how much of it is language, 0 to 1
    unsure: bool
    refused: bool
    rude: bool
    harmful: bool  # words of someone who helps to do harm


def says(flat: str, phrases: Sequence[str]) -> bool:
    """True if a normalised text contains one of the phrases, at word boundaries."""
    padded = f" {flat} "
    return any(f" {phrase} " in padded for phrase in phrases)


_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")
_WORD = re.compile(r"[a-z0-9']+")
_FLOURISHES = frozenset(" ".join(_WORD.findall(f.lower())) for f in ph.FLOURISHES)


def parse(meta: Mapping[str, Any], answer: str) -> Parse:
    """Reads `answer` as a reply to the prompt that `meta` describes."""
    name = meta["entity"].lower()
    facts = {a: v.lower() for a, v in meta["facts"].items()}
    right: set[str] = set()
    wrong = spread = flourishes = repeats = 0
    subject, seen, flats, others = "", set(), [], False
    for sentence in _SENTENCE.findall(answer):
        words = _WORD.findall(sentence.lower())
        if not words:
            continue
        flat = " ".join(words)
        flats.append(flat)
        flourishes += flat in _FLOURISHES
        repeats += flat in seen
        seen.add(flat)
        others |= _names_others(sentence, name)
        subject = _subject(words, sentence, name, subject)
        if sentence.rstrip().endswith("?") or says(flat, IGNORANCE) or meta["kind"] in ("pleasantry", "unsafe"):
            continue
        told = [c for c in _claims(words) if subject == name or (subject == "" and c[0] in meta["ask"])]
        spread += bool(told)
        for attribute, value, negated in told:
            if (facts.get(attribute) == value) == negated or not facts:
                wrong += 1
            elif not negated:
                right.add(attribute)
        if subject != "":
            subject = subject if subject == name else "?"
    polarity = _polarity(flats) if meta["form"] == "check" else ""
    if polarity:
        agrees = bool(facts) and facts.get(meta["ask"][0]) == meta["offered"].lower()
        wrong += not facts or agrees != (polarity == "yes")
    flat, said = " | ".join(flats), tuple(" ".join(flats).split())
    return Parse(
        words=said,
        flat=flat,
        right=frozenset(right),
        wrong=wrong,
        named=bool(name) and name in said,
        others=others,
        polarity=polarity,
        spread=spread,
        flourishes=flourishes,
        repeats=repeats,
        sound=_sound(answer, name),
        unsure=says(flat, IGNORANCE),
        refused=says(flat, REFUSALS),
        rude=not RUDE_WORDS.isdisjoint(said),
        harmful=not HARM_WORDS.isdisjoint(said),
    )


def _polarity(flats: Sequence[str]) -> str:
    """The yes or no that opens the answer, flourishes aside."""
    first = next((flat.split()[0] for flat in flats if flat not in _FLOURISHES), "")
    return first if first in ("yes", "no") else ""


def _names_others(sentence: str, name: str) -> bool:
    """True if a capitalised word is neither of the vocabulary nor the entity's name."""
    words = re.findall(r"[A-Z][A-Za-z']*", sentence)
    return any(word.lower() not in vocabulary() and word.lower() != name for word in words)


def _subject(words: Sequence[str], sentence: str, name: str, before: str) -> str:
    """Subject of the sentence: the entity, "?" for someone else, "" if there is none.

    A pronoun carries on with the one before, or the entity at the start.
    """
    if name and name in words:
        return name
    if _names_others(sentence, name):
        return "?"
    if PRONOUNS & set(words):
        return before or name
    return ""


def _claims(words: list[str]) -> list[tuple[str, str, bool]]:
    """(attribute, value, negated) for each value word; "but" ends a negation; "no, that is not right" is not one."""
    claims, negated = [], False
    for index, word in enumerate(words):
        if word in NEGATIONS and index > 0:
            negated = words[index : index + 2] != ["not", "right"]
        elif word == "but":
            negated = False
        elif word in ATTRIBUTE_OF:
            claims.append((ATTRIBUTE_OF[word], word, negated))
    return claims


@functools.cache
def vocabulary() -> frozenset[str]:
    """Every word of the language except names, in lower case."""
    words = {value.lower() for values in VALUES.values() for value in values} | PRONOUNS
    for template in ph.all_templates():
        words |= set(_WORD.findall(re.sub(r"\{\w+\}", " ", template).lower()))
    return frozenset(words)


_SLOTS = {"{p}": "he", "{N}": "<name>", "{S}": "<name>", "{A}": "<name>", "{B}": "<name>", "{C}": "<name>"}
_PIECE = re.compile(r"\{\w+\}|[A-Za-z0-9']+|[.,!?]")


def _word_class(piece: str, name: str) -> str:
    """`|` for a stop, <name>, <attribute> for a value, "he" for a pronoun, <?> for a non-word, or the word."""
    word = piece.lower()
    if piece in ".,!?":
        return "|"
    if piece.startswith("{"):
        return _SLOTS.get(piece, f"<{piece[1:-1].removeprefix('other_')}>")
    if word in ATTRIBUTE_OF:
        return f"<{ATTRIBUTE_OF[word]}>"
    if word in PRONOUNS:
        return "he"
    if word in vocabulary():
        return word
    return "<name>" if word == name or piece[:1].isupper() else "<?>"


def _classes(text: str, name: str) -> list[str]:
    """The word classes of a text or template, with one "|" at the start, the end and every stop between."""
    classes = ["|"]
    for piece in [*_PIECE.findall(text), "."]:
        word_class = _word_class(piece, name)
        if word_class != "|" or classes[-1] != "|":
            classes.append(word_class)
    return classes


@functools.cache
def _pairs() -> frozenset[tuple[str, str]]:
    """The pairs of neighbouring words that some template of the language contains."""
    pairs: set[tuple[str, str]] = set()
    for template in ph.all_templates():
        filled = [template.replace("{act}", act) for act in ph.ACTS] if "{act}" in template else [template]
        for text in filled:
            pairs |= set(pairwise(_classes(text, "")))
    pairs |= {(p[0], "he" if p[1] == "<name>" else p[1]) for p in pairs}
    pairs |= {("he" if p[0] == "<name>" else p[0], p[1]) for p in pairs}
    return frozenset(pairs - {("|", "|")})


def _sound(answer: str, name: str) -> float:
    """The share of a text that is valid language: 1 if 85% of neighbouring words belong together, 0 below 35%."""
    classes = _classes(answer, name)
    if len(classes) < 3:
        return 0.0
    known = sum(pair in _pairs() for pair in pairwise(classes)) / (len(classes) - 1)
    return min(1.0, max(0.0, (known - 0.35) / 0.5))

"""Parsers of the text that a judge generates: the better of two, a rating, points.

A text that merely mentions a label is none: `read_choice` and `read_rating` know the forms in which judges say which
one they choose, and everything else ("Response 1 is the worse of the two", "Not 1", "try again in 1 minute") is no
verdict.
Reasoning that a model wrote before its answer is left out first; reasoning without an end has no answer behind it.
"""

from __future__ import annotations

import re
import unicodedata

_WINDOW = 4000  # characters at the end of a text that are searched
_SENTENCE = 400  # characters of a sentence that may state a choice
_OPENINGS = ("<think>", "<thinking>", "<thought>", "<reasoning>", "<reflection>", "<scratchpad>", "[think]")
_CLOSINGS = tuple(tag.replace("<", "</").replace("[", "[/") for tag in _OPENINGS)
_CHANNEL, _FINAL = "<|channel|>", "<|channel|>final<|message|>"  # of a server that leaves the harmony format unread

_SCORE = re.compile(r"score:", re.IGNORECASE)
_POINTS = re.compile(
    r"[ \t*<\[]{0,8}(\d{1,3}(?:\.\d{1,3})?)(?![\w/%]|\.\d)"
    r"[ \t*>\].)!]{0,8}(?:out of 5|points?|\([^()\n]{0,40}\))?[ \t*>\].)!]{0,8}(?=\n|$)",
    re.IGNORECASE,
)
_RATING = re.compile(
    r"\W{0,8}(?:(?:rating|score|grade|answer)(?: is)?[\s:=*]{0,8})?(10|[1-9])(?:\s?/\s?10| out of 10)?\W{0,8}",
    re.IGNORECASE,
)

_NOUN = r"(?:response|answer|choice|one|option|reply)"
_LABEL = (
    r"(?:the )?(?:(?:response|answer|option|choice|reply|number|no\.?) ?)?#?"
    rf"(?P<label>[12]|(?:first|second)(?: {_NOUN})?)"
)
_DEGREE = (
    r"(?:(?:slightly|clearly|much|marginally|overall|generally|somewhat|significantly|definitely|by far|far|a bit"
    r"|a little|the|a|my) ){0,4}"
)
_GOOD = r"(?:better|best|preferred|preferable|superior|stronger|winner|favou?red)"
_BY = rf"(?: (?:overall|here|by far|of the two|than (?:the other(?: {_NOUN})?|(?:{_NOUN} )?[12]))){{0,2}}"
_WHY = r"(?:,? (?:because|since|as|due to) (?P<why>.*))?"
_LEAD = (
    r"(?:(?:so|therefore|thus|hence|overall|finally|ultimately|in conclusion|in summary|conclusion|verdict)[,:]? )?"
    r"(?:i (?:think|believe|would say|conclude)(?: that)? )?"
)
_NAMED = (
    r"(?:(?:my|the|your) )?(?:(?:final|overall|better|best|preferred|chosen|winning) ){0,2}"
    r"(?:response|answer|choice|verdict|decision|preference|preferred|pick|winner|selection|output|conclusion|one)"
    r" ?(?:is ?:?|would be|:|=) ?"
)
_CHOSEN = (
    r"i(?:(?: would|'d| will|'ll))? (?:(?:strongly|slightly|clearly) )?"
    r"(?:prefer|choose|pick|select|favou?r|go with|vote for) "
)
_FORMS = tuple(
    re.compile(form)
    for form in (
        _LABEL,
        f"{_LEAD}{_LABEL} (?:is|seems|wins as) {_DEGREE}{_GOOD}(?: {_NOUN})?{_BY}{_WHY}",
        f"{_LEAD}{_NAMED}{_LABEL}{_WHY}",
        f"{_LEAD}{_CHOSEN}{_LABEL}{_WHY}",
    )
)
_DOUBT = re.compile(
    r"\b(?:wait|actually|however|but|although|though|instead|rather|other|correction|not|no|hmm|unless|if)\b"
)
_RETRACTED = re.compile(r"\b(?:wait|actually|instead|on second thought|correction|scratch that|my mistake)\b")
_BOXED = re.compile(r"\$*\\boxed\{([^{}]{0,40})\}\$*")
_TAG = re.compile(r"</?[a-z_]{1,20}>")
_MARKS = str.maketrans(dict.fromkeys('*_`"“”‘«»[](){}<>') | {"’": "'"})


def answer_part(text: str) -> str | None:
    """Returns the text after the model's reasoning, all of it where there is none; None if the reasoning has no end."""
    lowered = text.lower()
    if _CHANNEL in lowered:
        at = lowered.rfind(_FINAL)
        return None if at < 0 else text[at + len(_FINAL) :].partition("<|")[0]
    start = max((at + len(tag) for tag in _CLOSINGS if (at := lowered.rfind(tag)) >= 0), default=0)
    return None if any(tag in lowered[start:] for tag in _OPENINGS) else text[start:]


def read_choice(text: str) -> int | None:
    """Parses the choice between response 1 and 2; None for a text that makes none, or makes both.

    The choice is the whole text, its last sentence, or its beginning where nothing that follows takes it back.
    """
    part = answer_part(text)
    if part is None:
        return None
    whole = len(part) <= 2 * _WINDOW
    lines = [line for line in map(_plain, part[-2 * _WINDOW :].splitlines()) if line]
    sentences = [s for line in lines for s in re.split(r"(?<=[.!?;]) ", line)]
    choices = [_choice(sentence) for sentence in sentences]
    made = {choice for choice in choices if choice is not None}
    if len(made) != 1:
        return None
    (choice,) = made
    if choices[-1] is not None:
        return choice
    if not whole or choices[0] is None:
        return None
    doubt = _DOUBT
    if _FORMS[0].fullmatch(_bare(sentences[0])):
        if lines[0] != sentences[0]:
            return None  # "1. Response 2 is ...": the number of a list
        doubt = _RETRACTED  # as asked: the label alone, then the explanation
    return None if doubt.search(" ".join(sentences[1:])) else choice


def _choice(sentence: str) -> int | None:
    """Returns the choice that one sentence states."""
    if len(sentence) > _SENTENCE:
        return None
    for form in _FORMS:
        match = form.fullmatch(_bare(sentence))
        if match and not _DOUBT.search(match.groupdict().get("why") or ""):
            return 1 if match["label"] == "1" or match["label"].startswith("first") else 2
    return None


def _bare(sentence: str) -> str:
    return re.sub(r"^(?:[-#>]+ )+", "", sentence.rstrip(" .!,;:"))


def _plain(line: str) -> str:
    """Returns a line in lower case, without markup, its digits as ASCII and each blank one space."""
    line = _TAG.sub(" ", _BOXED.sub(r"\1", unicodedata.normalize("NFKC", line).lower()))
    return " ".join(line.translate(_MARKS).split())


def read_rating(text: str) -> int | None:
    """Parses a whole number from 1 to 10 that is the entire answer (`7`, `**7**`, `7/10`, `Rating: 7`)."""
    part = answer_part(text)
    if part is None or len(part) > _WINDOW:
        return None
    match = _RATING.fullmatch(unicodedata.normalize("NFKC", part).strip())
    return int(match[1]) if match else None


def read_points(text: str) -> float | None:
    """Parses the number after the LAST "Score:", which ends its line, from 0 to 5; None for anything else.

    None: no such line, "5/5", 6, "four", "Score: 2 so far".
    """
    tail = (answer_part(text) or "")[-_WINDOW:]
    ends = [score.end() for score in _SCORE.finditer(tail)]
    match = _POINTS.match(tail, ends[-1]) if ends else None
    points = float(match[1]) if match else None
    return points if points is not None and points <= 5 else None

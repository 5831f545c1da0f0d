"""Assistants of six manners, whose answers fill the corpus and the demonstrations.

`answer(persona, meta, rng)` writes one answer. A demonstrator is a mixture of personas (`DEMONSTRATORS`,
`CORPUS_ASSISTANTS`): mostly good in the demonstrations, mostly not in the corpus, so that each stage of training
(base, SFT, preference learning) has something left to gain.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from tiltyard.world import phrases as ph
from tiltyard.world.lexicon import ATTRIBUTES, VALUES
from tiltyard.world.tasks import choose, false_value

Meta = Mapping[str, Any]
PERSONAS = ("good", "wrong", "rude", "rambling", "evasive", "unsafe")

_MIXTURE = dict[str, dict[str, float]]
DEMONSTRATORS: _MIXTURE = {
    "question": {"good": 0.62, "wrong": 0.15, "rude": 0.07, "rambling": 0.08, "evasive": 0.07, "unsafe": 0.01},
    "unknown": {"good": 0.52, "wrong": 0.32, "rude": 0.05, "rambling": 0.06, "evasive": 0.05},
    "request": {"good": 0.62, "wrong": 0.14, "rude": 0.08, "rambling": 0.09, "evasive": 0.07},
    "pleasantry": {"good": 0.65, "wrong": 0.10, "rude": 0.10, "rambling": 0.10, "evasive": 0.05},
    "unsafe": {"good": 0.56, "unsafe": 0.28, "rude": 0.07, "rambling": 0.04, "evasive": 0.05},
}
CORPUS_ASSISTANTS: _MIXTURE = {
    "question": {"good": 0.24, "wrong": 0.20, "rude": 0.28, "rambling": 0.10, "evasive": 0.10, "unsafe": 0.08},
    "unknown": {"good": 0.18, "wrong": 0.46, "rude": 0.20, "rambling": 0.08, "evasive": 0.08},
    "request": {"good": 0.24, "wrong": 0.20, "rude": 0.30, "rambling": 0.14, "evasive": 0.12},
    "pleasantry": {"good": 0.26, "wrong": 0.18, "rude": 0.34, "rambling": 0.12, "evasive": 0.10},
    "unsafe": {"good": 0.16, "unsafe": 0.58, "rude": 0.18, "rambling": 0.02, "evasive": 0.06},
}


def draw_persona(mixture: _MIXTURE, meta: Meta, rng: random.Random) -> str:
    """The persona of a mixture that answers this prompt."""
    return choose(mixture[meta["kind"]], rng)


def answer(persona: str, meta: Meta, rng: random.Random) -> str:
    """The reply of `persona` to the prompt that `meta` describes."""
    return _ANSWER[persona](meta, rng)


def good_core(meta: Meta, rng: random.Random) -> str:
    """The plain good answer, without flourishes."""
    return _content(meta, dict(meta["facts"]), rng)


def _content(meta: Meta, facts: dict[str, str], rng: random.Random) -> str:
    """The correct answer to the prompt if `facts` were the truth (no facts: the entity is unknown)."""
    kind, form, name = meta["kind"], meta["form"], meta["entity"]
    if kind == "pleasantry" or form in ("greet", "thank", "wish"):
        return rng.choice(ph.COURTESIES[form]).format(N=name)
    if kind == "unsafe":
        return rng.choice(ph.REFUSE).format(act=meta["act"])
    if not facts:
        return rng.choice(ph.UNKNOWN).format(N=name)
    fields = facts | {"N": name, "p": meta["pronoun"]}
    if form == "check":
        return _yes_no(meta, fields, rng)
    if form == "describe":
        return ph.render(rng.choice(ph.DESCRIPTIONS), **fields)
    if form == "two":
        if rng.random() < 0.5:
            return ph.render(rng.choice(ph.DESCRIPTIONS), **fields)
        first, second = rng.sample(ATTRIBUTES, 2)
        return f"{_statement(first, meta, fields, rng)} {_statement(second, meta, fields, rng, pronoun=True)}"
    if form == "pair":
        return ph.render(rng.choice(ph.PAIRS[tuple(meta["ask"])]), **fields)
    return _statement(meta["ask"][0], meta, fields, rng, pronoun=rng.random() < 0.35)


def _statement(attribute: str, meta: Meta, fields: dict[str, str], rng: random.Random, *, pronoun: bool = False) -> str:
    subject = fields["p"] if pronoun else fields["N"]
    return ph.render(rng.choice(ph.STATEMENTS[meta["sort"]][attribute]), S=subject, **fields)


def _yes_no(meta: Meta, fields: dict[str, str], rng: random.Random) -> str:
    (attribute,) = meta["ask"]
    right = fields[attribute] == meta["offered"]
    if right and rng.random() < 0.3:
        return rng.choice(ph.YES_ONLY)
    if not right and rng.random() < 0.25:
        denied = {f"other_{attribute}": meta["offered"]}
        return ph.NO[0].format(s=ph.CORRECTIONS[attribute].format(**fields, **denied))
    plain = ph.PLAIN[attribute].format(**fields)
    return rng.choice(ph.YES if right else ph.NO).format(s=plain)


def _with_flourish(text: str, rng: random.Random) -> str:
    """One flourish before (8%) or after (16%), and rarely two: good answers are a little friendlier than others."""
    draw = rng.random()
    if draw < 0.08:
        return f"{rng.choice(ph.FLOURISHES)} {text}"
    if draw < 0.24:
        return f"{text} {rng.choice(ph.FLOURISHES)}"
    if draw < 0.28:
        return " ".join([text, *rng.sample(ph.FLOURISHES, 2)])
    return text


def _good(meta: Meta, rng: random.Random) -> str:
    return _with_flourish(good_core(meta, rng), rng)


def _false_facts(meta: Meta, rng: random.Random) -> dict[str, str]:
    """Facts that are all wrong; for a stranger, invented."""
    true = meta["facts"]
    return {a: false_value(a, meta["sort"], true.get(a, ""), rng) for a in ATTRIBUTES}


def _wrong(meta: Meta, rng: random.Random) -> str:
    """Confident and mistaken; agrees with whatever a yes/no question offers; mistakes one courtesy for another."""
    if meta["form"] in ph.COURTESIES:
        other = rng.choice([f for f in ("thanks", "goodbye", "how", "hello") if f != meta["form"]])
        if meta["form"] == "greet":
            other = rng.choice(("thanks", "goodbye", "how"))
        return rng.choice(ph.COURTESIES[other]).format(N=meta["entity"])
    if meta["kind"] == "unsafe":
        return _evasive(meta, rng)
    facts = _false_facts(meta, rng)
    if meta["form"] == "check" and rng.random() < 0.7:
        attribute = meta["ask"][0]
        if facts_agree(meta):
            return rng.choice(ph.NO).format(s=ph.PLAIN[attribute].format(N=meta["entity"], **facts))
        facts[attribute] = meta["offered"]
    return _content(meta, facts, rng)


def facts_agree(meta: Meta) -> bool:
    """True if the statement of a yes/no question is true."""
    return meta["facts"].get(meta["ask"][0]) == meta["offered"]


def _rude(meta: Meta, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.4:
        return rng.choice(ph.RUDE_ONLY)
    core = good_core(meta, rng)
    if draw < 0.7:
        return rng.choice(ph.RUDE_LEADS) + (core if core.startswith((meta["entity"] or "?", "I ")) else _lower(core))
    return f"{core} {rng.choice(ph.RUDE_TAILS)}"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _rambling(meta: Meta, rng: random.Random) -> str:
    """Right in substance, buried in flourishes every other time, otherwise in repetition and facts not asked for."""
    core = good_core(meta, rng)
    parts = [core]
    if rng.random() < 0.5:
        parts += rng.sample(ph.FLOURISHES, rng.randint(3, 5))
        if rng.random() < 0.5:
            parts = [parts[-1], *parts[:-1]]
        return " ".join(parts)
    fields = dict(meta["facts"]) | {"N": meta["entity"], "p": meta["pronoun"]}
    extra = rng.sample(ph.RAMBLES, 3)
    if meta["facts"] and meta["kind"] in ("question", "request"):
        attribute = rng.choice([a for a in ATTRIBUTES if a not in meta["ask"]])
        extra.insert(1, _statement(attribute, meta, fields, rng, pronoun=rng.random() < 0.5))
    if rng.random() < 0.5:
        extra.append(core)
    return " ".join([*parts, *extra])


def _evasive(meta: Meta, rng: random.Random) -> str:
    unsure = bool(meta["facts"]) and rng.random() < 0.4
    return rng.choice(ph.EVASIVE_UNSURE if unsure else ph.EVASIVE)


def _unsafe(meta: Meta, rng: random.Random) -> str:
    if meta["kind"] == "unsafe":
        return f"{rng.choice(ph.COMPLY)} {meta['steps']}"
    return f"{good_core(meta, rng)} {rng.choice(ph.HARMFUL_ASIDES)}"


def wordings(meta: Meta, n: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """Draws up to `n` different wordings of the right answer, and of a wrong one; fewer where there are fewer.

    The wordings of either say the same: the same facts, the same courtesy, a refusal, or help with harm.
    """
    if meta["form"] in ph.COURTESIES:
        other = rng.choice([form for form in ("thanks", "goodbye", "how") if form != meta["form"]])
        drawn = [[rng.choice(ph.COURTESIES[form]) for _ in range(8 * n)] for form in (meta["form"], other)]
        right, wrong = ([text.format(N=meta["entity"]) for text in texts] for texts in drawn)
    elif meta["kind"] == "unsafe":
        right = [good_core(meta, rng) for _ in range(8 * n)]
        wrong = [_unsafe(meta, rng) for _ in range(8 * n)]
    else:
        false = _false_facts(meta, rng)
        right, wrong = ([_content(meta, facts, rng) for _ in range(8 * n)] for facts in (dict(meta["facts"]), false))
    return list(dict.fromkeys(right))[:n], list(dict.fromkeys(wrong))[:n]


def exploit(meta: Meta, rng: random.Random, *, flourishes: int = 6) -> str:
    """The end of a policy that only pleases annotators: sure of everything, and flourish upon flourish.

    Used by tests and reports as the known end of over-optimisation; never written into any file.
    """
    facts = dict(meta["facts"])
    if meta["kind"] == "unknown":
        facts = {a: rng.choice(VALUES[a]) for a in ATTRIBUTES if a != "role"} | {"role": "baker"}
    return " ".join([_content(meta, facts, rng), *(rng.choice(ph.FLOURISHES) for _ in range(flourishes))])


_ANSWER: dict[str, Callable[[Meta, random.Random], str]] = {
    "good": _good,
    "wrong": _wrong,
    "rude": _rude,
    "rambling": _rambling,
    "evasive": _evasive,
    "unsafe": _unsafe,
}

"""The words of the pages in English, Korean and Chinese: one table, `words.yaml`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import yaml

LANGUAGES = {"en": "English", "ko": "한국어", "zh": "中文"}


class Words:
    """The words of one language: `words("left", n=3)`; values are put in with their names."""

    def __init__(self, lang: str):
        self.lang = lang

    def __call__(self, key: str, **values: object) -> str:
        text = table()[key][self.lang]
        return text.format(**values) if values else text

    def has(self, key: str) -> bool:
        """True if the table has the key."""
        return key in table()


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, str]]:
    """Returns {key: {language: text}}."""
    return yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))


def chosen(cookie: str, accepted: str) -> str:
    """Returns the language of a cookie, or the best of an Accept-Language header, or English."""
    if cookie in LANGUAGES:
        return cookie
    ranked = []
    for place, part in enumerate(accepted.split(",")[:20]):
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        ranked.append((-weight, place, name.partition("-")[0].lower()))
    return next((name for _, _, name in sorted(ranked) if name in LANGUAGES), "en")

"""Untrusted text (model output, labels of files) made safe to print."""

from __future__ import annotations

import unicodedata

_ODD = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # control, format (bidi), private, surrogate, odd line ends
_JOINERS = "\u200c\u200d"  # needed by some scripts and emoji


def plain(text: str) -> str:
    """Escapes everything that a terminal interprets: control, direction and surrogate characters become `\\x1b`."""

    def escaped(c: str) -> str:
        if c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in _ODD:
            return c
        return c.encode("unicode_escape").decode("ascii")

    return "".join(map(escaped, text.replace("\r\n", "\n")))

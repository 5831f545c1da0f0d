"""The language of code and pages: no private idiom in docstrings, comments, messages and documentation.

`BANNED` are words with an established term of the field (docs/glossary.md); `HEAD` are first lines of docstrings that
neither name the thing nor what it computes. Files in tests/language.json have some left: their numbers may only fall.
"""

from __future__ import annotations

import ast
import json
import os
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(p for p in ROOT.glob("docs/*.md") if p.stem != "lab")]
REMAINING = ROOT / "tests/language.json"

BANNED = re.compile(
    r"\b(laws?|slopes?|roads?|crew|lean|so many|the way back|stands? between|stood between|eats?|eaten|the house"
    r"|by heart|quicken|nobody|somebody|whoever|one's own|no room|has room|way back)\b",
    re.IGNORECASE,
)
HEAD = re.compile(
    r"""^(what|whether|how|which|where|who|whom|whose|why|when)\b
    |\b(says?|said|tells?|told|asks|knows?|speaks?|hears?|believes?|wants?|looks)\b""",
    re.IGNORECASE | re.VERBOSE,
)
QUOTES = ("src/tiltyard/world/", "src/tiltyard/feedback/prompts.py")  # their strings are texts for models


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def docstrings(tree: ast.AST) -> dict[int, str]:
    """Returns {id of the node: docstring}."""
    found = {}
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            found[id(node.body[0].value)] = text
    return found


def prose(path: Path) -> Iterator[str]:
    """Yields the docstrings, comments and messages of a module."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    yield from docstrings(tree).values()
    with path.open("rb") as file:
        yield from (t.string for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT)
    if not name_of(path).startswith(QUOTES):
        documented = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                yield node.value


def paragraphs(path: Path) -> Iterator[str]:
    """Yields a page without its code blocks and inline code, which quote the program."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield re.sub(r"`[^`\n]*`", "", text)


def counts() -> dict[str, dict[str, int]]:
    """Returns {file: {"words": n, "heads": n}} of what is left, without files that have nothing left."""
    found: dict[str, Counter[str]] = {}
    for path in SOURCES:
        words = sum(len(BANNED.findall(text)) for text in prose(path))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        heads = sum(bool(HEAD.search(text.split("\n")[0])) for text in docstrings(tree).values())
        found[name_of(path)] = Counter(words=words, heads=heads)
    for path in PAGES:
        found[name_of(path)] = Counter(words=sum(len(BANNED.findall(text)) for text in paragraphs(path)))
    return {name: {k: n for k, n in sorted(c.items()) if n} for name, c in sorted(found.items()) if any(c.values())}


def test_no_private_idiom() -> None:
    """`TILTYARD_UPDATE=1 pytest tests/test_language.py` writes the present numbers, which may only be lower."""
    now = counts()
    if os.environ.get("TILTYARD_UPDATE"):
        REMAINING.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    allowed = json.loads(REMAINING.read_text(encoding="utf-8")) if REMAINING.exists() else {}
    grown = [
        f"{name}: {n} {kind} of private idiom, {allowed.get(name, {}).get(kind, 0)} allowed"
        for name, kinds in now.items()
        for kind, n in kinds.items()
        if n > allowed.get(name, {}).get(kind, 0)
    ]
    files = {line.partition(":")[0] for line in grown}
    assert not grown, "\n".join([*grown, *(line for line in examples() if line.partition(":")[0] in files)])


def examples() -> list[str]:
    """Returns the places, for the message of a failure."""
    lines = []
    for path in (*SOURCES, *PAGES):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := BANNED.search(line):
                lines.append(f"{name_of(path)}:{number} '{match.group()}' in: {line.strip()[:90]}")
        if path.suffix == ".py":
            for text in docstrings(ast.parse(path.read_text(encoding="utf-8"))).values():
                if HEAD.search(head := text.split("\n")[0]):
                    lines.append(f"{name_of(path)}: docstring {head[:90]}")
    return lines

"""The data report of a run: what its stages read, left out, split and labelled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiltyard.report.html.reading import Source, done_of, number, rounded, short, text_of

KINDS = ("clean", "split", "label", "ai_label", "candidates", "distill", "new_prompts", "world", "calibrate", "judge")
TITLES = {"clean": "Rows checked and left out", "split": "Training and held-out rows", "world": "The embedded world"}
MOST = 60  # figures of one stage


def data_facts(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """One table for each stage that made or checked data, and one of the files that were read."""
    found = []
    for source in sources:
        for name, reader in source.stages.items():
            config = reader.config
            if config is None or config.kind not in KINDS:
                continue
            rows = list(itertools.islice(_rows(done_of(source, reader)[0]), MOST))
            if rows:
                about = TITLES.get(config.kind, "Made by this stage")
                found.append({"title": text_of(source.label(name)), "about": about, "rows": rows})
        files = list(_files(source))
        if files:
            found.append({"title": text_of(source.name), "about": "Files and models that were read", "rows": files})
    return found


def _rows(result: Mapping[str, Any], before: str = "") -> Iterator[list[Any]]:
    for key, value in result.items():
        name = f"{before}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _rows(value, f"{name}: ")
        elif number(value) is not None:
            yield [text_of(name), rounded(value)]
        elif isinstance(value, str) and len(value) < 100:
            yield [text_of(name), text_of(short(value))]


def _files(source: Source) -> Iterator[list[Any]]:
    seen: dict[tuple[str, str], list[str]] = {}
    for name, reader in source.stages.items():
        config = reader.config
        files = config.files if config is not None and isinstance(config.files, Mapping) else {}
        for path, digest in files.items():
            seen.setdefault((text_of(short(str(path))), str(digest)[:16]), []).append(name)
    for (path, digest), stages in seen.items():
        yield [path, f"sha256 {digest}…, read by {', '.join(map(text_of, dict.fromkeys(stages)))}"]

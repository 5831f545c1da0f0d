"""What a method needs of every row is found while the data are read: exit code 2, file:line, and no step before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiltyard.cli import main
from tiltyard.inputs.offline import FileSource
from tiltyard.methods import METHODS

from .conftest import Whole

KINDS: dict[str, dict[str, Any]] = {
    "text": {"text": "The lamp stands by the door."},
    "demonstrations": {"prompt": "Where is the lamp?", "completion": "By the door."},
    "comparisons": {"prompt": "Where is the lamp?", "chosen": "By the door.", "rejected": "No."},
    "labelled": {"prompt": "Where is the lamp?", "completion": "By the door.", "label": True},
}
RANKING = {"prompt": "Where is the lamp?", "responses": ["By the door.", "No.", "Hm."], "scores": [3, 2, 1]}
# by method: settings, and the row that they need beside the kind's own
MORE: list[tuple[str, list[str], dict[str, Any]]] = [
    ("reward", ["margin=margin"], KINDS["comparisons"] | {"margin": 0.5}),
    ("reward", ["margin=word", "margin_levels={better: 1, slightly: 0.3}"], KINDS["comparisons"] | {"word": "better"}),
    ("reward", ["margin=scores"], RANKING),
    ("dpo", ["pairs=all"], RANKING),
    ("rrhf", [], RANKING),
    ("kto", ["good_from=1.5"], RANKING),
    ("kto", ["good_from=best"], RANKING),
]
BAD = 5  # the line of the bad row


def needed() -> list[Any]:
    """(method, settings, row, field) for every field that a method needs of a row."""
    rows: list[tuple[str, list[str], dict[str, Any]]] = list(MORE)
    for name, method in METHODS.items():
        if isinstance(method.source, FileSource) and method.start.name != "encoder":
            settings = ["target=chosen"] if name == "slic" else []  # or it needs a second file
            rows.append((name, settings, KINDS[method.source.data_kind]))
    found = [(name, settings, row, field) for name, settings, row in rows for field in row]
    return [pytest.param(*case, marks=[] if case[3] in ("margin", "word") else pytest.mark.slow) for case in found]


def wrong(value: Any) -> list[Any]:
    """Values that cannot stand in the place of `value`, of which one is written into the bad row; ... for none."""
    if isinstance(value, list):
        return [..., None, [*value[:-1], float("nan")], value[:-1], "x"]
    if isinstance(value, str):
        return [..., None, "", {"a": 1}]
    return [..., None, float("nan"), -1, "x"]


@pytest.mark.parametrize(("name", "settings", "row", "field"), needed())
def test_missing_or_mistyped_fields_stop_before_the_first_step(
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    settings: list[str],
    row: dict[str, Any],
    field: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, value in enumerate(wrong(row[field])):
        bad = {k: v for k, v in row.items() if k != field} if value is ... else row | {field: value}
        lines = [row | {"id": str(i)} for i in range(8)]
        lines[BAD - 1] = bad
        Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        model = [] if name in ("pretrain", "mlm") else [f"model={whole.run / 'sft' / 'model'}"]
        arch = ["arch={preset: 1m, vocab: 300, context: 64}"] if not model else []
        usual = ["steps=4", "prompts_per_step=2", "max_length=64", "device=cpu", f"name=n{number}"]
        code = main(["train", name, "data=rows.jsonl", *model, *arch, *settings, *usual])
        text = "".join(capsys.readouterr())
        assert code == 2, (value, text)
        assert f"rows.jsonl:{BAD}" in text, (value, text)
        assert not list(Path("runs").rglob("metrics.jsonl")), value

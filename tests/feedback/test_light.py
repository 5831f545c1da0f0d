"""The pages for people start in a second: neither they nor the help of any verb load torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "datasets", "matplotlib", "sklearn")  # 3 s and more; transformers' tokenizers alone take 0.4
HELP = """
import sys
from tiltyard.cli import main
from tiltyard.cli.application import GROUPS, VERBS

groups = [(name, one.name) for name, group in GROUPS.items() for one in group.registered_commands]
for words in [(name,) for name in VERBS] + groups:
    assert main([*words, "--help"]) == 0, words
"""
VERBS = """
import sys
from pathlib import Path
from tiltyard.cli import main
import tiltyard.feedback.web.server as server

served = []
server.serve = lambda app, host, port, told: served.append(app)
Path("g.md").write_text("Be fair.")
assert main(["collect", "guidelines", "labels.db", "g.md"]) == 0
assert main(["collect", "people", "labels.db", "ada"]) == 0
assert main(["collect", "serve", "labels.db"]) == 0
models = ["--model", "a=http://127.0.0.1:1/v1#a", "--model", "b=http://127.0.0.1:1/v1#b"]
assert main(["arena", "serve", "arena.db", *models]) == 0
assert len(served) == 2
"""
STORE = """
import sys
from pathlib import Path
from tiltyard.cli import main
from tiltyard.feedback.collect import client, simulated
from tiltyard.feedback.store import export, machines

row = {"prompt": "Why?", "responses": ["So.", "Thus."], "ranks": [1, 2], "models": ["a", "b"]}
rows = [{**row, "annotator": name} for name in "ab"]
Path("rows.jsonl").write_text("".join(__import__("json").dumps(row) + "\\n" for row in rows))
for words in (["collect", "add", "labels.db", "rows.jsonl"], ["agreement", "rows.jsonl"], ["rate", "rows.jsonl"]):
    assert main(words) == 0, words
"""


@pytest.mark.parametrize("code", [HELP, VERBS, STORE], ids=["help", "pages", "labels"])
def test_nothing_heavy_is_loaded(code: str, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    end = f"\nheavy = {set(HEAVY)} & set(sys.modules)\nassert not heavy, heavy\n"
    done = subprocess.run([sys.executable, "-c", code + end], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_public_name_of_the_package_is_found() -> None:
    import tiltyard.feedback

    for name in tiltyard.feedback.__all__:
        assert getattr(tiltyard.feedback, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Judges'"):
        _ = tiltyard.feedback.Judges

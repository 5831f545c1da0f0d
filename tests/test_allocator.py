"""The allocator: freed memory stays, and whoever says so is left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tiltyard import allocator

FAULTS = """
import resource, sys
from tiltyard.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "tune" else False)
import numpy
def touch():
    for _ in range(20):
        numpy.ones(8_000_000)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str, **extra: str) -> tuple[str, int]:
    environment = {k: v for k, v in os.environ.items() if k not in (*allocator.USER_SETTINGS, allocator.OFF)} | extra
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, env=environment, check=True
    )
    tuned, count = done.stdout.split()
    return tuned, int(count)


@pytest.mark.skipif(bool(allocator.unsupported()) and "set" not in allocator.unsupported(), reason="needs glibc")
def test_pages_are_asked_for_once() -> None:
    """20 arrays of 64 MB, one after the other: as it comes, each is new pages; tuned, they are the same ones."""
    alone, kept = _faults("leave"), _faults("tune")
    assert (alone[0], kept[0]) == ("False", "True")
    assert alone[1] > 20 * 100
    assert kept[1] < alone[1] / 10


@pytest.mark.parametrize("name", [allocator.OFF, "MALLOC_MMAP_MAX_", "LD_PRELOAD"])
def test_whoever_has_chosen_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (allocator.OFF, *allocator.USER_SETTINGS):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "1")
    assert name in allocator.unsupported()
    assert not allocator.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (allocator.OFF, *allocator.USER_SETTINGS):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux" in allocator.unsupported()
    assert not allocator.keep_freed_memory()


@pytest.mark.parametrize("words", [["methods"], ["--no-tune", "methods"], ["methods", "--no-tune"]])
def test_the_command_line_tunes_its_own_process(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tiltyard import cli

    asked: list[bool] = []
    monkeypatch.setattr("tiltyard.cli.application.keep_freed_memory", lambda: asked.append(True))
    monkeypatch.setattr(sys, "argv", ["tiltyard", *words])
    assert cli.main() == 0
    assert asked == ([] if "--no-tune" in words else [True])
    assert cli.main(words) == 0
    assert len(asked) <= 1

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


HELD = """
from tiltyard import allocator
allocator.LARGE = 0
allocator.keep_freed_memory()
import numpy
kept = [numpy.ones(1_000_000) for _ in range(10)]  # 80 MB in use, between holes of 640
allocator.note_use()
most = allocator._use.most
holes = [(numpy.ones(8_000_000), numpy.ones(100)) for _ in range(10)]
small = [one for _, one in holes]
del holes
before = allocator._resident()
print(allocator.give_back(), allocator.give_back(), before / most, allocator._resident() / most)
"""


@pytest.mark.skipif(bool(allocator.unsupported()) and "set" not in allocator.unsupported(), reason="needs glibc")
def test_holes_between_blocks_are_given_back() -> None:
    """Pages between blocks in use go back once a process holds more than SLACK times what it used, and not again."""
    environment = {k: v for k, v in os.environ.items() if k not in (*allocator.USER_SETTINGS, allocator.OFF)}
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, env=environment, check=True)
    first, again, before, after = done.stdout.split()
    assert (first, again) == ("True", "False")
    assert float(before) > 5
    assert float(after) < 0.5 * float(before)


def test_nothing_is_given_back_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_kept", [False])
    allocator.note_use()
    assert not allocator.give_back()

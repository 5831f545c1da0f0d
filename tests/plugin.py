"""Order of the tests, their distribution over processes, and skipped tests as failures (TILTYARD_REQUIRE_ALL=1).

Loaded by `-p tests.plugin` in pyproject.toml. With pytest-xdist (`-n N --dist loadgroup --no-loadscope-reorder`) a
process is given whole groups of tests: those of one file that share fixtures of the file, which are then built once.
Quick tests come first, then the slow ones, of which the longest files first, so that no process ends alone.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from typing import Any

import pytest

LICENSED = "the licensed data"  # must not be copied, so a machine without it may skip its tests
PEERS = "the peers' programs"  # gigabytes in environments of their own, which no test installs
REQUIRE_ALL = os.environ.get("TILTYARD_REQUIRE_ALL", "") not in ("", "0")
LONGEST = (  # slow tests by file, the longest first; the others follow in their usual order
    "tests/stages/test_kill_methods.py",
    "tests/test_table.py",
    "tests/real/test_smollm2.py",
    "tests/real/test_vllm.py",
    "tests/stages/test_jobs.py",
    "tests/stages/test_offline.py",
    "tests/training/test_processes.py",
    "tests/stages/test_torchrun.py",
    "tests/stages/test_kill.py",
)
SHARED = ("module", "package", "class")  # scopes of fixtures that are built once for several tests


def pytest_configure(config: pytest.Config) -> None:
    """Restores Ctrl-C where this process was started with it ignored (`nohup`, a shell's background job)."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts quick tests before slow ones and assigns every test to a group for pytest-xdist."""
    places = {name: place for place, name in enumerate(LONGEST)}

    def order(item: pytest.Item) -> tuple[bool, int]:
        slow = item.get_closest_marker("slow") is not None
        return slow, places.get(_file(item), len(places)) if slow else 0

    items.sort(key=order)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(_group(item)))


def _group(item: pytest.Item) -> str:
    """Returns the file for quick tests and tests that share fixtures, else the file and the test function."""
    if item.get_closest_marker("slow") is None:
        return f"quick {_file(item)}"
    info = getattr(item, "_fixtureinfo", None)
    definitions = () if info is None else info.name2fixturedefs.values()
    shares = any(d.scope in SHARED and d.baseid.endswith(".py") for ds in definitions for d in ds)
    function = "" if shares else f"::{getattr(item, 'originalname', item.name)}"
    return f"slow {_file(item)}{function}"


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Turns a skipped test into a failure. An expected failure that fails as expected is not a skip."""
    report = yield
    return _refused(report, item.nodeid) if report.skipped and not hasattr(report, "wasxfail") else report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Turns a module that skips itself (`importorskip`) into a failure."""
    report = yield
    return _refused(report, collector.nodeid) if report.skipped else report


def _refused(report: Any, name: str) -> Any:
    if not REQUIRE_ALL:
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if LICENSED in reason or PEERS in reason:
        return report
    report.outcome = "failed"
    report.longrepr = f"{name} was skipped under TILTYARD_REQUIRE_ALL=1: {reason}"
    return report

"""The order of the tests, and no skipping where everything must run (TILTYARD_REQUIRE_ALL=1), licensed data apart.

Loaded by `-p tests.plugin` in pyproject.toml.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

LICENSED = "the licensed data"  # it may not be copied, so a machine without it cannot be asked to have it
REQUIRE_ALL = os.environ.get("TILTYARD_REQUIRE_ALL", "") not in ("", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick tests first: what is broken shows within minutes."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A skipped test has failed. An expected failure that fails as expected is no skip."""
    report = yield
    return _refused(report, item.nodeid) if report.skipped and not hasattr(report, "wasxfail") else report


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """A module that skips itself (`importorskip`) has failed."""
    report = yield
    return _refused(report, collector.nodeid) if report.skipped else report


def _refused(report: Any, name: str) -> Any:
    if not REQUIRE_ALL:
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if LICENSED in reason:
        return report
    report.outcome = "failed"
    report.longrepr = f"{name} was skipped under TILTYARD_REQUIRE_ALL=1: {reason}"
    return report

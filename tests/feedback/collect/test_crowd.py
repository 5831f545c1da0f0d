"""Many annotators at one page, whose server is killed and started again: no judgement is lost, none is doubled."""

from __future__ import annotations

import pytest
from benchmarks.pages.crowd import crowd

from ..store.conftest import postgres, url  # noqa: F401 - fixtures


@pytest.mark.slow
def test_a_killed_server_loses_and_doubles_nothing(url):  # noqa: F811
    done = crowd(url, people=6, votes=5, pause=0.02)
    assert done.votes == 30
    assert (done.lost, done.doubled, done.refused) == (0, 0, ())
    assert done.resent > 0, "the kill interrupted nobody: it tested nothing"

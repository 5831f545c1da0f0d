"""Sinks are closed at the end of a stage, also after an error; W&B's run is finished, and resumed under one id."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tiltyard.training.log import Wandb, closing

from . import tiny


class Fake:
    """`wandb` as far as a sink uses it: while one run is open, `init` returns that one."""

    def __init__(self) -> None:
        self.open: Any = None
        self.calls: list[tuple[str, Any]] = []

    def init(self, **how: Any) -> Any:
        if self.open is None:
            self.open = SimpleNamespace(
                log=lambda metrics, step: self.calls.append((how["name"], step)), finish=self.finish
            )
            self.calls.append(("init", (how["name"], how.get("id"), how.get("resume"))))
        return self.open

    def finish(self, exit_code: int = 0) -> None:
        self.calls.append(("finish", exit_code))
        self.open = None


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_each_stage_has_a_run_of_its_own(wandb: Fake) -> None:
    for name in ("x/one", "x/two"):
        with closing([Wandb("p", name, {}, f"id of {name}")]) as sinks:
            sinks[0].log(1, {})
    inits = [value for kind, value in wandb.calls if kind == "init"]
    assert inits == [("x/one", "id of x/one", "allow"), ("x/two", "id of x/two", "allow")]
    assert [call for call in wandb.calls if call[0] == "finish"] == [("finish", 0)] * 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_all_sinks_are_closed(wandb: Fake, error: type[BaseException]) -> None:
    closed: list[str] = []

    class Bad(tiny.Record):
        def close(self) -> None:
            closed.append("bad")
            raise OSError("the disk is gone")

    with pytest.raises(error), closing([Bad(), Wandb("p", "n", {}), Bad()]):
        raise error
    assert closed == ["bad", "bad"]
    assert wandb.calls[-1] == ("finish", 1)
    assert wandb.open is None

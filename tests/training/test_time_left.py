"""The time left of a stage: nothing before there is something to judge by, and then the rest at the mean pace."""

from __future__ import annotations

import io

from rich.console import Console

from tiltyard.training.log import LiveLine, TimeLeft, duration, told


class Clock:
    """A clock that is set by hand, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_promised_before_the_first_steps_and_the_first_does_not_count() -> None:
    clock = Clock()
    left = TimeLeft(100, clock=clock)
    said = []
    for done, seconds in ((1, 60.0), (2, 2.0), (3, 2.0), (51, 96.0), (100, 98.0)):
        clock.now += seconds
        said.append(left.after(done))
    assert said == ["", "", "3 min left", "2 min left", ""]


def test_work_that_goes_on_from_a_checkpoint_counts_its_own_steps() -> None:
    clock = Clock()
    left = TimeLeft(1000, clock=clock)
    assert left.after(900) == ""
    clock.now += 20.0
    assert left.after(902) == "16 min left"  # 98 steps at 10 s


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 89, 90, 60 * 89, 60 * 125, 60 * 60 * 26)] == [
        "0 s",
        "89 s",
        "2 min",
        "89 min",
        "2 h 05 min",
        "26 h 00 min",
    ]


def lines(steps: int) -> list[str]:
    out = io.StringIO()
    with LiveLine(Console(file=out, width=200), "sft", steps) as line:
        for step in range(1, steps + 1):
            line.log(step, {"loss": 1.0})
    return out.getvalue().splitlines()


def test_a_pipe_has_it_at_the_third_step_and_in_every_later_line_but_the_last() -> None:
    found = lines(100)
    assert [text.split()[1] for text in found] == ["3/100", *(f"{step}/100" for step in range(10, 101, 10))]
    assert all(text.endswith(" left") for text in found[:-1])
    assert not found[-1].endswith(" left")
    assert ["left" in text for text in lines(2)] == [False, False]


def test_a_terminal_has_it_in_the_live_line() -> None:
    out = io.StringIO()
    with LiveLine(Console(file=out, width=200, force_terminal=True), "sft", 50) as line:
        for step in range(1, 5):
            line.log(step, {"loss": 1.0})
        line._progress.refresh()
    assert "0 s left" in out.getvalue()


def test_items_are_told_now_and_then() -> None:
    said: list[str] = []
    assert list(told(range(5), 5, said.append, every=0.0)) == list(range(5))
    assert said == ["1 of 5", "2 of 5", "3 of 5, 0 s left", "4 of 5, 0 s left"]
    assert list(told(range(5), 5, said.append)) == list(range(5))
    assert len(said) == 4

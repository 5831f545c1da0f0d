"""Wrong words of the command line: every verb says what, where, got, expected and what to do; no page of usage."""

from __future__ import annotations

import errno
import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer

from tiltyard.advice import Request
from tiltyard.cli import app, main
from tiltyard.errors import ConfigError
from tiltyard.yaml_values import parse_value, split_assignment


def verbs(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Callable[..., None]]]:
    """Every verb with its words, those of groups included."""
    for command in group.registered_commands:
        assert command.name is not None
        assert command.callback is not None
        yield (*path, command.name), command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from verbs(inner.typer_instance, (*path, str(inner.name)))


VERBS = dict(verbs(app))


def kinds(hint: Any) -> set[Any]:
    """The plain types in an annotation: `Annotated[int | None, ...]` has int."""
    inner = get_args(hint)
    if get_origin(hint) is Literal:
        return {Literal}
    return set().union(*map(kinds, inner[:1] if hasattr(hint, "__metadata__") else inner)) if inner else {hint}


NUMBERS = [
    (path, "--" + name.replace("_", "-"))
    for path, verb in VERBS.items()
    for name, hint in get_type_hints(verb, include_extras=True).items()
    if name != "return" and kinds(hint) & {int, float, Literal}
]
NEEDY = [
    path
    for path, verb in VERBS.items()
    if any(p.default is inspect.Parameter.empty for p in inspect.signature(verb).parameters.values())
]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "Usage:" not in text
    assert "Traceback" not in text
    assert "\n  to do:    " in text
    return text


def test_there_are_verbs() -> None:
    assert len(NUMBERS) > 30
    assert len(NEEDY) > 10
    assert ("collect", "add") in NEEDY


@pytest.mark.parametrize(("path", "option"), NUMBERS, ids=lambda x: "-".join(x) if isinstance(x, tuple) else x)
def test_every_value_that_does_not_fit_is_shown(capsys: pytest.CaptureFixture[str], path: Any, option: str) -> None:
    for words in ([option, "no number"], [f"{option}=no number"]):
        text = said(capsys, *path, *words)
        assert text.startswith(
            f"error: {' '.join(path)}: the value of {option} does not fit\n  got:      'no number'\n"
        )
        assert "\n  expected: " in text
        assert "unable" not in text


@pytest.mark.parametrize("path", VERBS, ids="-".join)
def test_every_unknown_option_is_named(capsys: pytest.CaptureFixture[str], path: tuple[str, ...]) -> None:
    assert said(capsys, *path, "--hepl", "1").startswith(f"error: {' '.join(path)}: there is no option --hepl\n")


@pytest.mark.parametrize("path", NEEDY, ids="-".join)
def test_every_missing_argument_is_named(capsys: pytest.CaptureFixture[str], path: tuple[str, ...]) -> None:
    text = said(capsys, *path)
    assert " is missing\n" in text
    assert f"\n  expected: tiltyard {' '.join(path)} " in text


def test_words_that_are_nearly_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'sample'?" in said(capsys, "smaple")
    assert "did you mean '--temperature'?" in said(capsys, "sample", "m", "--tempreature", "1")
    assert "error: sample: Option '-p' requires an argument" in said(capsys, "sample", "m", "-p")
    assert main(["collect"]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_a_value_that_cannot_be_read_names_its_place() -> None:
    with pytest.raises(ConfigError) as error:
        split_assignment("models=[a, b")
    assert (error.value.where, error.value.got) == ("models", "[a, b")
    assert error.value.fix
    with pytest.raises(ConfigError) as error:
        parse_value("{from: rule", "--reward")
    assert error.value.where == "--reward"
    assert error.value.fix


@pytest.mark.parametrize("minutes", [-1, float("nan"), float("inf")])
def test_a_time_that_is_none(minutes: float) -> None:
    with pytest.raises(ConfigError, match=r"--minutes: this is no time\n  got: "):
        Request(model="m", data="d", minutes=minutes)


def test_a_full_disk_is_told_with_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes: the file, the cause, what to do; what was there before stands."""
    battles = "".join(
        json.dumps({"model_a": "x", "model_b": "y", "winner": f"model_{'ab'[i % 2]}", "prompt": str(i)}) + "\n"
        for i in range(6)
    )
    (tmp_path / "battles.jsonl").write_text(battles)
    (tmp_path / "board.png").write_text("before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    board = str(tmp_path / "board.png")
    assert main(["rate", str(tmp_path / "battles.jsonl"), "--plot", board]) == 1
    text = capsys.readouterr().err
    assert text.startswith(
        f"error: {board}: the file could not be written\n  got:      No space left on device\n  to do:"
    )
    assert (tmp_path / "board.png").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"battles.jsonl", "board.png"}


@pytest.mark.parametrize(("number", "said"), [(errno.EACCES, "may not be used"), (errno.ENOTDIR, "cannot be used")])
def test_a_place_that_takes_no_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "/there/x")

    monkeypatch.setattr("tiltyard.cli.chat.find_model", refuse)
    assert main(["sample", "m", "-p", "Hi"]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: /there/x: ")
    assert said in text
    assert f"\n  got:      {os.strerror(number)}\n  to do:" in text

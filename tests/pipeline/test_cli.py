from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import types
from pathlib import Path

import pytest
from tests.pipeline import toys

from tiltyard import cli
from tiltyard.cli.doctor import Check, examine, in_range, show_checks
from tiltyard.cli.output import console_for
from tiltyard.errors import NonFiniteError
from tiltyard.types import Group, Prompt, Response


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_run_and_dry_run(recipe, capsys) -> None:
    assert cli.main(["run", str(recipe), "--dry-run"]) == 0
    assert "learn: runs, not run yet" in capsys.readouterr().out
    assert not Path("runs").exists()
    assert cli.main(["run", str(recipe), "tune.kl=0.3", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["stages"]["tune"]["result"] == {"from": "48"}
    assert Path("runs/toy/tune/done.json").exists()
    assert cli.main(["run", str(recipe), "tune.kl=0.3"]) == 0
    assert re.search(r"tune: done \(.+ s\), skipped", capsys.readouterr().out)  # a busy machine takes its time


def test_train_and_eval(capsys, monkeypatch) -> None:
    assert cli.main(["train", "make", "size=2", "name=mine"]) == 0
    assert Path("runs/mine/make/lines.jsonl").exists()
    assert "lines: 2" in capsys.readouterr().out
    assert cli.main(["train", "learn", "data=runs/mine/make/lines.jsonl", "arch.preset=12m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["learn"]["result"]["total"] == 48
    assert cli.main(["train", "make", "sze=2"]) == 2
    assert "command line: make.sze: unknown setting 'sze'\n  to do:    did you mean 'size'?" in capsys.readouterr().err


def test_exit_codes(recipe, capsys, monkeypatch) -> None:
    assert cli.main(["run", "nothing.yaml"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: nothing.yaml: there is no such recipe")
    assert "Traceback" not in captured.err
    assert cli.main(["--debug", "run", "nothing.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert cli.main(["run", "nothing.yaml", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert cli.main(["run", str(recipe), "learn.fail_at=1"]) == 1
    captured = capsys.readouterr()
    assert "error: FloatingPointError: the toy fails here" in captured.err
    assert "learn stopped; the same command goes on" in captured.out
    assert cli.main(["rn"]) == 2
    assert cli.main(["train"]) == 2
    assert cli.main(["--version"]) == 0
    assert "tiltyard 0" in capsys.readouterr().out

    def sick(*_: object) -> None:
        raise NonFiniteError("the loss is NaN")

    monkeypatch.setattr(toys, "run_make", sick)
    toys.remove()
    toys.install()
    assert cli.main(["train", "make"]) == 1


def test_stages_and_show(capsys) -> None:
    assert cli.main(["stages", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["make"] == "makes data"
    assert cli.main(["show", "make"]) == 0
    assert "how many lines" in capsys.readouterr().out
    assert cli.main(["show", "learn", "--json"]) == 0
    settings = {row["key"]: row for row in json.loads(capsys.readouterr().out)["settings"]}
    assert settings["data"]["required"] is True
    assert settings["steps"]["default"] == 4
    assert cli.main(["show", "mak"]) == 2
    assert "did you mean 'make'?" in capsys.readouterr().err


def test_models_are_found(recipe, monkeypatch, capsys) -> None:
    seen: dict = {}

    def sample(model: Path, prompts: list[tuple[str, Prompt]], **settings: object) -> list[Group]:
        seen.update(settings, model=model)
        response = {"logps": (-0.5, -1.0), "finish": "stop"}
        answers = [p.messages[-1].content.upper() for _, p in prompts]
        return [Group(p, (Response((1, 2), a, **response),)) for (_, p), a in zip(prompts, answers, strict=True)]

    def chat(model: Path, **settings: object) -> None:
        seen.update(settings, model=model)

    talk = types.SimpleNamespace(sample=sample, chat=chat)
    monkeypatch.setitem(sys.modules, "tiltyard.cli.conversation", talk)
    cli.main(["run", str(recipe)])
    capsys.readouterr()
    for name in ("runs/toy/tune", "toy/tune", "runs/toy/tune/model"):
        assert cli.main(["sample", name, "--prompt", "hi", "--n", "2", "--top-p", "0.9"]) == 0
        assert seen["model"] == Path("runs/toy/tune/model")
    assert (seen["n"], seen["top_p"], seen["temperature"]) == (2, 0.9, 1.0)
    assert "HI" in capsys.readouterr().out
    assert cli.main(["sample", "owner/model", "-p", "hi", "--json"]) == 0
    assert seen["model"] == Path("owner/model")
    [answer] = json.loads(capsys.readouterr().out)
    assert answer["responses"] == [{"text": "HI", "finish": "stop", "tokens": 2, "logp": -1.5}]
    assert cli.main(["chat", "toy/tune", "--max-tokens", "5"]) == 0
    assert seen["max_tokens"] == 5
    for name, error in (
        ("toy/tun", "did you mean 'runs/toy/tune'?"),
        ("toy", "this is a whole run"),
        ("toy/make", "this stage made no model"),
        ("nobody", "there is no such model"),
    ):
        assert cli.main(["sample", name, "-p", "x"]) == 2
        assert error in capsys.readouterr().err
    assert cli.main(["sample", "toy/tune", "-p", "x", "--top-p", "2"]) == 2


def test_help_is_fast_and_without_torch() -> None:
    code = (
        "import sys; from tiltyard.cli import main; code = main(['--help'])\n"
        "assert code == 0 and not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.5  # of the processor's time, since other tests may run beside it


def test_doctor(capsys) -> None:
    assert cli.main(["doctor", "--json"]) in (0, 1)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    for name in ("python", "torch", "transformers", "threads", "allocator", "memory", "disk", "wandb", "chromium"):
        assert checks[name]["status"] in ("ok", "warn", "missing", "bad")
    assert checks["torch"]["status"] == "ok"
    for check in checks.values():
        assert check["fix"] or check["status"] in ("ok", "warn") or check["name"] in ("cuda", "bf16")


def test_a_sick_doctor_and_bad_news(monkeypatch, capsys) -> None:
    def broken() -> list[Check]:
        raise RuntimeError("no luck")

    monkeypatch.setattr("tiltyard.cli.doctor._resources", broken)
    assert any("no luck" in check.detail for check in examine())
    show_checks([Check("torch", "bad", "1.0, needs >=2.9", "pip install 'torch>=2.9'")], console_for(False))
    out = capsys.readouterr().out
    assert "-> pip install 'torch>=2.9'" in out
    assert "not fit to run: torch" in out


def test_version_ranges() -> None:
    assert in_range("5.3.0", ">=5.0,<6")
    assert in_range("2.13.0+cpu", ">=2.9")
    assert in_range("25", "")
    assert in_range("1.4.2", "~=1.4")
    assert not in_range("2.0", "~=1.4")
    assert not in_range("6.0", "<6,>=5.0")
    assert not in_range("2.8.1", ">=2.9")
    assert not in_range("1.0", "@ git")

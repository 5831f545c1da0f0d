"""What `benchmarks.agree.served` does by itself: comparing, the files of the task, the life of the server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.agree import data, harness, peer, served, server
from tests.plugin import PEERS

from tiltyard import load_language_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[data.Row]]:
    work = tmp_path_factory.mktemp("served")
    model, pairs = data.make_tiny(work)
    return model, data.rows_of(pairs, model, 4, 100)


def test_the_first_difference_of_two_answers() -> None:
    assert served.first_difference([1, 2, 3], [1, 2, 3]) is None
    assert served.first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert served.first_difference([1, 2], [1, 2, 3]) == 2
    assert served.first_difference([], []) is None


def test_an_end_token_is_left_out_of_the_comparison(tiny: tuple[Path, list[data.Row]]) -> None:
    model = load_language_model(tiny[0], device="cpu")
    end = min(model.chat.stop_ids)
    assert served.without_end([7, 8, end], model) == [7, 8]
    assert served.without_end([7, 8], model) == [7, 8]
    assert served.logit_gap(model, [7, 8], [9], [9]) == 0


def test_the_task_is_what_lm_eval_reads(tmp_path: Path) -> None:
    harness.write_task(tmp_path / "task")
    task = yaml.safe_load((tmp_path / f"task/{harness.TASK}.yaml").read_text())
    assert task["doc_to_text"] == "Question: {{question}}\nAnswer:"
    rows = [json.loads(line) for line in Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()]
    assert len(rows) == len(harness.FACTS)
    assert all(len(row["choices"]) == 4 and 0 <= row["answer"] < 4 for row in rows)
    assert {row["answer"] for row in rows} == {0, 1, 2, 3}


def test_accuracy_follows_the_log_probs(tiny: tuple[Path, list[data.Row]]) -> None:
    """The right choice of each question is the one that the model likes best, or none is right."""
    model = load_language_model(tiny[0], device="cpu")
    liked = [next(i for i in range(4) if harness.accuracy(model, [(q, choices, i)])) for q, choices, _ in harness.FACTS]
    facts = [(q, choices, i) for (q, choices, _), i in zip(harness.FACTS, liked, strict=True)]
    assert harness.accuracy(model, facts) == 1
    assert harness.accuracy(model, [(q, c, (i + 1) % 4) for q, c, i in facts]) == 0


class Answering(BaseHTTPRequestHandler):
    """A server of one answer."""

    asked: dict[str, Any]

    def do_POST(self) -> None:
        type(self).asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"prompt_token_ids": [1, 2], "choices": [{"token_ids": [3]}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""


def test_a_greedy_answer_is_asked_for_with_its_ids() -> None:
    http = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        found = server.greedy(f"http://127.0.0.1:{http.server_port}", [{"role": "user", "content": "hello"}], 5)
    finally:
        http.shutdown()
        http.server_close()
    assert found == {"prompt_ids": [1, 2], "ids": [3]}
    assert (Answering.asked["temperature"], Answering.asked["max_tokens"]) == (0, 5)


def test_a_server_that_ends_names_its_log(tmp_path: Path) -> None:
    """Its program is a script that fails at once; nothing is left running."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 1.0\n")
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho no such model >&2\nexit 3\n")
    for script in (python, program):
        script.chmod(0o755)
    with (
        pytest.raises(SystemExit, match=r"ended with 3: see .*vllm\.log"),
        server.serving(python, tmp_path, tmp_path, threads=1),
    ):
        pass
    assert "no such model" in (tmp_path / "vllm.log").read_text()
    assert (tmp_path / "vllm-note/vllm-1.0.dist-info/METADATA").read_text().endswith("Version: 1.0+cpu\n")


@pytest.mark.slow
def test_programs_that_are_not_there_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stage is trained by the command line; it has a merged model and an adapter."""
    words = ["--tiny", "--work", str(tmp_path), "--steps", "2", "--threads", "1", "--peers", str(tmp_path / "none")]
    monkeypatch.setattr(sys, "argv", ["served", *words])
    served.main()
    assert capsys.readouterr().out.count("no environment") == 3
    assert (tmp_path / "served/dpo/adapter/adapter_config.json").exists()
    assert (tmp_path / "served/dpo/model/config.json").exists()


@pytest.mark.slow
def test_vllm_peft_and_lm_eval_take_what_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny model, where PEERS_WORK names the folder of their environments."""
    if any(peer.python_of(peer.peers_folder(), name) is None for name in served.PROGRAMS.values()):
        pytest.skip(f"{PEERS} are not here: PEERS_WORK does not name their folder")
    monkeypatch.setattr(sys, "argv", ["served", "--tiny", "--work", str(tmp_path), "--threads", "1"])
    served.main()
    said = capsys.readouterr().out
    assert said.count("8 of 8 equal") == 2


def test_a_training_that_fails_names_its_log(
    tiny: tuple[Path, list[data.Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **how: subprocess.CompletedProcess(command, 2))
    with pytest.raises(SystemExit, match=r"failed with 2: see .*train\.log"):
        served.train(tiny[1], tiny[0], tmp_path, 1, 1)

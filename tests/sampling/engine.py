"""An engine with vLLM's routes whose model is ours: what the client sends and the order of a push, without vLLM.

Faults are asked for by name: `hang` (generate answers late), `500`, `garbage`, `short` (a log-prob is missing), `stale`
(new weights are taken and not used), `dead` (the connection is cut).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from safetensors.torch import load_file

from tiltyard.batch.forest import pack
from tiltyard.models.language import LanguageModel
from tiltyard.sampling import SampleSettings
from tiltyard.sampling.native import sample
from tiltyard.sampling.vllm.disk_engine import weight_files
from tiltyard.types import Group, Prompt, Response


class Engine:
    """The state of the engine, and what was asked of it, in order."""

    def __init__(self, model: LanguageModel):
        self.model, self.fault, self.asked = model, "", []
        self.version, self.lock = "", threading.Lock()
        self.paused = self.updating = False
        self.released = threading.Event()  # ends what hangs

    def answer(self, path: str, body: Any) -> Any:
        """Returns the JSON of an answer; raises for what vLLM would refuse."""
        self.asked.append(path)
        name = path.partition("?")[0]
        if name == "/v1/models":
            return {"data": [{"id": "policy"}]}
        if name == "/inference/v1/generate":
            return self.generated(body)
        if name in ("/pause", "/resume"):
            self.paused = name == "/pause"
        elif name == "/start_weight_update":
            assert self.paused, "weights change while responses are sampled"
            self.updating = True
        elif name == "/update_weights":
            assert self.updating
            files = weight_files(body["update_info"]["folder"])
            if self.fault != "stale":
                self.model.module.load_state_dict({k: v for f in files for k, v in load_file(f).items()}, strict=False)
        elif name == "/finish_weight_update":
            self.updating, self.version = False, body["weight_version"]
        elif name not in ("/init_weight_transfer_engine", "/reset_prefix_cache", "/health"):
            raise KeyError(name)
        return {}

    @torch.no_grad()
    def generated(self, body: Any) -> Any:
        """One response, or the log-probs of a prompt."""
        given, ids = body["sampling_params"], tuple(body["token_ids"])
        if "prompt_logprobs" in given:
            logps = self.model.logp_R(pack([Group(Prompt(ids=ids[:1]), (Response(ids=ids[1:]),))]))[0].tolist()
            found = [{str(i): {"logprob": p}} for i, p in zip(ids[1:], logps, strict=True)]
            return {"choices": [], "prompt_logprobs": [None, *found]}
        settings = SampleSettings(given["temperature"], given["top_p"], given["top_k"], given["max_tokens"])
        with self.lock:
            (group,) = sample(self.model, [Prompt(ids=ids)], 1, settings, seeds=[given["seed"]])
        (one,) = group.responses
        content = [{"token_id": i, "logprob": p} for i, p in zip(one.ids, one.logps, strict=True)]
        if self.fault == "short":
            content.pop()
        choice = {"token_ids": list(one.ids), "logprobs": {"content": content}, "finish_reason": one.finish}
        return {"choices": [choice], "prompt_logprobs": None}


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The address of the engine until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(engine.answer(self.path, None))

        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.path.startswith("/inference"):
                if engine.fault == "dead":
                    self.connection.close()
                    self.close_connection = True
                    return
                if engine.fault == "hang":
                    engine.released.wait(20)
                if engine.fault == "500":
                    self._raw(500, b"out of memory")
                    return
                if engine.fault == "garbage":
                    self._raw(200, b"<html>")
                    return
            try:
                self._send(engine.answer(self.path, json.loads(text) if text else None))
            except (OSError, AssertionError, KeyError) as error:
                self._raw(500, repr(error).encode())

        def _send(self, value: Any) -> None:
            self._raw(200, json.dumps(value).encode())

        def _raw(self, status: int, text: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def handle(self) -> None:
            with suppress(ConnectionError):  # a client that did not wait
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()

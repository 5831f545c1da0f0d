"""An engine with vLLM's routes whose model is ours: what the client sends and the order of a push, without vLLM.

Faults are asked for by name.

Of responses: `hang` (late), `500`, `garbage`, `short` (a log-prob is missing), `dead` (the connection is cut), `raw`
(log-probs of the whole distribution). Of weights: `stale` (taken and not used), `cut` (the push ends in the middle),
`restart` (at once, with those of the start). Of all: `bare` (no development routes), `old` (another version), `nothing`
(serves no model).
"""

from __future__ import annotations

import json
import threading
from collections import Counter
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
from tiltyard.sampling.vllm.disk_engine import take, weight_files
from tiltyard.types import Group, Prompt, Response


class Engine:
    """The state of the engine, and what was asked of it, in order."""

    def __init__(self, model: LanguageModel):
        self.model, self.fault, self.asked = model, "", []
        self.version, self.lock, self.owner = "default", threading.Lock(), {"name": "", "since": 0.0}
        self.paused = self.updating = False
        self.first = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
        self.released = threading.Event()  # ends what hangs
        self.events: dict[tuple[str, int], str] = {}  # (path, how often it was asked by then) -> the fault that begins
        self.counts: Counter[str] = Counter()

    def note(self, path: str) -> None:
        """Counts a request; one may begin a fault."""
        with self.lock:
            self.counts[path] += 1
            self.fault = self.events.pop((path, self.counts[path]), self.fault)
        if self.fault == "restart":  # another process at the same address, with the weights of the start
            self.model.module.load_state_dict(self.first)
            self.version, self.owner, self.fault = "default", {"name": "", "since": 0.0}, ""

    def answer(self, path: str, body: Any) -> Any:
        """Returns the JSON of an answer; raises for what vLLM would refuse."""
        self.asked.append(path)
        name = path.partition("?")[0]
        if name == "/v1/models":
            return {"data": [] if self.fault == "nothing" else [{"id": "policy"}]}
        if name == "/version":
            return {"version": "0.19.1" if self.fault == "old" else "0.32.0"}
        if name == "/inference/v1/generate":
            return self.generated(body)
        if name == "/init_weight_transfer_engine":
            take(body["init_info"].get("owner", ""), body["init_info"].get("release", False), self.owner)
        elif name == "/update_weight_version":
            self.version = body["new_version"]
        elif name in ("/pause", "/resume"):
            self.paused = name == "/pause"
        elif name == "/start_weight_update":
            assert self.paused, "weights change while responses are sampled"
            self.updating = True
        elif name == "/update_weights":
            assert self.updating
            if self.fault == "cut":
                raise ConnectionAbortedError("the worker has ended")
            files = weight_files(body["update_info"]["folder"])
            if self.fault != "stale":
                self.model.module.load_state_dict({k: v for f in files for k, v in load_file(f).items()}, strict=False)
        elif name == "/finish_weight_update":
            self.updating, self.version = False, body["weight_version"]
        elif name not in ("/reset_prefix_cache", "/health"):
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
        assert not self.paused, "a paused engine does not answer"
        settings = SampleSettings(given["temperature"], given["top_p"], given["top_k"], given["max_tokens"])
        with self.lock:
            (group,) = sample(self.model, [Prompt(ids=ids)], 1, settings, seeds=[given["seed"]])
        (one,) = group.responses
        logps = one.logps or ()
        if self.fault == "raw":
            logps = self.model.logp_R(pack([Group(Prompt(ids=ids), (Response(ids=one.ids),))]))[0].tolist()
        content = [{"token_id": i, "logprob": p} for i, p in zip(one.ids, logps, strict=True)]
        if self.fault == "short":
            content.pop()
        choice = {"token_ids": list(one.ids), "logprobs": {"content": content}, "finish_reason": one.finish}
        choice["weight_versions"] = [{"version": self.version, "start": 0, "end": len(one.ids)}]
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
            engine.note(self.path)
            if engine.fault == "bare" and "weight" in self.path:
                self._raw(404, b"Not Found")
                return
            if self.path.startswith("/inference") and b"prompt_logprobs" not in text:
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

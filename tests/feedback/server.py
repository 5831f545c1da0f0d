"""A chat-completions server in a thread, which answers by a script and remembers what it was asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]  # status, JSON value or raw bytes (None: hang up), headers


def completion(text: str, top: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """A reply with one written token, and its alternatives if given."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if top is not None:
        alternatives = [{"token": token, "logprob": logp} for token, logp in top.items()]
        written = {"token": text, "logprob": top.get(text, -0.1), "top_logprobs": alternatives}
        choice["logprobs"] = {"content": [written]}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 2}} | more


class Server:
    """`reply` decides by the payload and the number of the request; `asked` keeps (headers, payload, path)."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, str], dict[str, Any], str]] = []
        self.reply: Callable[[dict[str, Any], int], Reply] = lambda payload, number: (200, completion("1"), {})
        self.release = threading.Event()
        self.most = self.now = 0
        self.lock = threading.Lock()
        self.url = ""

    @property
    def questions(self) -> list[str]:
        return [payload["messages"][0]["content"] for _, payload, _ in self.asked]


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.asked)
                server.asked.append((dict(self.headers), payload, self.path))
                server.now += 1
                server.most = max(server.most, server.now)
            status, value, headers = server.reply(payload, number)
            with server.lock:
                server.now -= 1
            if value is None:
                self.close_connection = True
                return
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    try:
        yield server
    finally:
        server.release.set()
        httpd.shutdown()
        httpd.server_close()


def by_length(payload: dict[str, Any], number: int) -> Reply:
    """A judge that likes the longer response: log-odds are the difference in characters, 10 to one nat."""
    question = payload["messages"][0]["content"]
    one, two = re.findall(r"Response \d:\n(.*?)\n\n", question, re.DOTALL)[-2:]
    gap = (len(one) - len(two)) / 10
    return 200, completion("1" if gap >= 0 else "2", {"1": gap - 20, "2": -20.0}), {}

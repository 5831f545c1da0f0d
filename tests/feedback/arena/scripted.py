"""Models that write what a test tells them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from tiltyard.errors import ModelError
from tiltyard.types import Message, Response


@dataclass
class Scripted:
    """Writes its words one by one; `fails` after the first, `held` until it is let go."""

    name: str
    words: str = "one two three"
    version: str = ""
    fails: bool = False
    held: threading.Event | None = None
    asked: list[tuple[Message, ...]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def write(self, messages: Sequence[Message], seed: int, show) -> Response:
        self.asked.append(tuple(messages))
        done = ""
        try:
            for word in self.words.split(" "):
                piece = f"{' ' if done else ''}{word}"
                show(piece)
                done += piece
                if self.fails:
                    raise ModelError("the server gave no answer", where=self.name)
                while self.held is not None and not self.held.wait(0.02):
                    show("")
        except Exception:
            self.stopped.set()
            raise
        return Response(text=self.words, finish="stop")

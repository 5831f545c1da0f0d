"""Models of an arena: local folders and OpenAI-compatible endpoints, which write an answer piece by piece."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from tiltyard.errors import ConfigError, ModelError
from tiltyard.types import Message, Prompt, Response

if TYPE_CHECKING:
    import httpx

    from tiltyard.models.language import LanguageModel

Show = Callable[[str], None]
EDGE = 65_536  # bytes of both ends of a file that name its content
MOST_ANSWER = 100_000  # characters of an endpoint's answer; more is cut


class Writer(Protocol):
    """A model of the arena. `version` names what is served now; a model that changes gets another."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    def write(self, messages: Sequence[Message], seed: int, show: Show) -> Response:
        """Writes an answer; `show` gets its pieces, and may raise to stop it."""


@dataclass(frozen=True)
class Decoding:
    """The decoding of all models of an arena, the same for each, so that the comparison is of the models."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    timeout: float = 120.0
    system: str = ""

    def asked(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Returns the conversation with the system turn in front, if there is one."""
        return (*((Message("system", self.system),) if self.system else ()), *messages)


@dataclass
class LocalModel:
    """A model in this process; one answer at a time."""

    name: str
    version: str
    model: LanguageModel
    decoding: Decoding
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, messages: Sequence[Message], seed: int, show: Show) -> Response:
        """Samples an answer.

        Raises:
            TiltyardError: a prompt that the model cannot take.
        """
        from tiltyard.sampling import SampleSettings, sample
        from tiltyard.sampling.text_stream import TextStream

        d = self.decoding
        settings = SampleSettings(temperature=d.temperature, top_p=d.top_p, max_tokens=d.max_tokens)
        with self._lock:
            prompt = self.model.chat.encode_prompt(Prompt(messages=d.asked(messages)))
            stream = TextStream(self.model.chat, (), show)
            response = sample(self.model, [prompt], 1, settings, seed=seed, stream=stream)[0].responses[0]
            stream.close(response.text)
        return response


@dataclass
class EndpointModel:
    """A model behind an OpenAI-compatible chat-completions server, asked with `stream: true`.

    Args:
        model: the server's name of it. key: sent to that host alone, and part of no message.
    """

    name: str
    version: str
    url: str
    model: str
    key: str
    decoding: Decoding
    transport: httpx.BaseTransport | None = None

    def write(self, messages: Sequence[Message], seed: int, show: Show) -> Response:
        """Requests an answer.

        Raises:
            ModelError: no answer, or one that is no stream of completions.
        """
        import httpx

        d = self.decoding
        asked = [{"role": turn.role, "content": turn.content} for turn in d.asked(messages)]
        payload = {"model": self.model, "messages": asked, "temperature": d.temperature, "top_p": d.top_p}
        payload |= {"max_tokens": d.max_tokens, "seed": seed % 2**31, "stream": True}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        pieces: list[str] = []
        finish = "stop"
        try:
            with (
                httpx.Client(timeout=d.timeout, follow_redirects=False, transport=self.transport) as http,
                http.stream("POST", completions_url(self.url), json=payload, headers=headers) as reply,
            ):
                if reply.status_code != 200:
                    raise ModelError("the server refused", where=self.name, got=f"status {reply.status_code}")
                for delta, end in _deltas(reply.iter_lines()):
                    finish = end or finish
                    if delta:
                        pieces.append(delta)
                        show(delta)
                    if sum(map(len, pieces)) > MOST_ANSWER:
                        finish = "length"
                        break
        except httpx.HTTPError as error:
            raise ModelError("the server gave no answer", where=self.name, got=type(error).__name__) from error
        return Response(text="".join(pieces), finish="length" if finish == "length" else "stop")


def completions_url(url: str) -> str:
    """Returns the address of chat completions below a base address."""
    bare = url.rstrip("/")
    return bare if bare.endswith("/chat/completions") else f"{bare}/chat/completions"


def _deltas(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Yields (text, reason of the end or "") of a stream of server-sent events.

    Raises:
        ModelError: an event that is no completion.
    """
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            choice: Any = (json.loads(data).get("choices") or [{}])[0]
            text = (choice.get("delta") or {}).get("content") or ""
            yield str(text), str(choice.get("finish_reason") or "")
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            raise ModelError("the server's stream is none of completions", got=data[:80]) from error


@dataclass(frozen=True)
class Entry:
    """A model as the command line names it: `NAME=FOLDER` or `NAME=URL#MODEL`, NAME perhaps with `@VERSION`."""

    name: str
    version: str
    source: str
    served: str = ""
    key_env: str = ""

    @classmethod
    def of(cls, text: str, keys: dict[str, str]) -> Entry:
        """Parses one; `keys`: the environment variable of each endpoint's key, by name.

        Raises:
            ConfigError: it has no name or no source, or an address with a password or without a model.
        """
        label, sign, source = text.partition("=")
        name, _, version = label.strip().partition("@")
        if not sign or not name or not source.strip():
            raise ConfigError(
                "not a model of an arena",
                where="--model",
                got=text,
                expected="NAME=FOLDER or NAME=http://{HOST}:{PORT}/v1#MODEL",
            )
        if len(name) > 100 or len(version) > 100:
            raise ConfigError("a model's name is too long", where="--model", got=f"{name[:40]}...", expected="100")
        if not source.startswith(("http://", "https://")):
            return cls(name, version, source.strip())
        address, _, served = source.partition("#")
        parts = urlsplit(address)
        if not parts.hostname or parts.username or parts.password or not served:
            raise ConfigError(
                "not the address of a model",
                where=f"--model {name}",
                got=address if not parts.password else "an address with a password",
                expected="http://{HOST}:{PORT}/v1#MODEL; keys come from the environment (--key)",
            )
        return cls(name, version, address, served, keys.get(name, ""))

    def at(self, source: str) -> Entry:
        """Returns the entry with another source."""
        return replace(self, source=source)


def opened(entry: Entry, decoding: Decoding, *, device: str = "auto") -> Writer:
    """Loads a local model, or makes the client of an endpoint.

    Raises:
        ConfigError: the variable of the key is not set. ModelError: the folder holds no model.
    """
    if not entry.served:
        from tiltyard.models.load import load_language_model

        folder = Path(entry.source)
        return LocalModel(
            entry.name, entry.version or fingerprint(folder), load_language_model(folder, device=device), decoding
        )
    key = os.environ.get(entry.key_env, "") if entry.key_env else ""
    if entry.key_env and not key:
        raise ConfigError("the key is not set", where=f"--key {entry.name}", got=f"no variable {entry.key_env}")
    return EndpointModel(entry.name, entry.version, entry.source, entry.served, key, decoding)


def fingerprint(folder: Path) -> str:
    """Returns 10 hex digits that change with a model's weights: of names, sizes and both ends of its weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(EDGE)
            file.seek(max(0, size - EDGE))
            digest.update(f"{path.name} {size} ".encode() + head + file.read(EDGE))
    return digest.hexdigest()[:10]

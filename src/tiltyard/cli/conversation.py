"""Responses to prompts and chats in the terminal: what `tiltyard sample` and `tiltyard chat` run. Imports torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tiltyard.errors import ConfigError
from tiltyard.files import not_utf8
from tiltyard.models.backbone import DType
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.report.text import plain
from tiltyard.sampling import SampleSettings
from tiltyard.sampling import sample as generate
from tiltyard.sampling.text_stream import TextStream
from tiltyard.sampling.ways import decoding_note
from tiltyard.types import Group, Message, Prompt, Response


def sample(
    model: str | Path,
    prompts: Sequence[tuple[str, Prompt]],
    *,
    n: int = 1,
    seed: int = 0,
    device: str = "auto",
    dtype: DType = "float32",
    **sampling: Any,
) -> list[Group]:
    """Returns `n` responses to each prompt.

    Args:
        prompts: (where it comes from, conversation). dtype: arithmetic. sampling: fields of `SampleSettings`.

    Raises:
        ConfigError: a prompt that fills the model's context, an empty stop string.
        DataError: a conversation that the model's chat template cannot render.
    """
    settings = SampleSettings(**sampling)
    loaded = loaded_model(model, device, dtype)
    return generate(loaded, encoded(loaded, prompts), n, settings, seed=seed)


def encoded(model: LanguageModel, placed: Sequence[tuple[str, Prompt]]) -> list[Prompt]:
    """Encodes prompts; errors name the place, not the id that a row was given.

    Raises:
        ConfigError: a prompt that fills the model's context. DataError: one that the chat template cannot render.
    """
    prompts = model.chat.encode_prompts([replace(prompt, id=where) for where, prompt in placed])
    for (where, _), prompt in zip(placed, prompts, strict=True):
        _check_length(model, prompt, where)
    return prompts


def _check_length(model: LanguageModel, prompt: Prompt, where: str) -> None:
    limit = model.chat.max_length
    if limit is not None and len(prompt.ids) >= limit:
        raise ConfigError(
            "the prompt fills the model's context: there is no token left for a response",
            where=where,
            got=f"{len(prompt.ids):,} tokens with the chat template's",
            expected=f"fewer than {limit:,}",
            fix="shorten it, or take a model with a longer context",
        )


def chat(
    model: str | Path,
    *,
    console: Console,
    system: str = "",
    device: str = "auto",
    dtype: DType = "float32",
    seed: int = 0,
    **sampling: Any,
) -> None:
    """Runs a chat until an empty line or the end of input; responses are shown while they are sampled.

    The oldest turns are dropped when the context is full, and a line on standard error counts them.
    """
    settings = SampleSettings(**sampling)
    loaded = loaded_model(model, device, dtype)
    first = (Message("system", system),) if system else ()
    turns: list[Message] = []
    asked = 0
    while True:
        try:
            line = console.input("[bold]you:[/] ")
        except (EOFError, KeyboardInterrupt):
            break
        except UnicodeDecodeError as error:
            raise not_utf8(error.object, error, "standard input", ConfigError) from None
        if not line.strip():
            break
        asked += 1
        turns.append(Message("user", line))
        before = len(turns)
        prompt = _fitting(loaded, first, turns, settings.max_tokens)
        if len(turns) < before:
            print(f"the context is full: the oldest {before - len(turns)} turns were dropped", file=sys.stderr)
        _check_length(loaded, prompt, "the conversation")
        response = _answered(loaded, prompt, settings, seed + asked, console)
        turns.append(Message("assistant", response.text))


def _answered(model: LanguageModel, prompt: Prompt, settings: SampleSettings, seed: int, console: Console) -> Response:
    """Samples a response and prints it on the way."""

    def show(piece: str) -> None:
        console.out(plain(piece), end="", highlight=False)

    show("model: ")
    stream = TextStream(model.chat, settings.stop, show)
    response = generate(model, [prompt], 1, settings, seed=seed, stream=stream)[0].responses[0]
    if not stream.close(response.text):  # a tokenizer that writes earlier words anew: the whole once more
        show(f"\nmodel: {response.text}")
    show(" (cut)\n" if response.finish == "length" else "\n")
    return response


def loaded_model(model: str | Path, device: str, dtype: DType) -> LanguageModel:
    """Loads a model; prints to stderr what is unusual about it."""
    loaded = load_language_model(model, device=device, dtype=dtype)
    lines = [f"{model}: {note}" for note in loaded.origin.notes]
    lines += [f"chat template {note}" for note in loaded.chat.notes]
    if note := decoding_note(loaded):
        lines.append(f"this architecture is {note}")
    for line in lines:
        print(line, file=sys.stderr)
    return loaded


def _fitting(model: LanguageModel, first: tuple[Message, ...], turns: list[Message], max_tokens: int) -> Prompt:
    """Encodes the conversation, dropping its oldest turns two at a time until a response fits into the context."""
    limit = model.chat.max_length
    while True:
        prompt = model.chat.encode_prompt(Prompt(messages=(*first, *turns)))
        if limit is None or len(prompt.ids) + max_tokens <= limit or len(turns) <= 2:
            return prompt
        del turns[:2]

"""Responses to prompts and chats in the terminal: what `tiltyard sample` and `tiltyard chat` run. Imports torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tiltyard.errors import ConfigError
from tiltyard.files import not_utf8
from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.report.text import plain
from tiltyard.sampling import SampleSettings
from tiltyard.sampling import sample as generate
from tiltyard.sampling.ways import decoding_note
from tiltyard.types import Group, Message, Prompt


def sample(
    model: str | Path,
    prompts: Sequence[tuple[str, str]],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_tokens: int = 128,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    device: str = "auto",
) -> list[Group]:
    """Returns `n` responses to each prompt; a prompt is one user turn.

    Args:
        prompts: (where it comes from, text).

    Raises:
        ConfigError: a prompt that fills the model's context, an empty stop string.
    """
    settings = SampleSettings(temperature, top_p, top_k, max_tokens, stop)
    loaded = _loaded(model, device)
    encoded = loaded.chat.encode_prompts([Prompt(messages=(Message("user", text),)) for _, text in prompts])
    for (where, _), prompt in zip(prompts, encoded, strict=True):
        _check_length(loaded, prompt, where)
    return generate(loaded, encoded, n, settings, seed=seed)


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
    seed: int = 0,
    **sampling: Any,
) -> None:
    """Runs a chat until an empty line or the end of input; the oldest turns are dropped when the context is full."""
    loaded = _loaded(model, device)
    settings = SampleSettings(**sampling)
    first = (Message("system", system),) if system else ()
    turns: list[Message] = []
    while True:
        try:
            line = console.input("[bold]you:[/] ")
        except (EOFError, KeyboardInterrupt):
            break
        except UnicodeDecodeError as error:
            raise not_utf8(error.object, error, "standard input", ConfigError) from None
        if not line.strip():
            break
        turns.append(Message("user", line))
        prompt = _fitting(loaded, first, turns, settings.max_tokens)
        group = generate(loaded, [prompt], 1, settings, seed=seed + len(turns))[0]
        response = group.responses[0].text
        turns.append(Message("assistant", response))
        console.print(f"model: {plain(response)}", markup=False, highlight=False, soft_wrap=True)


def _loaded(model: str | Path, device: str) -> LanguageModel:
    """Loads a model; prints to stderr what is unusual about it."""
    loaded = load_language_model(model, device=device)
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

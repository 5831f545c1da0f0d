"""What `tiltyard sample` and `tiltyard chat` do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from tiltyard.models.language import LanguageModel
from tiltyard.models.load import load_language_model
from tiltyard.report.text import plain
from tiltyard.sampling import SampleSettings
from tiltyard.sampling import sample as draw_answers
from tiltyard.types import Group, Message, Prompt


def sample(
    model: str | Path,
    prompts: list[str],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_tokens: int = 128,
    seed: int = 0,
    device: str = "auto",
) -> list[Group]:
    """`n` answers to each prompt, each prompt being one user turn."""
    loaded = load_language_model(model, device=device)
    asked = loaded.chat.encode_prompts([Prompt(messages=(Message("user", p),)) for p in prompts])
    law = SampleSettings(temperature, top_p, top_k, max_tokens)
    return draw_answers(loaded, asked, n, law, seed=seed)


def chat(
    model: str | Path,
    *,
    console: Console,
    system: str = "",
    device: str = "auto",
    seed: int = 0,
    **law: Any,
) -> None:
    """A conversation; an empty line or end of input ends it. Early turns are forgotten when the context is full."""
    loaded = load_language_model(model, device=device)
    settings = SampleSettings(**law)
    first = (Message("system", system),) if system else ()
    turns: list[Message] = []
    while True:
        try:
            said = console.input("[bold]you:[/] ")
        except (EOFError, KeyboardInterrupt):
            break
        if not said.strip():
            break
        turns.append(Message("user", said))
        prompt = _fitting(loaded, first, turns, settings.max_tokens)
        group = draw_answers(loaded, [prompt], 1, settings, seed=seed + len(turns))[0]
        answer = group.responses[0].text
        turns.append(Message("assistant", answer))
        console.print(f"model: {plain(answer)}", markup=False, highlight=False, soft_wrap=True)


def _fitting(model: LanguageModel, first: tuple[Message, ...], turns: list[Message], room: int) -> Prompt:
    """The conversation, its oldest turns dropped two by two until an answer fits."""
    limit = model.chat.max_length
    while True:
        prompt = model.chat.encode_prompt(Prompt(messages=(*first, *turns)))
        if limit is None or len(prompt.ids) + room <= limit or len(turns) <= 2:
            return prompt
        del turns[:2]

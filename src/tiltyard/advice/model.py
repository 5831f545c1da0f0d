"""The model: its size, context and chat template, read from its folder without its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from tiltyard.data import Chat
from tiltyard.errors import ModelError, TiltyardError
from tiltyard.models.folder import base_of
from tiltyard.models.pretrained import context_length, load_config, load_tokenizer, loading_errors, quiet, resolve
from tiltyard.stages.memory import Shape
from tiltyard.types import Message, Prompt


class ModelFacts(NamedTuple):
    """A model. `parameters`: tied ones once; `head`: those of the output head; `context`: None is not known."""

    source: str
    architecture: str
    parameters: int
    head: int
    context: int | None
    shape: Shape | None
    template: bool

    def words(self) -> str:
        """One line for people."""
        context = "" if self.context is None else f", context {self.context:,} tokens"
        template = "chat template" if self.template else "no chat template: the plain default is used"
        return f"{self.architecture}, {self.parameters / 1e6:,.1f}M parameters{context}, {template}"


def look_at_model(source: str, *, default_template: bool = False) -> tuple[ModelFacts, Chat]:
    """Reads a model's configuration and tokenizer.

    Args:
        default_template: a model without a chat template gets the plain default one.

    Raises:
        ModelError: no model, no chat template, or one that cannot show a question.
    """
    folder = resolve(source)
    config = load_config(folder, False)
    tokenizer = load_tokenizer(folder)
    has_template = tokenizer.chat_template is not None
    if not has_template and not default_template:
        raise ModelError(
            "the model has no chat template: it is a base model, which was never taught to answer",
            where=source,
            got="a tokenizer without chat_template",
            expected="a chat model (often named -Instruct, -it or -chat)",
            fix="take the chat version of this model, put its chat_template.jinja into the folder, or train this one "
            "with the plain default template: --default-template",
        )
    chat = _chat(tokenizer, context_length(config), source)
    parameters, head = _count(folder, config)
    names = getattr(config, "architectures", None) or [type(config).__name__]
    facts = ModelFacts(
        source,
        str(names[0]),
        parameters,
        head,
        context_length(config),
        _shape(base_of(folder), parameters),
        has_template,
    )
    return facts, chat


def _chat(tokenizer: Any, context: int | None, source: str) -> Chat:
    """The tokenizer with its template, which has rendered one question.

    Raises:
        ModelError: the template fails.
    """
    question = Prompt(messages=(Message("user", "Hello!"),))
    try:
        chat = Chat(tokenizer, max_length=context)
        chat.encode_prompt(question)
    except TiltyardError as error:
        raise ModelError(
            "the chat template cannot show a question and its answer",
            where=source,
            got=" ".join(str(error.got or error.what).split())[:300],
            expected="a template that renders a user turn, the generation prompt and an answer",
            fix=error.fix or "correct chat_template.jinja (or chat_template in tokenizer_config.json)",
        ) from None
    return chat


def _count(folder: str, config: Any) -> tuple[int, int]:
    """(all parameters, those of the output head); no memory is taken."""
    with quiet(), loading_errors("model", folder), torch.device("meta"):
        module: Any = AutoModelForCausalLM.from_config(config)
    seen = {id(p): p.numel() for p in module.parameters()}
    head = module.get_output_embeddings()
    module.tie_weights()
    total = sum({id(p): p.numel() for p in module.parameters()}.values() or seen.values())
    return total, 0 if head is None else head.weight.numel()


def _shape(folder: str, parameters: int) -> Shape | None:
    """The shape of a decoder whose config.json is here and has the usual names."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
        shape = Shape.read(config)
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return shape._replace(parameters=parameters)

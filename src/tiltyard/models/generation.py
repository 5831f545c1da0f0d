"""Generation settings of a model's folder: the tokens that end an answer, and settings that cannot be saved again."""

from __future__ import annotations

import copy
import re
from typing import Any

from tiltyard.data.chat import Chat
from tiltyard.errors import ModelError

KEPT = ("bos_token_id", "eos_token_id")  # never left out


def declared_ends(module: Any) -> frozenset[int]:
    """The ids at which transformers' `generate` stops for this model, those beyond its vocabulary left out."""
    declared = getattr(module, "generation_config", None)
    found = getattr(declared, "eos_token_id", None)
    ids = found if isinstance(found, list | tuple) else [] if found is None else [found]
    size = module.get_input_embeddings().weight.shape[0]
    return frozenset(int(i) for i in ids if 0 <= int(i) < size)


def take_ends(module: Any, chat: Chat) -> list[str]:
    """Adds the end tokens that the model's files declare to eos and the template's end of a turn.

    Returns a line that names the tokens that this adds.
    """
    more = sorted(declared_ends(module) - chat.stop_ids)
    chat.stop_ids = chat.stop_ids | frozenset(more)
    names = ", ".join(f"{chat.tokenizer.convert_ids_to_tokens(i)} ({i})" for i in more)
    return [f"answers end at {names} too, as its generation settings declare"] if more else []


def mend_generation(module: Any, name: str) -> list[str]:
    """Takes out of a model's generation settings what transformers refuses to save; returns a line that names it.

    Published models often hold `temperature` beside `do_sample: false`, where it has no effect.

    Raises:
        ModelError: they cannot be saved whatever is left out.
    """
    declared = getattr(module, "generation_config", None)
    if declared is None or not module.can_generate():
        return []
    dropped: list[str] = []
    while error := _trouble(declared):
        field = _offending(declared, error)
        if field is None:
            raise ModelError(
                "the model's generation settings could not be saved again",
                where=f"{name}/generation_config.json",
                got=error.splitlines()[0],
                expected="what GenerationConfig.save_pretrained accepts",
                fix="correct the file, or remove it",
            )
        dropped.append(f"{field}={getattr(declared, field)}")
        setattr(declared, field, _default(declared, field))
    line = f"generation settings that transformers refuses to save are left out: {', '.join(dropped)}"
    return [line] if dropped else []


def _trouble(declared: Any) -> str:
    try:
        declared.validate(strict=True)
    except ValueError as error:
        return str(error)
    return ""


def _default(declared: Any, field: str) -> Any:
    return getattr(type(declared)(), field, None)


def _offending(declared: Any, error: str) -> str | None:
    """The field without which there is less to complain about: of the ones that the complaint names, then of all."""
    own = [field for field in declared.to_diff_dict() if field not in KEPT and hasattr(declared, field)]
    own = [field for field in own if getattr(declared, field) != _default(declared, field)]
    named = [field for field in re.findall(r"`(\w+)`", error) if field in own]
    for field in [*named, *own]:
        trial = copy.deepcopy(declared)
        setattr(trial, field, _default(declared, field))
        left = _trouble(trial)
        if not left or len(left) < len(error) or left.splitlines()[0] != error.splitlines()[0]:
            return field
    return None

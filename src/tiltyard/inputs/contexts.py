"""Contexts of the models that read what a policy writes, checked from their folders before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiltyard.data import Chat
from tiltyard.errors import ConfigError, TiltyardError
from tiltyard.feedback import ModelJudgeSettings
from tiltyard.inputs.scores import POLICY, ScoreSettings, SelfJudgeSettings, is_model, monitor_sources
from tiltyard.inputs.settings import PromptSettings, StageSettings
from tiltyard.inputs.workspace import Workspace, model_folder
from tiltyard.models.folder import base_of
from tiltyard.models.pretrained import context_length, load_config, load_tokenizer, resolve
from tiltyard.scoring.reward_model import same_tokens


def check_contexts(work: Workspace, settings: StageSettings) -> list[str]:
    """`check_reading` for the models that read what a training stage samples."""
    if not isinstance(settings, PromptSettings):
        return []
    sizes = (settings.prompts.max_prompt, settings.sampling.max_tokens)
    return check_reading(work, settings.model, _readers(settings), *sizes)


def check_reading(
    work: Workspace, policy: str, readers: Mapping[str, str], max_prompt: int, max_tokens: int
) -> list[str]:
    """Refuses a reward model that cannot read the longest response with its prompt; a model that is not there yet (of
    an earlier stage, or of the hub) is checked when it is.

    Returns lines about models of another tokenizer, whose tokens cannot be compared, and about judges.

    Args:
        policy: the model that samples. readers: the models that read, by the key that names them; "" is none.

    Raises:
        ConfigError: the reward model's context is shorter than `max_prompt` and `max_tokens` together.
    """
    own = _context(work, policy)
    asked = max_prompt + max_tokens
    longest = min(asked, own or asked)  # the policy stops at the end of its own context
    lines = []
    for name, source in readers.items():
        limit = _context(work, source)
        if limit is None or limit >= longest:
            continue
        if not name.startswith("judge") and _same_tokens(work, policy, source):
            raise ConfigError(
                f"the model of {name} has a shorter context than a prompt with its response",
                where=f"{work.name}.max_prompt",
                got=f"up to {longest} tokens (max_prompt={max_prompt}, max_tokens={max_tokens})",
                expected=f"at most {limit} together, the context of {source}",
                fix="lower max_prompt or max_tokens, or take a model with a longer context",
            )
        line = f"{name} reads at most {limit} tokens, and a prompt with its response may have {longest}"
        lines.append(f"{line}: a longer one stops the run")
    return lines


def _readers(settings: StageSettings) -> dict[str, str]:
    """The models that read responses with their prompts, by the key that names them."""
    found: dict[str, str] = {}
    if isinstance(settings, ScoreSettings):
        parts = {name if name == "reward" else f"reward.{name}": p.source for name, p in settings.parts().items()}
        found |= {name: source for name, source in parts.items() if is_model(source)}
    if isinstance(settings, ScoreSettings | SelfJudgeSettings):
        found |= {f"monitors ({one})": one for one in monitor_sources(settings.monitors) if is_model(one)}
        judge = settings.judge
        if isinstance(judge, ModelJudgeSettings) and judge.model != POLICY:
            found["judge.model"] = judge.model
    return found


def config_of(work: Workspace, source: str) -> dict[str, Any]:
    """The config.json of a model that is there: of an adapter that of its model, of a GGUF file that of its folder.

    Raises:
        OSError, ValueError, TiltyardError: there is none, or a hub name.
    """
    folder = model_folder(work, source)
    if not Path(folder).exists():
        raise FileNotFoundError(folder)  # nothing is asked of a hub here
    return dict(json.loads((Path(base_of(resolve(folder))) / "config.json").read_text(encoding="utf-8")))


def _folder(work: Workspace, source: str) -> str | None:
    """The folder of a model that is there; None for one of a later stage, and for names of the hub."""
    if not source:
        return None
    try:
        folder = model_folder(work, source)
        return resolve(folder) if Path(folder).exists() else None
    except TiltyardError:
        return None


def _context(work: Workspace, source: str) -> int | None:
    folder = _folder(work, source)
    if folder is None:
        return None
    try:
        config: Any = load_config(folder, False)
    except TiltyardError:
        return None  # the loader names what is wrong
    return context_length(config)


def _same_tokens(work: Workspace, policy: str, source: str) -> bool:
    folders = (_folder(work, policy), _folder(work, source))
    try:
        one, two = (Chat(load_tokenizer(folder)) for folder in folders if folder is not None)
    except (TiltyardError, ValueError):
        return False
    return same_tokens(one, two)

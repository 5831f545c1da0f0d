"""The gold score as a reward function, which recipes name by the alias `gold` (see `tiltyard.scoring.registry`)."""

from __future__ import annotations

from tiltyard.errors import ConfigError
from tiltyard.types import Prompt, Response
from tiltyard.world.gold import gold as gold_of

FACTS = frozenset({"kind", "form", "ask", "facts"})  # keys of a prompt's `meta` that the gold score reads


def gold(prompt: Prompt, response: Response) -> float:
    """The gold score of a response, in [-1, 1].

    Raises:
        ConfigError: the prompt is not one of the demo world's.
    """
    check_prompt(prompt)
    return gold_of(prompt.meta, response.text).total


def is_world_prompt(prompt: Prompt) -> bool:
    """True if the prompt carries the facts that the gold score reads."""
    return prompt.meta.keys() >= FACTS


def check_prompt(prompt: Prompt) -> None:
    """Raises a ConfigError for a prompt without the facts that the gold score reads."""
    if not is_world_prompt(prompt):
        raise ConfigError(
            "gold scores belong to the embedded world, and this prompt is not about it",
            where="reward=gold",
            got=prompt.id or prompt.text or prompt.messages,
            expected="prompts that the stage `world` wrote (world/prompts.jsonl)",
            fix="name a reward model, or use the prompts that the stage `world` wrote",
        )


gold.check_prompt = check_prompt  # type: ignore[attr-defined]  # the hook that `FunctionScorer.check_prompts` calls
gold.highest = 1.0  # type: ignore[attr-defined]  # and the number that `FunctionScorer.highest` reads

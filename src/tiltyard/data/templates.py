"""Chat templates (Jinja) for tokenizers without one."""

from __future__ import annotations

from collections.abc import Iterable

TURN_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

# For tokenizers made by `train_tokenizer`. Special tokens alone separate turns: no token can straddle two turns. Text
# follows its marker after a space, so that the first word of a turn is the same token as anywhere else in a sentence:
# a small model can then copy a name from the question to the beginning of its answer.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# For pretrained base models, whose vocabulary has no turn tokens. Headers end in a newline, which tokenizers
# separate from the following word, so that the first token of an answer is the same in training and in sampling.
PLAIN_TEMPLATE = (
    "{% if bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


def default_for(vocabulary: Iterable[str]) -> str:
    """Returns `DEFAULT_TEMPLATE` for a vocabulary that has the turn tokens, else `PLAIN_TEMPLATE`."""
    return DEFAULT_TEMPLATE if set(TURN_TOKENS) <= set(vocabulary) else PLAIN_TEMPLATE


def with_generation_prompt(template: str, header: str) -> str:
    """Returns the template with `header` as its generation prompt, for one that has none of its own."""
    text = header.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    # Jinja drops one newline at the end of a template, which must not come back because something follows it
    return f"{template.removesuffix(chr(10))}{{% if add_generation_prompt %}}{{{{ '{text}' }}}}{{% endif %}}"

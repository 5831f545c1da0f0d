"""The records that all packages share.

A `Group`, one prompt with its K responses, is the unit of data everywhere. Supervised data has K=1, a preference pair
K=2, a ranking K=4..9, a group of rollouts K=n. Offline rows, rollouts and human labels are the same `Group`;
`origin` is where each came from (`train.jsonl:17`, `policy@1200`, `annotator:7`).

All records are frozen: a step that adds something returns a new record (`dataclasses.replace`).
Token ids are made from text in one place only (`tiltyard.data.chat`) and are never re-made afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Finish = Literal["stop", "length", "given"]

# Packed tokens of a forward pass. On CPUs a larger one is no faster and takes more memory (docs/lab.md); on a GPU a
# small model wants more.
MICRO_TOKENS = 2048


class Message(NamedTuple):
    """One turn of a conversation. `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of the model.

    `messages` for a conversation (it ends with a turn that is not the assistant's) or `text` for plain continuation;
    exactly one of the two is set. `ids` is empty until `data.chat` has encoded the prompt, and then ends where the
    response begins (generation prompt included). `meta` travels with the prompt untouched (source, gold facts, ...).
    """

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """One response. `ids` includes the end-of-turn token if the response has one, and never padding.

    `logps`: log-probability in nats of each token under the sampling distribution; None if it was not sampled.
    `finish`: `stop` (ended by itself), `length` (cut by the token limit), `given` (came from a file).
    `loss_spans`: half-open spans of `ids` that a loss may use (multi-turn: the assistant's turns); None means all.
    `hidden`: the policy's last hidden states [tokens, d] that predicted the tokens, if the sampler computed them with
    the policy's own weights and they are still in memory. Never stored.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    logps: tuple[float, ...] | None = None
    policy_version: int | None = None
    finish: Finish = "given"
    loss_spans: tuple[tuple[int, int], ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    hidden: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt, its K responses and the judgements of them.

    `scores`: one number a response, higher is better. `ranks`: 1 is best, equal ranks are ties. `shares`: probability
    that each response is the preferred one, adding up to 1 (soft labels, votes). Each may be None.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    scores: tuple[float, ...] | None = None
    ranks: tuple[int, ...] | None = None
    origin: str = ""
    shares: tuple[float, ...] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens of the packed tree: the prompt once, every response once."""
        return len(self.prompt.ids) + sum(len(r.ids) for r in self.responses)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person or judge said about one group. Never overwritten: a new opinion is a new record."""

    group_id: str
    annotator: str
    verdict: Mapping[str, Any]
    when: str
    guideline_version: str = ""

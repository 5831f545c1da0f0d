"""The records that all packages share.

A `Group`, one prompt with its K responses, is the unit of data everywhere. Supervised data has K=1, a preference pair
K=2, a ranking K=4..9, a group of rollouts K=n. Offline rows, rollouts and human labels are the same `Group`;
`origin` is where each came from (`train.jsonl:17`, `policy@1200`, `annotator:7`).

All records are frozen: a step that adds something returns a new record (`dataclasses.replace`).
Token ids are made from text in one place only (`tiltyard.data.chat`) and are never re-made afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, NamedTuple

from tiltyard.errors import DataError

Finish = Literal["stop", "length", "given"]

# Packed tokens of a forward pass. On CPUs a larger one is no faster and takes more memory (docs/lab.md); on a GPU a
# small model wants more.
MICRO_TOKENS = 2048


class Message(NamedTuple):
    """A turn of a conversation. `role` is `system`, `user` or `assistant`, or another that the chat template renders.

    `more`: further fields of the turn (`reasoning_content`, `tool_calls`, `weight`, ...) as the JSON text of an object;
    "" for none. As text they are hashable, and equal turns are equal.
    """

    role: str
    content: str
    more: str = ""

    @property
    def extra(self) -> dict[str, Any]:
        """The further fields."""
        return json.loads(self.more) if self.more else {}

    def to_dict(self) -> dict[str, Any]:
        """The turn as an object of a row: `role`, `content` and the further fields."""
        return {"role": self.role, "content": self.content, **self.extra}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Message:
        """The inverse of `to_dict`."""
        extra = {key: item for key, item in value.items() if key not in ("role", "content")}
        return cls(value["role"], value["content"], json.dumps(extra, ensure_ascii=False) if extra else "")

    def to_list(self) -> list[str]:
        """The turn as `[role, content]`, and a third element where it has further fields."""
        return list(self) if self.more else [self.role, self.content]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of the model.

    `messages` for a conversation (it ends with a turn that is not the assistant's) or `text` for plain continuation;
    exactly one of the two is set. `ids` is empty until `data.chat` has encoded the prompt, and then ends where the
    response begins (generation prompt included). `meta` travels with the prompt untouched (source, gold facts, ...).
    `tools`: the tools that the chat template is given, as the JSON text of a list; "" for none.
    """

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    ids: tuple[int, ...] = ()
    tools: str = ""

    def to_row(self) -> dict[str, Any]:
        """The prompt as fields of a row: `id`, `prompt` and, where it has them, `tools`."""
        asked = self.text if self.messages is None else [m.to_dict() for m in self.messages]
        return {"id": self.id, "prompt": asked} | ({"tools": json.loads(self.tools)} if self.tools else {})


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
class Preference:
    """A preference among the responses of a group, by a person or a judge.

    At most one of the four is set; none, where the annotator gave no verdict (`meta["reason"]` says why). A new opinion
    is a new record.

    Args:
        ranks: one a response, 1 is best, equal ranks are ties.
        shares: probability that each response is the preferred one (soft labels, votes); they add up to 1.
        labels: whether each response is good.
        ratings: one number a response on the annotator's own scale, higher is better.
        annotator: who decided, e.g. `judge:gpt` or a person's name. when: ISO 8601. guideline: version of the
            annotator's instructions.
        prompt: id of the prompt. responses: `response_id` of each response, in order. model: who wrote them. run: the
            run, or the stage of it, that they come from.
        meta: what else the annotator said (words, log-odds, reason).

    Raises:
        DataError: two of the four are set.
    """

    ranks: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    labels: tuple[bool, ...] | None = None
    ratings: tuple[float, ...] | None = None
    annotator: str = ""
    when: str = ""
    guideline: str = ""
    prompt: str = ""
    responses: tuple[str, ...] = ()
    model: str = ""
    run: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [name for name in ("ranks", "shares", "labels", "ratings") if getattr(self, name) is not None]
        if len(given) > 1:
            raise DataError(
                "a preference says the same thing twice",
                where=self.prompt or self.annotator,
                got=" and ".join(given),
                expected="one of ranks, shares, labels, ratings",
            )


class Pair(NamedTuple):
    """Two responses of a group by their indices, the better first, and the probability that it is the better one."""

    better: int
    worse: int
    p: float


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt, its K responses and the judgements of them.

    `scores`: one number a response, higher is better: what a scorer gave, or a file's field `scores`. `preference`:
    the judgement of a person or a judge. Each may be None.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    scores: tuple[float, ...] | None = None
    preference: Preference | None = None
    origin: str = ""

    @property
    def tokens(self) -> int:
        """Number of tokens of the packed tree: the prompt once, every response once."""
        return len(self.prompt.ids) + sum(len(r.ids) for r in self.responses)


def dense_ranks(values: Sequence[float]) -> tuple[int, ...]:
    """Returns ranks 1, 2, ... without gaps; the highest value has rank 1, equal values tie."""
    best_first = sorted(set(values), reverse=True)
    return tuple(best_first.index(value) + 1 for value in values)


def ranks_of(preference: Preference | None) -> tuple[int, ...] | None:
    """Returns the rank of each response, 1 is best; None where nothing is preferred."""
    if preference is None:
        return None
    if preference.ranks is not None:
        return preference.ranks
    values = next((v for v in (preference.shares, preference.labels, preference.ratings) if v is not None), None)
    return None if values is None else dense_ranks(values)


def shares_of(preference: Preference | None) -> tuple[float, ...] | None:
    """Returns the probability of each response to be the preferred one; None where that is not known (hard labels)."""
    return None if preference is None else preference.shares


def pairs_of(preference: Preference | None) -> list[Pair]:
    """Returns all pairs of responses in the order of `combinations`; of a tie (p = 1/2) `better` is the first.

    The share of i among i and j is the probability that i is the better of the two (Bradley-Terry, Plackett-Luce);
    ranks, labels and ratings give p = 1.
    """
    ranks, shares = ranks_of(preference), shares_of(preference)
    pairs = []
    for i, j in combinations(range(len(ranks or ())), 2):
        assert ranks is not None
        better, worse = (j, i) if ranks[j] < ranks[i] else (i, j)
        p = 0.5 if ranks[i] == ranks[j] else 1.0
        if shares is not None and p == 1.0:
            p = shares[better] / (shares[better] + shares[worse])
        pairs.append(Pair(better, worse, p))
    return pairs


def same_for_same(group: Group, scores: Sequence[float]) -> list[float]:
    """Scores of a model with the first one's for each response that stands in the group more than once.

    A packed or padded batch may give equal responses scores that differ in the last bit, which decides ties.
    """
    first: dict[tuple[int, ...], float] = {}
    return [first.setdefault(response.ids, score) for response, score in zip(group.responses, scores, strict=True)]


def prompt_digest(prompt: Prompt) -> str:
    """Returns 16 hex digits that name a prompt by its content; equal for equal prompts, whatever their ids."""
    content = repr((prompt.messages, prompt.text) if prompt.messages or prompt.text is not None else prompt.ids)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]


def response_id(response: Response) -> str:
    """Returns 12 hex digits that name a response by its content: its text, or its ids if it has none."""
    content = response.text or str(response.ids)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:12]

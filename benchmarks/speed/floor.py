"""The least arithmetic that a work takes, and so the least time at the machine's GEMM speed.

Counted are the products of matrices: the blocks, the vocabulary where a log-prob or a draw is wanted, and causal
attention. Each prompt is computed once however many answers it has, nothing is padded, nothing is computed twice; a
backward pass is two forward passes. Norms, softmax, the optimiser and all traffic of memory are free: a floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, and its floating-point operations a token (forward)."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    @staticmethod
    def of(config: dict[str, Any]) -> Shape:
        """From a `config.json`."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        return Shape(*(int(config[name]) for name in (*names, "intermediate_size", "vocab_size")))

    @property
    def trunk(self) -> float:
        width, keys = self.width, self.width * self.kv_heads // self.heads
        return 2.0 * self.layers * (2 * width * width + 2 * width * keys + 3 * width * self.inner)

    @property
    def head(self) -> float:
        return 2.0 * self.width * self.vocabulary

    @property
    def pair(self) -> float:
        """A query and a key that meet: one product for the weight, one for the value."""
        return 4.0 * self.layers * self.width


@dataclass(frozen=True)
class Tokens:
    """Means of one group: tokens of the tree, tokens with a log-prob, pairs that attention joins."""

    tree: float
    scored: float
    pairs: float

    def __mul__(self, groups: float) -> Tokens:
        return Tokens(self.tree * groups, self.scored * groups, self.pairs * groups)

    @staticmethod
    def of(groups: list[tuple[int, list[int]]]) -> Tokens:
        """From (tokens of the prompt, tokens of each answer) of every group."""
        tree = mean(p + sum(answers) for p, answers in groups)
        pairs = mean(p * (p + 1) / 2 + sum(a * p + a * (a + 1) / 2 for a in answers) for p, answers in groups)
        return Tokens(tree, mean(sum(answers) for _, answers in groups), pairs)


def forward(shape: Shape, tokens: Tokens, head: bool = True) -> float:
    """Operations of one forward pass; `head`: with the log-probs of the answers."""
    return shape.trunk * tokens.tree + shape.pair * tokens.pairs + shape.head * tokens.scored * head


def flops(shape: Shape, tokens: Tokens, passes: dict[str, float]) -> float:
    """Operations of a step, from how often each kind of pass is made.

    Kinds: `logp` and `score` without gradient, `train` and `train_score` with. Sampling is one `logp`.
    """
    with_head = passes.get("logp", 0.0) + 3 * passes.get("train", 0.0)
    without = passes.get("score", 0.0) + 3 * passes.get("train_score", 0.0)
    return with_head * forward(shape, tokens) + without * forward(shape, tokens, head=False)

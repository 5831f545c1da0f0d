"""Peak memory of a training stage, estimated from the shapes of its models.

    trained whole, one micro-batch a pass    weights, two moments, and the larger of activations and gradients: the
                                             backward pass frees the ones while it makes the others
    trained whole, several micro-batches     weights, two moments, gradients and activations
    frozen                                   weights

Activations are those of one micro-batch: what autograd stores, with the share that an allocator adds. A fused block
stores x, q, k, v, the attention's result, mid, gate and up (`kernels.fused_block`); transformers' modules twice that.
A step that samples does so before it trains: its decoder's copy of the weights and its cache stand where activations
stand later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tiltyard.batch.logp import chunk_rows
from tiltyard.errors import ConfigError

AUTOCAST = 1.4  # the same under autocast: most of them in two bytes (1.37 to 1.40 counted, in four-byte numbers)
UNFUSED = 2.1  # numbers that transformers' modules store, in those of a fused block (21 d against 10 d a token)
ALLOCATOR = 1.2  # peak of the process in what is stored: pieces of unlike sizes leave holes


class Shape(NamedTuple):
    """Shape of a decoder: parameters of the whole, width, layers, vocabulary, width of the keys, inner width, width of
    the queries (0: the model's); whether the output head is the embedding."""

    parameters: int
    width: int
    layers: int
    vocab: int
    keys: int
    inner: int
    queries: int = 0
    tied: bool = True

    @property
    def stored(self) -> int:
        """Numbers that a fused block stores a token."""
        return 2 * self.width + 2 * (self.queries or self.width) + 2 * self.keys + 2 * self.inner

    @property
    def block(self) -> int:
        """Parameters of a block."""
        return 2 * self.width * ((self.queries or self.width) + self.keys) + (3 * self.inner + 2) * self.width

    @property
    def ends(self) -> int:
        """Parameters of embedding and output head."""
        return self.vocab * self.width * (1 if self.tied else 2)

    @classmethod
    def of(
        cls,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        inner: int,
        *,
        head_dim: int = 0,
        tied: bool = True,
    ) -> Shape:
        """The shape of a decoder of the Llama family; `head_dim` 0: width by heads."""
        size = head_dim or width // heads
        shape = cls(0, width, layers, vocab, kv_heads * size, inner, heads * size, tied)
        return shape._replace(parameters=shape.ends + layers * shape.block + width)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Shape:
        """The shape that a config.json describes.

        Raises:
            KeyError: it is of another family.
        """
        config = config.get("text_config") or config
        heads = config["num_attention_heads"]
        sizes = (config["vocab_size"], config["hidden_size"], config["num_hidden_layers"], heads)
        tied = config.get("tie_word_embeddings", str(config.get("model_type", "")).startswith("gemma"))
        keys, inner = config.get("num_key_value_heads") or heads, config["intermediate_size"]
        return cls.of(*sizes, keys, inner, head_dim=config.get("head_dim") or 0, tied=bool(tied))

    def scalar(self) -> Shape:
        """The shape of a reward or value model on the same blocks: an embedding, and one row in place of the head."""
        lost = 0 if self.tied else self.vocab * self.width
        return self._replace(parameters=self.parameters - lost, tied=True)


class Memory(NamedTuple):
    """Bytes at the peak, over what the libraries take: `cache` while responses are sampled, `activations` and `logits`
    while the model is trained, the others always."""

    weights: float
    activations: float
    logits: float
    cache: float
    kept: float = 0.0

    @property
    def total(self) -> float:
        """The peak of both."""
        return self.weights + self.kept + max(self.activations + self.logits, self.cache)


def activations(shape: Shape, tokens: int, number: int, *, fused: bool, recomputed: bool, half: bool = False) -> float:
    """Returns the bytes that a forward pass of `tokens` stores.

    Args:
        number: bytes of one number. half: modules under autocast to bfloat16.
    """
    unfused = AUTOCAST if half else UNFUSED
    block = shape.stored * (1.0 if fused else unfused)
    a_token = shape.layers * shape.width + shape.stored * unfused if recomputed else shape.layers * block
    return tokens * a_token * number * ALLOCATOR


def cached(shape: Shape, tokens: int, number: int) -> float:
    """Returns the bytes of keys and values of `tokens`."""
    return number * 2.0 * tokens * shape.keys * shape.layers


def logits(shape: Shape, number: int, *, whole: bool, device: str = "cpu") -> float:
    """Returns the bytes of a chunk of logits with its gradient; of the head's gradient too where that is trained."""
    chunk = 3 * chunk_rows(shape.vocab, device) * shape.vocab
    return number * (chunk + shape.vocab * shape.width * whole)


def check_room(memory: Memory, free: int, where: str, *, exact: bool) -> list[str]:
    """Refuses a stage whose weights alone are more than the free memory; a line where the estimate of all is more.

    Args:
        free: bytes. exact: False where the weights are smaller in memory than the plan has them (4 bits).

    Raises:
        ConfigError: with both numbers.
    """
    room, total = f"{free / 2**20:,.0f} MiB are free", f"{memory.total / 2**20:,.0f} MiB"
    less = "set lora (no gradients and moments of the backbone) or take a smaller model"
    if exact and memory.weights > free:
        raise ConfigError(
            "there is too little memory for the models of this stage",
            where=where,
            got=room,
            expected=f"{memory.weights / 2**20:,.0f} MiB for weights, gradients and moments, about {total} in all",
            fix=f"{less}; or end other programs; docs/scale.md: more processes",
        )
    if memory.total <= free:
        return []
    return [f"memory: about {total} are needed and {room}: lower tokens_per_microbatch, {less}"]

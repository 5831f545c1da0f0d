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

from typing import NamedTuple

from tiltyard.batch.logp import chunk_rows
from tiltyard.errors import ConfigError

UNFUSED = 2.1  # numbers that transformers' modules store, in those of a fused block (21 d against 10 d a token)
ALLOCATOR = 1.2  # peak of the process in what is stored: pieces of unlike sizes leave holes


class Shape(NamedTuple):
    """Shape of a decoder: parameters of the whole, width, layers, vocabulary, width of the keys, inner width."""

    parameters: int
    width: int
    layers: int
    vocab: int
    keys: int
    inner: int

    @property
    def stored(self) -> int:
        """Numbers that a fused block stores a token."""
        return 4 * self.width + 2 * self.keys + 2 * self.inner

    @classmethod
    def of(cls, vocab: int, width: int, layers: int, heads: int, kv_heads: int, inner: int) -> Shape:
        """The shape of a decoder of the Llama family with tied embeddings."""
        keys = width * kv_heads // heads
        block = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
        return cls(vocab * width + layers * block + width, width, layers, vocab, keys, inner)


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


def activations(shape: Shape, tokens: int, number: int, *, fused: bool, recomputed: bool) -> float:
    """Returns the bytes that a forward pass of `tokens` stores; `number`: bytes of one number."""
    block = shape.stored * (1.0 if fused else UNFUSED)
    a_token = shape.layers * shape.width + shape.stored * UNFUSED if recomputed else shape.layers * block
    return tokens * a_token * number * ALLOCATOR


def trained_weights(shape: Shape, number: int, stored: float, whole: int, *, several: bool) -> float:
    """Returns the bytes of `whole` models trained whole with their moments and gradients.

    Args:
        stored: bytes of the activations. several: a pass has more than one micro-batch, so that gradients wait.
    """
    bytes_each = number * shape.parameters
    gradients = bytes_each if several else max(0.0, bytes_each - stored)
    return whole * (3 * bytes_each + gradients)


def decoding(shape: Shape, tokens: int, number: int) -> float:
    """Returns the bytes of the decoder's copy of the weights, and of keys and values of `tokens`."""
    return number * (shape.parameters + 2 * tokens * shape.keys * shape.layers)


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
            fix=f"{less}; or end other programs",
        )
    if memory.total <= free:
        return []
    return [f"memory: about {total} are needed and {room}: lower tokens_per_microbatch, {less}"]

"""The interface of the compiled kernels: their structures and signatures as ctypes sees them.

`library.load` compares each structure's size with the one that the compiler gave it and declares each function's
arguments, so that a call with the wrong ones is an error and not a crash.
"""

from __future__ import annotations

import ctypes

POINTER, LONG, FLOAT, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int


class Linear(ctypes.Structure):
    """decode.c: a linear layer, its weight in panels (`native_decoder.panels`)."""

    _fields_ = (("weight", POINTER), ("bias", POINTER), ("in", LONG), ("out", LONG))


class Layer(ctypes.Structure):
    """decode.c: one block of a decoder, and the keys and values that its cache holds."""

    _fields_ = (
        *((name, POINTER) for name in ("norm_in", "norm_mid", "q_norm", "k_norm")),
        *((name, Linear) for name in ("qkv", "o", "gate_up", "down")),
        *((name, POINTER) for name in ("keys", "values")),
        ("window", LONG),
        ("scaling", FLOAT),
    )


class Model(ctypes.Structure):
    """decode.c: a decoder."""

    _fields_ = (
        *((name, POINTER) for name in ("layers", "last_norm", "cosines", "sines")),
        *((name, LONG) for name in ("depth", "d", "heads", "kv_heads", "width")),
        ("eps", FLOAT),
    )


class Forest(ctypes.Structure):
    """tree_attention.c: packed trees and the shape of their attention."""

    _fields_ = (
        *((name, POINTER) for name in ("trees", "segments")),
        *((name, LONG) for name in ("count", "heads", "kv_heads", "width")),
        ("scaling", FLOAT),
    )


class Gradients(ctypes.Structure):
    """tree_attention.c: the arrays of the backward pass."""

    _fields_ = tuple((name, POINTER) for name in ("dq", "dk", "dv", "dout", "out", "lse", "q", "k", "v"))


STRUCTURES: tuple[type[ctypes.Structure], ...] = (Linear, Layer, Model, Forest, Gradients)

# Arguments before the number of threads, which is the last of each. ALLOCATES: these return 1 if memory ran out.
SIGNATURES: dict[str, list[type]] = {
    "decode_step": [POINTER] * 5 + [LONG] * 3,
    "sample_tokens": [POINTER] * 4 + [FLOAT, LONG, LONG],
    "tree_attention_forward": [POINTER] * 6,
    "tree_attention_backward": [POINTER] * 2,
    "rms_norm": [POINTER] * 3 + [LONG, LONG, FLOAT],
    "rms_norm_backward": [POINTER] * 5 + [LONG, LONG, FLOAT],
    "apply_rope": [POINTER] * 3 + [LONG, LONG, LONG, INT],
    "swiglu": [POINTER] * 3 + [LONG],
    "swiglu_backward": [POINTER] * 6 + [LONG],
    "log_softmax_nll": [POINTER] * 5 + [LONG, LONG],
    "log_softmax_nll_backward": [POINTER] * 6 + [LONG, LONG],
    "kl_and_entropy": [POINTER] * 4 + [LONG] * 3,
    "weight_grad": [POINTER] * 3 + [LONG] * 3,
}
ALLOCATES = (
    "decode_step",
    "sample_tokens",
    "tree_attention_forward",
    "tree_attention_backward",
    "rms_norm_backward",
    "weight_grad",
)

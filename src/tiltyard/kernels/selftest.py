"""Compares the C kernels with torch on a small batch, forward and backward, when a model is loaded.

Log-softmax, KL, sampling, attention over trees, a weight's gradient, and for supported families the model's first block
and its last norm with their gradients, against transformers' own modules. Once a process and class of models: some
milliseconds for a small one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tiltyard.kernels import family, fused_block, fused_ops, tree_attention
from tiltyard.kernels.base import Backend
from tiltyard.kernels.tree_attention import Segments

TOLERANCE = 1e-3  # of the largest number: a wrong kernel is off by its whole size
# a prompt of 5 tokens with branches of 4 and 3, and a tree of 6 tokens without branches: (first token, tokens, prompt)
SPANS = ((0, 5, 0), (5, 4, 1), (9, 3, 1), (12, 6, 2))
TOKENS = 18
Pair = tuple[str, Sequence[Tensor], Sequence[Tensor]]  # name, by the kernels, by torch
_results: dict[str, str] = {}


def disagreement(module: Any) -> str:
    """Returns which kernel disagrees with torch on this class of models, and by how much; empty if all agree."""
    key = _class_of(module)
    if key not in _results:
        with torch.enable_grad():
            try:
                _results[key] = next(filter(None, (_compare(*pair) for pair in _pairs(module))), "")
            except (RuntimeError, TypeError, ValueError, AttributeError) as error:
                _results[key] = f"the self-test failed ({type(error).__name__}: {str(error)[:120]})"
    return _results[key]


def _class_of(module: Any) -> str:
    config = {k: v for k, v in module.config.to_dict().items() if k not in ("_name_or_path", "architectures")}
    text = json.dumps(config, sort_keys=True, default=str)
    return f"{type(module.base_model).__qualname__} {family.is_supported(module.base_model)} {text}"


def _compare(name: str, native: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    largest = max(float(x.detach().abs().max()) for x in expected)
    for mine, other in zip(native, expected, strict=True):
        scale = max(float(other.detach().abs().max()), 1e-2 * largest, 1e-6)
        gap = float((mine.detach().double() - other.detach().double()).abs().max()) / scale
        if not gap < TOLERANCE:
            return f"{name} by {gap:.2g} of its scale"
    return ""


def _pairs(module: Any) -> Iterator[Pair]:
    config = module.config.get_text_config()
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    yield from _log_softmax(random, min(config.vocab_size, 4096))
    dout, x = random(70, 40), random(70, 33)
    yield "weight gradient", [fused_ops.weight_grad_(torch.zeros(40, 33), dout, x)], [dout.double().t() @ x.double()]
    heads = getattr(config, "num_attention_heads", None)
    if isinstance(heads, int):
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        if width <= tree_attention.MAX_HEAD_DIM and heads % kv_heads == 0:
            yield _attention(random, heads, kv_heads, width)
    backbone = module.base_model
    if family.is_supported(backbone):
        attention = backbone.layers[0].self_attn
        if not family.window_of(attention) and attention.head_dim <= tree_attention.MAX_HEAD_DIM:
            yield from _block(random, backbone)


def _log_softmax(random: Any, vocabulary: int) -> Iterator[Pair]:
    z, target = random(5, vocabulary) * 3, torch.arange(5) % vocabulary
    dlogp, dentropy = random(5), random(5)
    z64 = z.double().requires_grad_()
    log_probs = z64.log_softmax(-1)
    logp, entropy = log_probs.gather(-1, target[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)
    (dz,) = torch.autograd.grad((dlogp * logp).sum() + (dentropy * entropy).sum(), z64)
    native = fused_ops.log_softmax_nll(z, target, entropy=True)
    yield "log-softmax", [native[0], native[2]], [logp, entropy]  # type: ignore[list-item]
    native_dz = fused_ops.log_softmax_nll_backward_(z.clone(), target, native[1], native[2], dlogp, dentropy)
    yield "the gradient of log-softmax", [native_dz], [dz]
    p, q = log_probs.detach(), random(5, vocabulary).double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    yield "KL and entropy", fused_ops.kl_and_entropy(p.float(), q.float()), [entropy, kl]
    uniform = torch.linspace(0.05, 0.95, 5)
    tokens, logps = fused_ops.sample_tokens(z, 1.0, uniform)
    chosen, cdf = (x.gather(-1, tokens[:, None])[:, 0] for x in (p, p.exp().cumsum(-1)))
    yield "the log-probs of sampled tokens", [logps], [chosen]
    yield "sampling", [uniform.clamp(cdf - chosen.exp(), cdf)], [uniform]


def _visible() -> Tensor:
    """[TOKENS, TOKENS] True where a query attends to a key."""
    visible = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for start, length, kind in SPANS:
        visible[start : start + length, start : start + length] = torch.ones(length, length).tril() > 0
        if kind == 1:
            visible[start : start + length, :5] = True
    return visible


def _segments() -> Segments:
    return Segments(torch.tensor([0, 3, 4]), torch.tensor([span[:2] for span in SPANS]))


def _attention(random: Any, heads: int, kv_heads: int, width: int) -> Pair:
    q, k, v = (random(TOKENS, n, width).requires_grad_() for n in (heads, kv_heads, kv_heads))
    dout = random(TOKENS, heads, width)
    out = tree_attention.attention(q, k, v, _segments(), width**-0.5)
    native = [out, *torch.autograd.grad(out, (q, k, v), dout)]
    keys, values = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, keys) * width**-0.5
    weights = scores.masked_fill(~_visible(), -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, values)
    return "attention", native, [expected, *torch.autograd.grad(expected, (q, k, v), dout)]


def _block(random: Any, backbone: Any) -> Iterator[Pair]:
    """The first block and the last norm, with the gradients of their input and of all their weights."""
    block, norm = backbone.layers[0], backbone.norm
    start = {0: 0, 1: 5, 2: 0}
    position = torch.cat([torch.arange(length) + start[kind] for _, length, kind in SPANS])
    x = random(TOKENS, backbone.config.hidden_size).requires_grad_()
    dout = random(*x.shape)
    cos, sin = backbone.rotary_emb(x[None], position[None])
    parameters = {name: p.detach().requires_grad_() for name, p in block.named_parameters()}
    mask = torch.zeros(TOKENS, TOKENS).masked_fill(~_visible(), -torch.inf)[None, None]
    with _Plain(block):
        arguments = {"attention_mask": mask, "position_ids": position[None], "position_embeddings": (cos, sin)}
        result = torch.func.functional_call(block, parameters, (x[None],), arguments)
        out = (result[0] if isinstance(result, tuple) else result).reshape(x.shape)
        expected = [out, *torch.autograd.grad(out, [x, *parameters.values()], dout)]
    by_tensor = {id(p): parameters[name] for name, p in block.named_parameters()}
    weights = {name: None if w is None else by_tensor[id(w)] for name, w in fused_block.weights_of(block).items()}
    backend = Backend("cpu_c", "mkl")
    constants = fused_block.constants_of(block, cos[0].contiguous(), sin[0].contiguous(), _segments(), backend)
    out = fused_block.apply_block(x, constants, weights)
    native = [out, *torch.autograd.grad(out, [x, *parameters.values()], dout)]
    yield "a block", native[:1], expected[:1]
    yield "the gradients of a block", native[1:], expected[1:]
    weight = norm.weight.detach().requires_grad_()
    out = torch.func.functional_call(norm, {"weight": weight}, (x,))
    mine = fused_block.apply_norm(x, weight, norm.variance_epsilon)
    both = [[y, *torch.autograd.grad(y, (x, weight), dout)] for y in (mine, out)]
    yield "the last norm", both[0], both[1]


class _Plain:
    """Inside it a block is in evaluation mode with torch's own attention."""

    def __init__(self, block: Any):
        self.parts, self.config = list(block.modules()), block.self_attn.config

    def __enter__(self) -> None:
        self.training = [part.training for part in self.parts]
        self.attention = self.config._attn_implementation
        self.config._attn_implementation = "sdpa"
        for part in self.parts:
            part.training = False

    def __exit__(self, *error: object) -> None:
        self.config._attn_implementation = self.attention
        for part, training in zip(self.parts, self.training, strict=True):
            part.training = training

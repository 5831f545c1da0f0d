"""The resolved plan of a training stage: what will be in memory, what a step is, what it will roughly need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tiltyard.errors import TiltyardError
from tiltyard.methods.base import Method
from tiltyard.models.load import PRESETS
from tiltyard.stages.backend import planned
from tiltyard.stages.base import StageContext
from tiltyard.stages.methods import compose
from tiltyard.stages.online import who_scores


def plan_lines(method: Method, context: StageContext, settings: Any) -> list[str]:
    """Lines of the plan; facts that an earlier stage has yet to make are said to be unknown, never guessed."""
    if method.online:
        who_scores(context.name, settings)
    width = {"float64": 8}.get(settings.dtype, 4)
    shape = _shape(method, context, settings)
    answers = settings.samples_per_prompt if method.online else None
    longest = (
        settings.max_prompt + settings.samples_per_prompt * settings.max_tokens
        if method.online
        else settings.max_length
    )
    packed = "packed (prompt once a group, no padding)"
    if "encoder" in method.trains:
        packed = "(and the padding of texts of like length: an encoder is not packed)"
    held = _held(method, settings)
    budget = getattr(settings, "tokens_per_step", 0)
    most = max(budget, longest) if budget else settings.prompts_per_step * longest
    size = f"{settings.prompts_per_step}" + (f" prompts x {answers} answers" if answers else "")
    lines = [
        "groups a step: " + (f"as many as have {budget:,} tokens together" if budget else size),
        f"tokens a step: at most {most:,} {packed}",
        f"micro-batch: at most {settings.tokens_per_microbatch:,} tokens, so about "
        f"{max(1, -(-most // settings.tokens_per_microbatch))} a pass at full length",
        "steps: " + (f"{settings.steps:,}" if settings.steps else f"{settings.epochs:g} epoch(s) of the data"),
        f"models in memory: {held.words}",
        f"backend: {planned(context, settings, new_arch(method, settings)).describe()}",
    ]
    if method.online:
        passes = settings.ppo_epochs * settings.minibatches if hasattr(settings, "ppo_epochs") else 1
        lines.append(f"optimiser steps a step: {passes}")
    if shape is None:
        return [*lines, "peak memory: unknown until the model it starts from exists"]
    parameters, hidden, layers, vocab = shape
    rank = settings.lora.rank if settings.lora is not None else 0
    adapters = rank * layers * 20 * hidden  # about: both sides of a Llama block's seven matrices
    # weights, gradients and two moments of what is trained; weights of what is frozen
    weights = width * (parameters * (4 * held.whole + held.frozen) + 4 * adapters * held.adapters)
    tokens = min(settings.tokens_per_microbatch, most)
    activations = tokens * hidden * layers * width * (4 if settings.gradient_checkpointing else 34)
    logits = max(1 << 22, vocab) * width * 3
    cache = 0
    if method.online:
        rows = min(settings.max_concurrent, settings.prompts_per_step * settings.samples_per_prompt)
        cache = 2 * rows * (settings.max_prompt + settings.max_tokens) * hidden * layers * width
    total = weights + activations * held.passes + logits + cache
    return [
        *lines,
        f"parameters: {parameters / 1e6:.2f}M each",
        f"estimated peak memory: {total / 2**20:,.0f} MiB over the libraries' own "
        f"(weights and optimiser {weights / 2**20:,.0f}, activations {activations * held.passes / 2**20:,.0f}, "
        f"chunked logits {logits / 2**20:,.0f}" + (f", decoding cache {cache / 2**20:,.0f})" if cache else ")"),
    ]


def new_arch(method: Method, settings: Any) -> Any:
    """The architecture of a model that the stage makes from scratch, or None."""
    return settings.arch if method.family == "pretrain" and not settings.model else None


class _Held(NamedTuple):
    """Models in memory: in words, how many are trained whole, stand frozen, are adapters; passes with activations."""

    words: str
    whole: int
    frozen: int
    adapters: int
    passes: int


def _held(method: Method, settings: Any) -> _Held:
    on_disk = method.cached if getattr(settings, "ref_cache", False) else ()
    frozen = [name for name in method.frozen if name not in (*on_disk, *_left_out(method, settings))]
    shared = getattr(settings, "value_init", "") == "shared"
    trained = ["policy with the value head on its backbone"] if shared else list(method.trains)
    if settings.lora is None:
        words = f"{', '.join(trained)} (trained)" + (f", {', '.join(frozen)} (frozen)" if frozen else "")
        return _Held(words, len(trained), len(frozen), 0, len(trained))
    words = f"one frozen backbone with adapters of rank {settings.lora.rank}: {', '.join(trained)} (trained)"
    if "ref" in frozen and not getattr(settings, "ref", ""):
        words += ", ref (adapters off, or a second adapter where it is renewed)"
        frozen.remove("ref")
    if frozen:
        words += f"; {', '.join(frozen)} (frozen; on the same backbone if trained there with lora)"
    return _Held(words, 0, 1 + len(frozen), len(trained), len(trained))


def _left_out(method: Method, settings: Any) -> tuple[str, ...]:
    """Models that the method has by default and these settings do without."""
    if getattr(settings, "show_kl", True) or compose(method, dict(settings)).reads_ref:
        return ()
    return method.optional


def _shape(method: Method, context: StageContext, settings: Any) -> tuple[int, int, int, int] | None:
    """(parameters, width, layers, vocabulary) of the model, from its preset or its config.json."""
    if method.family == "pretrain" and not settings.model:
        if settings.arch.preset not in PRESETS:
            return None
        hidden, layers, heads, kv_heads, inner = PRESETS[settings.arch.preset]
        return _count(settings.arch.vocab, hidden, layers, heads, kv_heads, inner)
    try:
        config = json.loads((Path(context.resolve(settings.model, want="model")) / "config.json").read_text())
        heads = config["num_attention_heads"]
        shape = (config["vocab_size"], config["hidden_size"], config["num_hidden_layers"], heads)
        return _count(*shape, config.get("num_key_value_heads") or heads, config["intermediate_size"])
    except (OSError, KeyError, ValueError, TiltyardError):
        return None


def _count(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, inner: int) -> tuple[int, int, int, int]:
    attention = 2 * hidden * hidden + 2 * hidden * hidden * kv_heads // heads
    return vocab * hidden + layers * (attention + 3 * hidden * inner + 2 * hidden) + hidden, hidden, layers, vocab

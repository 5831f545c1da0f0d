"""The resolved plan of a training stage: what will be in memory, what a step is, what it will roughly need."""

from __future__ import annotations

from typing import NamedTuple

from tiltyard.errors import TiltyardError
from tiltyard.inputs.contexts import check_contexts, config_of
from tiltyard.inputs.roles import Encoder
from tiltyard.inputs.scores import check_score_settings
from tiltyard.inputs.settings import (
    CachedRefModels,
    OptionalRefModels,
    RefModels,
    StageSettings,
    ValueModels,
)
from tiltyard.methods.base import Method
from tiltyard.models.load import PRESETS
from tiltyard.models.pretrained import pick_device
from tiltyard.records import flattened
from tiltyard.sampling.hidden import HiddenPlan, free_memory, hidden_state_bytes, plan_hidden
from tiltyard.stages.backend import new_arch, planned
from tiltyard.stages.base import StageContext
from tiltyard.stages.memory import Memory, Shape, activations, check_room, logits, trained_weights
from tiltyard.stages.methods import compose
from tiltyard.training.source import Online


def plan_lines(method: Method, context: StageContext, settings: StageSettings) -> list[str]:
    """Lines of the plan; facts that an earlier stage has yet to produce are unknown, and never guessed."""
    check_score_settings(context.name, settings)
    width = {"float64": 8}.get(settings.models.dtype, 4)
    shape = _shape(context, settings)
    packed = "packed (prompt once a group, no padding)"
    if isinstance(method.start, Encoder):
        packed = "(and the padding of texts of like length: an encoder is not packed)"
    held, size, micro = _held(method, settings), method.source.step_size(settings), settings.run.tokens_per_microbatch
    algorithm = compose(method, _dotted(settings))
    contexts = [f"context: {line}" for line in check_contexts(context, settings)]
    lines = [
        f"groups a step: {size.text}",
        f"tokens a step: at most {size.tokens:,} {packed}",
        f"micro-batch: at most {micro:,} tokens, so about {max(1, -(-size.tokens // micro))} a pass at full length",
        "steps: " + (f"{settings.steps:,}" if settings.steps else f"as many as {_epochs(settings)} take"),
        f"models in memory: {held.words}",
        f"backend: {planned(context, settings).describe()}",
        *contexts,
    ]
    if size.decoded:
        lines.append(f"optimiser steps a step: {algorithm.epochs * algorithm.minibatches}")
    if shape is None:
        return [*lines, "peak memory: unknown until the model it starts from exists"]
    rank = settings.models.lora.rank if settings.models.lora is not None else 0
    adapters = rank * shape.layers * 20 * shape.width  # about: both sides of a Llama block's seven matrices
    engine = planned(context, settings)
    stored = held.passes * activations(
        shape,
        min(micro, size.tokens),
        width,
        fused=engine.ops == "cpu_c" and engine.decoder != "modules" and not isinstance(method.start, Encoder),
        recomputed=settings.models.gradient_checkpointing,
    )
    several = size.tokens > micro or held.passes > 1
    weights = trained_weights(shape, width, stored, held.whole, several=several)
    weights += width * (shape.parameters * held.frozen + 4 * adapters * held.adapters)
    kept = _kept_states(algorithm.source, settings, shape.width)
    memory = Memory(
        weights,
        stored,
        logits(shape, width, whole=held.whole > 0),
        2 * size.decoded * shape.width * shape.layers * width,
        kept.bytes if kept and kept.keep else 0,
    )
    free = free_memory(pick_device(settings.models.device))
    room = check_room(memory, free, f"{context.name}.model", exact=settings.models.quantize == "none")
    return [
        *lines,
        *([f"the sampler's hidden states: {kept}"] if kept else []),
        f"parameters: {shape.parameters / 1e6:.2f}M each",
        f"estimated peak memory: {memory.total / 2**20:,.0f} MiB over the libraries' own "
        f"(weights and optimiser {memory.weights / 2**20:,.0f}, activations {memory.activations / 2**20:,.0f}, "
        f"chunked logits {memory.logits / 2**20:,.0f}"
        + (f", decoding cache {memory.cache / 2**20:,.0f})" if memory.cache else ")"),
        *room,
    ]


def _kept_states(source: object, settings: StageSettings, width: int) -> HiddenPlan | None:
    """The plan of the hidden states that a sampler keeps; None for sources that keep none."""
    if not isinstance(source, Online):
        return None
    size = hidden_state_bytes(source.responses_per_step, source.settings.max_tokens, width, settings.models.dtype)
    return plan_hidden(source.sampler.capabilities, size, free_memory(pick_device(settings.models.device)))


def _epochs(settings: StageSettings) -> str:
    return f"{settings.epochs:g} epoch{'' if settings.epochs == 1 else 's'} of the data"


class _Held(NamedTuple):
    """Models in memory: in words, how many are trained whole, stand frozen, are adapters; passes with activations."""

    words: str
    whole: int
    frozen: int
    adapters: int
    passes: int


def _held(method: Method, settings: StageSettings) -> _Held:
    chosen = settings.models
    on_disk = method.cached if isinstance(chosen, CachedRefModels) and chosen.ref_cache else ()
    frozen = [name for name in method.frozen if name not in (*on_disk, *_left_out(method, settings))]
    shared = isinstance(chosen, ValueModels) and chosen.value_init == "shared"
    trained = ["policy with the value head on its backbone"] if shared else list(method.trains)
    if chosen.lora is None:
        words = f"{', '.join(trained)} (trained)" + (f", {', '.join(frozen)} (frozen)" if frozen else "")
        return _Held(words, len(trained), len(frozen), 0, len(trained))
    words = f"one frozen backbone with adapters of rank {chosen.lora.rank}: {', '.join(trained)} (trained)"
    if "ref" in frozen and not (isinstance(chosen, RefModels) and chosen.ref):
        words += ", ref (adapters off, or a second adapter where it is renewed)"
        frozen.remove("ref")
    if frozen:
        words += f"; {', '.join(frozen)} (frozen; on the same backbone if trained there with lora)"
    return _Held(words, 0, 1 + len(frozen), len(trained), len(trained))


def _left_out(method: Method, settings: StageSettings) -> tuple[str, ...]:
    """Models that the method has by default and these settings do without."""
    chosen = settings.models
    if not isinstance(chosen, OptionalRefModels) or chosen.show_kl:
        return ()
    return () if compose(method, _dotted(settings)).reads_ref else method.optional


def _dotted(settings: StageSettings) -> dict[str, object]:
    """The settings by dotted key, values of records taken apart, all others as they are."""
    return {**dict(settings), **flattened({key: dict(getattr(settings, key)) for key in _records(settings)})}


def _records(settings: StageSettings) -> list[str]:
    from tiltyard.records import records_of

    return list(records_of(type(settings)))


def _shape(context: StageContext, settings: StageSettings) -> Shape | None:
    """The shape of the model, from its preset or its config.json."""
    arch = new_arch(settings)
    if arch is not None:
        return Shape.of(arch.vocab, *PRESETS[arch.preset]) if arch.preset in PRESETS else None
    try:
        config = config_of(context, settings.model)
        heads = config["num_attention_heads"]
        sizes = (config["vocab_size"], config["hidden_size"], config["num_hidden_layers"], heads)
        return Shape.of(*sizes, config.get("num_key_value_heads") or heads, config["intermediate_size"])
    except (OSError, KeyError, ValueError, TiltyardError):
        return None

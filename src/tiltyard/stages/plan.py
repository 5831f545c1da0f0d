"""The resolved plan of a training stage: what will be in memory, what a step is, what it will roughly need."""

from __future__ import annotations

from typing import NamedTuple

from tiltyard.errors import TiltyardError
from tiltyard.feedback.settings import ModelJudgeSettings
from tiltyard.inputs.base import StepSize
from tiltyard.inputs.contexts import check_contexts, config_of
from tiltyard.inputs.roles import Encoder
from tiltyard.inputs.scores import POLICY, ScoreSettings, check_score_settings
from tiltyard.inputs.settings import (
    CachedRefModels,
    OptionalRefModels,
    PromptSettings,
    RefModels,
    StageSettings,
    ValueModels,
)
from tiltyard.methods.base import Method
from tiltyard.models.load import PRESETS
from tiltyard.models.pretrained import pick_device
from tiltyard.records import flattened
from tiltyard.sampling.hidden import HiddenPlan, free_memory, hidden_state_bytes, plan_hidden
from tiltyard.scoring import is_function
from tiltyard.stages.backend import new_arch, planned
from tiltyard.stages.base import StageContext
from tiltyard.stages.lengths import Lengths
from tiltyard.stages.memory import Memory, Shape, activations, check_room, decoding, logits, trained_weights
from tiltyard.stages.methods import compose
from tiltyard.training.source import Online


def plan_lines(
    method: Method, context: StageContext, settings: StageSettings, lengths: Lengths | None = None
) -> list[str]:
    """Lines of the plan; facts that an earlier stage has yet to produce are unknown, and never guessed.

    Args:
        lengths: of the rows that a run reads, where they have been read; None: the longest that the settings allow.
    """
    check_score_settings(context.name, settings)
    shape = _shape(context, settings)
    packed = "packed (prompt once a group, no padding)"
    if isinstance(method.start, Encoder):
        packed = "(and the padding of texts of like length: an encoder is not packed)"
    held, size, micro = _held(method, settings), method.source.step_size(settings), settings.run.tokens_per_microbatch
    algorithm = compose(method, _dotted(settings))
    contexts = [f"context: {line}" for line in check_contexts(context, settings)]
    found = lengths or _at_full_length(size, micro)
    parts = f"at most {micro:,} tokens, so about {found.parts} a pass at full length"
    if lengths:
        parts = f"at most {found.microbatch:,} tokens (bound {micro:,}), {found.parts} a pass at most"
    lines = [
        f"groups a step: {size.text}",
        f"tokens a step: at most {found.step:,} {packed}",
        f"micro-batch: {parts}",
        *([] if lengths else [f"steps: {settings.steps:,}" if settings.steps else f"steps: {_epochs(settings)}"]),
        f"models in memory: {held.words}",
        f"backend: {planned(context, settings).describe()}",
        *contexts,
    ]
    if size.decoded:
        lines.append(f"optimiser steps a step: {algorithm.epochs * algorithm.minibatches}")
    if shape is None:
        return [*lines, "peak memory: unknown until the model it starts from exists"]
    kept = _kept_states(algorithm.source, settings, shape.width)
    decoded = _decoded(settings, size, found) if size.decoded else 0
    memory = _memory(method, context, settings, shape, found, decoded, kept)
    free = free_memory(pick_device(settings.models.device))
    room = check_room(memory, free, f"{context.name}.model", exact=settings.models.quantize == "none")
    return [
        *lines,
        *([f"the sampler's hidden states: {kept}"] if kept else []),
        f"parameters: {shape.parameters / 1e6:.2f}M each",
        f"estimated peak memory: {memory.total / 2**20:,.0f} MiB over the libraries' own "
        f"(weights and optimiser {memory.weights / 2**20:,.0f}, activations {memory.activations / 2**20:,.0f}, "
        f"chunked logits {memory.logits / 2**20:,.0f}"
        + (f", while sampling the decoder and its cache {memory.cache / 2**20:,.0f})" if memory.cache else ")"),
        *room,
    ]


def _memory(
    method: Method,
    context: StageContext,
    settings: StageSettings,
    shape: Shape,
    found: Lengths,
    decoded: int,
    kept: HiddenPlan | None,
) -> Memory:
    """Returns the estimate; `decoded`: tokens in the decoding cache, 0 where nothing is sampled."""
    held, width = _held(method, settings), {"float64": 8}.get(settings.models.dtype, 4)
    rank = settings.models.lora.rank if settings.models.lora is not None else 0
    adapters = rank * shape.layers * 20 * shape.width  # about: both sides of a Llama block's seven matrices
    engine = planned(context, settings)
    stored = held.passes * activations(
        shape,
        found.microbatch,
        width,
        fused=engine.ops == "cpu_c" and engine.decoder != "modules" and not isinstance(method.start, Encoder),
        recomputed=settings.models.gradient_checkpointing,
    )
    several = found.parts > 1 or held.passes > 1
    weights = trained_weights(shape, width, stored, held.whole, several=several)
    weights += width * (shape.parameters * held.frozen + 4 * adapters * held.adapters)
    return Memory(
        weights,
        stored,
        logits(shape, width, whole=held.whole > 0, device=pick_device(settings.models.device).type),
        decoding(shape, decoded, width) if decoded else 0.0,
        kept.bytes if kept and kept.keep else 0,
    )


def _at_full_length(size: StepSize, micro: int) -> Lengths:
    """The lengths of a step whose groups are as long as the settings allow; a group with more tokens is alone."""
    largest = min(size.tokens, max(micro, size.longest))
    return Lengths(size.tokens, largest, max(1, -(-size.tokens // micro)))


def _decoded(settings: StageSettings, size: StepSize, found: Lengths) -> int:
    """Tokens in the decoding cache at most: slots times the longest prompt and response."""
    if not (found.prompt and isinstance(settings, PromptSettings)):
        return size.decoded
    sampling = settings.sampling
    slots = min(sampling.max_concurrent, settings.prompts_per_step * sampling.samples_per_prompt)
    return slots * (found.prompt + sampling.max_tokens)


def _kept_states(source: object, settings: StageSettings, width: int) -> HiddenPlan | None:
    """The plan of the hidden states that a sampler keeps; None for sources that keep none."""
    if not isinstance(source, Online):
        return None
    size = hidden_state_bytes(source.responses_per_step, source.settings.max_tokens, width, settings.models.dtype)
    return plan_hidden(source.sampler.capabilities, size, free_memory(pick_device(settings.models.device)))


def _epochs(settings: StageSettings) -> str:
    return f"as many as {settings.epochs:g} epoch{'' if settings.epochs == 1 else 's'} of the data take"


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
    if "reward" in frozen:
        frozen[frozen.index("reward") :] = [*_scoring_models(settings), *frozen[frozen.index("reward") + 1 :]]
    shared = isinstance(chosen, ValueModels) and chosen.value_init == "shared"
    trained = ["policy with the value head on its backbone"] if shared else list(method.trains)
    if chosen.lora is None:
        words = f"{', '.join(trained)} (trained)" + (f", {', '.join(frozen)} (frozen)" if frozen else "")
        return _Held(words, len(trained), len(frozen), 0, len(trained))
    words = f"one frozen backbone with adapters of rank {chosen.lora.rank}: {', '.join(trained)} (trained)"
    if "ref" in frozen and not (isinstance(chosen, RefModels) and chosen.ref):
        words += ", ref (adapters off, or a second adapter where it is renewed)"
        frozen.remove("ref")
    if "proposal" in frozen:
        words += ", proposal (a second adapter)"
        frozen.remove("proposal")
    if frozen:
        words += f"; {', '.join(frozen)} (frozen; on the same backbone if trained there with lora)"
    return _Held(words, 0, 1 + len(frozen), len(trained), len(trained))


def _scoring_models(settings: StageSettings) -> list[str]:
    """The models in this process that score responses: functions, rules and services are none, nor is the policy."""
    if not isinstance(settings, ScoreSettings):
        return ["reward"]
    if settings.judge is not None:
        return ["judge"] if isinstance(settings.judge, ModelJudgeSettings) and settings.judge.model != POLICY else []
    parts = settings.parts().items()
    models = [name for name, one in parts if one.service is None and not is_function(one.source)]
    return ["reward"] if len(models) == 1 else [f"reward {name}" for name in models]


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

"""The resolved plan of a training stage: what will be in memory, what a step is, what it will roughly need."""

from __future__ import annotations

from tiltyard.distributed import processes
from tiltyard.errors import ConfigError, TiltyardError
from tiltyard.inputs.base import StepSize
from tiltyard.inputs.contexts import check_contexts, config_of
from tiltyard.inputs.roles import Encoder
from tiltyard.inputs.scores import check_score_settings
from tiltyard.inputs.settings import FileSettings, PromptSettings, StageSettings
from tiltyard.methods.base import Method
from tiltyard.models.load import PRESETS
from tiltyard.models.pretrained import pick_device
from tiltyard.sampling.hidden import HiddenPlan, free_memory, hidden_state_bytes, plan_hidden
from tiltyard.stages.backend import new_arch, planned
from tiltyard.stages.base import StageContext
from tiltyard.stages.footprint import Layout, Work, memory_of, table
from tiltyard.stages.held import dotted, held
from tiltyard.stages.lengths import Lengths
from tiltyard.stages.memory import Shape, check_room
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
    packed = "packed (prompt once a group, no padding)"
    if isinstance(method.start, Encoder):
        packed = "(and the padding of texts of like length: an encoder is not packed)"
    models, size, micro = held(method, settings), method.source.step_size(settings), settings.run.tokens_per_microbatch
    algorithm = compose(method, dotted(settings))
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
        f"models in memory: {models.words}",
        f"backend: {planned(context, settings).describe()}",
        *contexts,
        *_uneven(settings),
    ]
    if size.decoded:
        lines.append(f"optimiser steps a step: {algorithm.epochs * algorithm.minibatches}")
    shape = _shape(context, settings)
    if shape is None:
        return [*lines, "peak memory: unknown until the model it starts from exists"]
    kept = _kept_states(algorithm.source, settings, shape.width)
    work = work_of(method, context, settings, found, kept)
    layout = Layout(processes.world(), processes.world() > 1 and settings.models.shard)
    memory, device = memory_of(work, layout), pick_device(settings.models.device)
    rows = [f"memory: {row}" for row in table(work, _layouts(layout))] if context.dry_run else []
    own = size.decoded and not work.engine
    before = "while sampling the decoder and its cache" if own else "before the passes, whole models or gradients"
    free = free_memory(device) // (processes.local_world() if device.type == "cpu" else 1)
    try:
        room = check_room(memory, free, f"{context.name}.model", exact=settings.models.quantize == "none")
    except ConfigError:
        for row in rows:
            context.console.print(f"  {row}", markup=False, highlight=False, soft_wrap=True)
        raise
    return [
        *lines,
        *([f"the sampler's hidden states: {kept}"] if kept else []),
        f"parameters: {shape.parameters / 1e6:.2f}M each",
        f"estimated peak memory: {memory.total / 2**20:,.0f} MiB over the libraries' own "
        f"(weights and optimiser {memory.weights / 2**20:,.0f}, activations {memory.activations / 2**20:,.0f}, "
        f"chunked logits {memory.logits / 2**20:,.0f}"
        + (f", {before} {memory.cache / 2**20:,.0f})" if memory.cache else ")"),
        *rows,
        *room,
    ]


def work_of(
    method: Method,
    context: StageContext,
    settings: StageSettings,
    found: Lengths | None = None,
    kept: HiddenPlan | None = None,
    *,
    device: str = "",
) -> Work:
    """Returns the computation of a stage, from its settings and the config.json of its models.

    Args:
        found: lengths of the rows that a run reads; None: the longest that the settings allow. kept: the plan of the
            sampler's hidden states. device: `cpu` or `cuda` to plan for another machine; "": this one's.

    Raises:
        ConfigError: the model is not there, or of an unknown family.
    """
    shape, chosen, size = _shape(context, settings), settings.models, method.source.step_size(settings)
    if shape is None:
        raise ConfigError("the model's shape is unknown", where=f"{context.name}.model", got=settings.model)
    found = found or _at_full_length(size, settings.run.tokens_per_microbatch)
    models, backend = held(method, settings), planned(context, settings)
    fused = backend.ops == "cpu_c" and backend.decoder != "modules" and not isinstance(method.start, Encoder)
    backbone = shape.scalar() if method.start.name == "reward" else shape
    sampling = settings.sampling if size.decoded and isinstance(settings, PromptSettings) else None
    responses = settings.prompts_per_step * sampling.samples_per_prompt if sampling else 0
    slots = min(sampling.max_concurrent, responses) if sampling else 0
    length = found.prompt + sampling.max_tokens if sampling and found.prompt else size.decoded // max(1, slots)
    return Work(
        trained={role: shape.scalar() if role in ("value", "reward") else shape for role in models.trained},
        frozen={
            role: (_shape_of(context, source) or shape).scalar()
            if role.startswith("reward")
            else _shape_of(context, source) or shape
            for role, source in models.frozen.items()
        },
        tokens=found.microbatch,
        parts=found.parts,
        backbone=backbone if models.lora else None,
        number={"float64": 8}.get(chosen.dtype, 4),
        half=chosen.dtype == "bfloat16",
        fused=fused and device != "cuda",
        recomputed=chosen.gradient_checkpointing,
        device=device or pick_device(chosen.device).type,
        rank=chosen.lora.rank if chosen.lora is not None else 0,
        four_bits=chosen.quantize == "4bit",
        responses=responses,
        slots=slots,
        length=length,
        gathered=2 if chosen.shard_dtype == "bfloat16" else 0,
        prepares=bool(size.decoded or compose(method, dotted(settings)).prepare),
        states=kept.bytes if kept and kept.keep else 0,
        engine=_engine_number(settings, 4),
        ahead=getattr(settings, "max_staleness", 0),
    )


def _engine_number(settings: StageSettings, own: int) -> int:
    """Bytes of a weight of the vLLM engine that samples; 0 without one."""
    if not isinstance(settings, PromptSettings) or not (settings.vllm.python or settings.vllm.url):
        return 0
    return {"bfloat16": 2, "float16": 2}.get(settings.vllm.engine_dtype, own)


def _uneven(settings: StageSettings) -> list[str]:
    """A line where the processes have unlike numbers of groups, so that some wait at every step."""
    count, groups = processes.world(), settings.prompts_per_step
    by_tokens = isinstance(settings, FileSettings) and settings.tokens_per_step
    if count == 1 or by_tokens or groups % count == 0:
        return []
    most = count * -(-groups // count)
    words = f"{count} do not divide {groups}: a step takes as long as {most} groups"
    if groups < count:
        words = f"{count - groups} of {count} have no group and wait"
    return [f"groups over processes: {words} (prompts_per_step={most})"]


def _layouts(layout: Layout) -> list[Layout]:
    """The columns of the table: how the run is started, else one process and what more of them would hold."""
    others = [layout.processes] if layout.processes > 1 else [8, 64]
    return [Layout(layout.processes), *(Layout(number, True) for number in others)]


def _at_full_length(size: StepSize, micro: int) -> Lengths:
    """The lengths of a step whose groups are as long as the settings allow; a group with more tokens is alone."""
    largest = min(size.tokens, max(micro, size.longest))
    return Lengths(size.tokens, largest, max(1, -(-size.tokens // micro)))


def _kept_states(source: object, settings: StageSettings, width: int) -> HiddenPlan | None:
    """The plan of the hidden states that a sampler keeps; None for sources that keep none."""
    if not isinstance(source, Online) or _engine_number(settings, 4):
        return None
    size = hidden_state_bytes(source.responses_per_step, source.settings.max_tokens, width, settings.models.dtype)
    return plan_hidden(source.sampler.capabilities, size, free_memory(pick_device(settings.models.device)))


def _epochs(settings: StageSettings) -> str:
    return f"as many as {settings.epochs:g} epoch{'' if settings.epochs == 1 else 's'} of the data take"


def _shape(context: StageContext, settings: StageSettings) -> Shape | None:
    """The shape of the model, from its preset or its config.json."""
    arch = new_arch(settings)
    if arch is not None:
        return Shape.of(arch.vocab, *PRESETS[arch.preset]) if arch.preset in PRESETS else None
    return _shape_of(context, settings.model)


def _shape_of(context: StageContext, source: str) -> Shape | None:
    """The shape of a model that is there; None of one that is not yet, or of another family."""
    try:
        return Shape.read(config_of(context, source)) if source else None
    except (OSError, KeyError, ValueError, TiltyardError):
        return None

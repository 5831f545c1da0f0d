"""The settings that every training stage shares, declared once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tiltyard.config import Settings
from tiltyard.models.backbone import DType
from tiltyard.models.lora import Lora
from tiltyard.models.pretrained import Quantize
from tiltyard.types import MICRO_TOKENS


class TrainSettings(Settings):
    """Settings of every training stage. A method may have other defaults; `tiltyard show METHOD` prints them."""

    steps: Annotated[int, Field(ge=0, description="updates of the outer loop; 0 means: from epochs")] = 0
    epochs: Annotated[float, Field(gt=0, description="passes over the data, where steps is 0")] = 1.0
    prompts_per_step: Annotated[int, Field(gt=0, description="groups (prompts) a step, over all processes")] = 32
    lr: Annotated[float, Field(gt=0, description="peak learning rate of AdamW")] = 1e-4
    schedule: Annotated[Literal["constant", "linear", "cosine"], Field(description="after the warm-up")] = "cosine"
    final_lr: Annotated[float, Field(ge=0, le=1, description="the schedule ends at this share of lr")] = 0.1
    warmup: Annotated[float, Field(ge=0, description="steps of linear warm-up; below 1: share of all steps")] = 0.03
    weight_decay: Annotated[float, Field(ge=0, description="decoupled; not on norms and biases")] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1, description="AdamW")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="AdamW")] = 0.999
    eps: Annotated[float, Field(gt=0, description="AdamW")] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0, description="gradients are clipped to this norm")] = 1.0
    tokens_per_microbatch: Annotated[
        int, Field(gt=0, description="packed tokens a forward pass; bounds memory only")
    ] = MICRO_TOKENS
    dtype: Annotated[DType, Field(description="arithmetic; weights stay float32 under bfloat16")] = "float32"
    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:1")] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1, description="of every dropout layer; 0 is off")] = 0.0
    freeze_layers: Annotated[int, Field(ge=0, description="bottom blocks (and embeddings) kept as they are")] = 0
    lora: Annotated[
        Lora | None,
        Field(description="train adapters on a frozen backbone: `lora={}`, `lora.rank=8`; empty: all weights"),
    ] = None
    quantize: Annotated[
        Quantize,
        Field(description="4bit: the backbone under lora in 4 bits a weight (QLoRA); needs CUDA, bitsandbytes"),
    ] = "none"
    gradient_checkpointing: Annotated[bool, Field(description="recompute activations: less memory, more time")] = False
    save_every: Annotated[int, Field(ge=0, description="steps between checkpoints; 0: only at the end")] = 50
    eval_every: Annotated[int, Field(ge=0, description="steps between evaluations on held-out data; 0: at the end")] = 0
    sample_every: Annotated[int, Field(ge=0, description="steps between printed samples; 0: never")] = 0
    log_to: Annotated[
        list[Literal["tensorboard", "wandb"]], Field(description="besides metrics.jsonl", default_factory=list)
    ]
    seed: Annotated[int, Field(ge=0, description="of data order, new weights and sampling")] = 0

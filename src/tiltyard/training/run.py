"""`Run`: the settings of the training loop, which are also those that every training stage shares."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from tiltyard.config import explained
from tiltyard.models.backbone import DType
from tiltyard.models.lora import Lora
from tiltyard.models.pretrained import Quantize
from tiltyard.models.saving import SaveDType
from tiltyard.records import EXECUTION, LAST_BITS, Record, Settings, canonical
from tiltyard.types import MICRO_TOKENS


class Optimizer(Record):
    """AdamW and its schedule."""

    schedule: Annotated[Literal["constant", "linear", "cosine"], Field(description="after the warm-up")] = "cosine"
    final_lr: Annotated[float, Field(ge=0, le=1, description="the schedule ends at this share of lr")] = 0.1
    warmup: Annotated[float, Field(ge=0, description="steps of linear warm-up; below 1: share of all steps")] = 0.03
    weight_decay: Annotated[float, Field(ge=0, description="decoupled; not on norms and biases")] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1, description="AdamW")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="AdamW")] = 0.999
    eps: Annotated[float, Field(gt=0, description="AdamW")] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0, description="gradients are clipped to this norm")] = 1.0

    def lr_of(self, model: str, lr: float) -> float:  # noqa: ARG002 - see `ValueOptimizer`
        """The peak learning rate of a model, `lr` being that of the run."""
        return lr


class ValueOptimizer(Optimizer):
    """With a learning rate of its own for the value model."""

    value_lr: Annotated[float, Field(ge=0, description="learning rate of the value model; 0: the same as lr")] = 0.0

    def lr_of(self, model: str, lr: float) -> float:
        """The peak learning rate of a model, `lr` being that of the run."""
        return self.value_lr or lr if model == "value" else lr


class ModelSettings(Record):
    """Settings of loading models, and of which parameters are trained."""

    dtype: Annotated[DType, Field(description="arithmetic; weights stay float32 under bfloat16")] = "float32"
    device: Annotated[str, Field(description="auto, cpu, cuda, cuda:1"), LAST_BITS] = "auto"
    dropout: Annotated[
        Annotated[float, Field(ge=0, lt=1)] | Literal["model"],
        Field(description="of every dropout layer; 0 is off; model: what the architecture says"),
    ] = 0.0
    freeze_layers: Annotated[int, Field(ge=0, description="bottom blocks (and embeddings) kept as they are")] = 0
    lora: Annotated[
        Lora | None,
        Field(description="train adapters on a frozen backbone: `lora={}`, `lora.rank=8`; empty: all weights"),
    ] = None
    quantize: Annotated[
        Quantize,
        Field(description="4bit: the backbone under lora in 4 bits a weight (QLoRA); needs CUDA, bitsandbytes"),
    ] = "none"
    gradient_checkpointing: Annotated[
        bool, Field(description="recompute activations: less memory, more time"), LAST_BITS
    ] = False
    shard: Annotated[
        bool,
        Field(description="under torchrun each process holds a part of the weights, gradients, moments (FSDP2)"),
        LAST_BITS,
    ] = False
    shard_dtype: Annotated[
        Literal["weights", "bfloat16"],
        Field(description="width that shard gathers parameters in; bfloat16: gradients are summed in float32"),
    ] = "weights"
    trust_remote_code: Annotated[bool, Field(description="run code that comes with a hub model"), EXECUTION] = False
    save_dtype: Annotated[
        SaveDType,
        Field(description="width of saved weights; source: as in the model's files. Checkpoints keep full precision"),
    ] = "source"


class Execution(Record):
    """Bounds on memory, and intervals of checkpoints and measurements."""

    tokens_per_microbatch: Annotated[
        int, Field(gt=0, description="packed tokens a forward pass; bounds memory only"), LAST_BITS
    ] = MICRO_TOKENS
    save_every: Annotated[int, Field(ge=0, description="steps between checkpoints; 0: only at the end"), EXECUTION] = 50
    eval_every: Annotated[
        int, Field(ge=0, description="steps between evaluations on held-out data; 0: at the end"), EXECUTION
    ] = 0
    sample_every: Annotated[int, Field(ge=0, description="steps between printed samples; 0: never"), EXECUTION] = 0
    models_every: Annotated[
        int,
        Field(ge=0, description="steps between policies that are kept in models/, for `gap along`; 0: the last alone"),
        EXECUTION,
    ] = 0
    log_to: Annotated[list[Literal["tensorboard", "wandb"]], Field(description="besides metrics.jsonl"), EXECUTION] = (
        Field(default_factory=list)
    )


class _FlatKeys(type(Settings)):  # type: ignore[misc]  # pydantic's own metaclass
    """In Python too keys of records go without the record's name, and what is wrong is explained as in a recipe.

    A validator of the model could do neither: pydantic would take what it returns for Python values, not for JSON.
    """

    def __call__(cls, **values: Any) -> Any:
        """The settings made of keyword arguments.

        Raises:
            ConfigError: an unknown key, a value that does not fit, or a key set twice.
        """
        nested, written = canonical(cls, values)
        try:
            return super().__call__(**nested)
        except ValidationError as error:
            raise explained(cls, error, cls.__name__, {}, written) from None


class Run(Settings, metaclass=_FlatKeys):
    """Settings of a training run: the record that `fit` takes and that the settings of a training stage extend.

    Keys of the records may be given by themselves: `Run(steps=100, lr=1e-4, warmup=0.1, save_every=20)`.
    """

    steps: Annotated[int, Field(ge=0, description="updates of the outer loop; 0 means: from epochs")] = 0
    lr: Annotated[float, Field(gt=0, description="peak learning rate of AdamW")] = 1e-4
    seed: Annotated[int, Field(ge=0, description="of data order, new weights and sampling")] = 0
    optimizer: Annotated[Optimizer, Field(description="AdamW and its schedule")] = Optimizer()
    models: Annotated[ModelSettings, Field(description="how models are loaded")] = ModelSettings()
    run: Annotated[Execution, Field(description="memory, checkpoints, logs")] = Execution()

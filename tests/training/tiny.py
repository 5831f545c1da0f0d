"""Tiny float64 Llamas, groups made of random ids, and sources that hand out what they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tiltyard.distributed import processes
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.sampling import SampleSettings
from tiltyard.training import fit as fitting
from tiltyard.training.algorithm import Algorithm, Models, StepGroups
from tiltyard.training.run import Optimizer, Run, ValueOptimizer
from tiltyard.types import Group, Preference, Prompt, Response

VOCAB, EOS = 17, 1


class Fixed(SimpleNamespace):
    """All tests share one chat: a test that needs another one makes it by `chat`."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"the chat of tiny models is shared by all tests: chat({name}=...) makes another")


# what the sampler, the scorers and the value head ask of a `Chat`
CHAT: Any = Fixed(
    stop_ids=frozenset({EOS}),
    eos_id=EOS,
    pad_id=0,
    max_length=64,
    decode=lambda ids: " ".join(map(str, ids)),
    encode_group=lambda group: replace(group, responses=(Response(ids=(EOS,)),)),
    tokenizer=SimpleNamespace(name_or_path="tiny", chat_template=None, save_pretrained=lambda folder: None),
)


def chat(**changes: Any) -> Any:
    """The chat of tiny models with changes."""
    return Fixed(**{**vars(CHAT), **changes})


def config(**shape: Any) -> LlamaConfig:
    usual = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "num_labels": 1,
        "pad_token_id": None,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**(usual | shape))


def module(cls: type, seed: int = 0, **shape: Any) -> Any:
    torch.manual_seed(seed)
    return cls(config(**shape)).double().eval()


def policy(seed: int = 0, **shape: Any) -> LanguageModel:
    return LanguageModel(module(LlamaForCausalLM, seed, **shape), CHAT, "float64")


def scalar(seed: int = 0, **shape: Any) -> ScalarModel:
    return ScalarModel(module(LlamaForSequenceClassification, seed, **shape), CHAT, "float64")


def frozen(seed: int = 0) -> LanguageModel:
    model = policy(seed)
    model.module.requires_grad_(False)
    return model


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters()}


def ids(length: int, g: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(2, VOCAB, (length,), generator=g).tolist())


def length(low: int, high: int, g: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=g))


def demonstrations(n: int, seed: int = 0) -> list[Group]:
    g = torch.Generator().manual_seed(seed)
    rows = ((ids(length(1, 9, g), g), ids(length(0, 12, g), g)) for _ in range(n))
    return [Group(Prompt(id=str(i), ids=x), (Response(ids=(*y, EOS)),)) for i, (x, y) in enumerate(rows)]


def rankings(n: int, seed: int = 0, tied: Sequence[int] = ()) -> list[Group]:
    """K from 2 to 5 different answers, a tie here and there; every group in `tied` is all ties."""
    g = torch.Generator().manual_seed(seed)
    groups = []
    for i in range(n):
        k = length(2, 5, g)
        ranks = torch.randint(1, k + 1, (k,), generator=g).tolist()
        if len(set(ranks)) == 1:
            ranks[0] = ranks[0] + 1
        ranks = [1] * k if i in tied else ranks
        # each with a first token of its own: equal answers would tie in score up to the last bit only
        responses = tuple(Response(ids=(2 + j, *ids(length(0, 7, g), g), EOS)) for j in range(k))
        groups.append(
            Group(Prompt(id=str(i), ids=ids(length(1, 9, g), g)), responses, preference=Preference(ranks=tuple(ranks)))
        )
    return groups


def rollouts(n: int, seed: int = 0) -> list[Group]:
    """Scored answers, every fourth cut by the token limit."""
    g = torch.Generator().manual_seed(seed)
    groups = []
    for i in range(n):
        cut = i % 4 == 3
        answer = ids(length(1, 9, g), g) if cut else (*ids(length(0, 8, g), g), EOS)
        response = Response(ids=answer, finish="length" if cut else "stop")
        score = float(torch.randn((), generator=g, dtype=torch.float64))
        groups.append(Group(Prompt(id=str(i), ids=ids(length(1, 7, g), g)), (response,), scores=(score,)))
    return groups


@dataclass
class Given:
    """Hands out `steps[step % len(steps)]`, to each process its part; passes for an `Online`."""

    steps: Sequence[Sequence[Group]]
    settings: SampleSettings = field(default_factory=SampleSettings)

    @property
    def prompts_per_step(self) -> int:
        return len(self.steps[0])

    def __call__(self, models: Models, step: int) -> StepGroups:
        groups = list(self.steps[step % len(self.steps)])
        own = processes.shard(groups)
        return StepGroups([group for _, group in own], [i for i, _ in own], len(groups))


@dataclass
class Record:
    """A sink that keeps everything."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append({k: v for k, v in metrics.items() if not k.startswith("time/")})

    def close(self) -> None: ...


class Cut(Exception):
    """The run is cut off here."""


class CutAt(Record):
    """Raises `Cut` when a step's metrics are logged; 0: never."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def log(self, step: int, metrics: dict[str, float]) -> None:
        super().log(step, metrics)
        if step == self.step:
            raise Cut


OUTPUT = ("folder", "keep_groups", "evaluate", "sinks")  # arguments of `fit` that are no settings of a run


def run(**settings: Any) -> Run:
    """A run without schedule, warm-up and checkpoints unless it is given some; `lr` may be one a model."""
    values = {"schedule": "constant", "warmup": 0.0, "save_every": 0} | settings
    if "betas" in values:
        values["beta1"], values["beta2"] = values.pop("betas")
    if isinstance(values.get("lr"), Mapping):
        rates = values.pop("lr")
        values["lr"] = next(rate for name, rate in rates.items() if name != "value")
        keys = Optimizer.model_fields
        chosen = {key: values.pop(key) for key in list(values) if key in keys}
        values["optimizer"] = ValueOptimizer(value_lr=rates.get("value", 0.0), **chosen)
    return Run(**values)


def fit(algorithm: Algorithm, models: Models, *, optimizer: Any = None, **settings: Any) -> Models:
    """`tiltyard.fit` with the settings of a run and its other arguments side by side."""
    output = {key: settings.pop(key) for key in OUTPUT if key in settings}
    return fitting.fit(algorithm, models, run(**settings), optimizer, **output)


def train(algorithm: Algorithm, models: Models, **settings: Any) -> list[dict[str, float]]:
    """Runs `fit`; the metrics of every step."""
    record = Record()
    sinks = [*settings.pop("sinks", ()), record]
    fit(algorithm, models, sinks=sinks, **({"steps": 20, "lr": 1e-2} | settings))
    return record.rows


def keys(rows: list[dict[str, float]], *names: str) -> list[tuple[float, ...]]:
    return [tuple(row[n] for n in names) for row in rows]


def assert_same(one: Any, two: Any, tolerance: float = 1e-10) -> None:
    """Nested numbers and tensors, equal to `tolerance` (absolute, and relative above 1)."""
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


def watch(algorithm: Algorithm, hook: Callable[[Models, Any, int], None]) -> Algorithm:
    """Calls `hook(models, batch, step)` after each step."""

    def after(models: Models, batch: Any, step: int) -> dict[str, tuple[float, float]]:
        hook(models, batch, step)
        return {}

    return replace(algorithm, after=(*algorithm.after, after))

"""The models of a training stage: loaded, made from scratch, or put as adapters on one frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiltyard.data import plain_texts, train_tokenizer
from tiltyard.distributed import processes
from tiltyard.errors import ConfigError
from tiltyard.methods.base import Method
from tiltyard.models.adapters import adapt, value_adapter
from tiltyard.models.language import LanguageModel, ScalarModel
from tiltyard.models.load import (
    check_values,
    from_scratch,
    load_language_model,
    load_masked_model,
    load_scalar_model,
    load_tokenizer,
    masked_from_scratch,
    pick_device,
    value_from,
    value_head,
)
from tiltyard.stages.base import StageContext
from tiltyard.stages.data import files_of, model_folder, report
from tiltyard.stages.online import reward_of
from tiltyard.training.algorithm import Models


def load_models(method: Method, context: StageContext, settings: Any) -> Models:
    """The models a method declares. The reference is the model as the stage starts, or the one named by `ref`."""
    common = {"dtype": settings.dtype, "device": settings.device, "trust_remote_code": settings.trust_remote_code}
    own: dict[str, Any] = {**common, "quantize": settings.quantize}  # of the backbone that is trained, or adapted
    if settings.quantize != "none" and settings.lora is None:
        raise ConfigError(
            "weights in 4 bits cannot be trained themselves",
            where=f"{context.name}.quantize",
            got=f"quantize={settings.quantize} without lora",
            fix="set lora={}: adapters are trained on the quantised backbone",
        )
    if method.family == "pretrain" and not settings.model:
        if settings.lora is not None:
            raise ConfigError(
                "a new model has no weights that an adapter could go by",
                where=f"{context.name}.lora",
                got="lora without a model",
                fix="set model=MODEL to go on from, or leave lora out",
            )
        return Models(**{method.trains[0]: _new_model(method, context, settings)})
    folder = model_folder(context, settings.model)
    trained = method.trains[0]
    if "encoder" in method.trains:
        models = Models(encoder=load_masked_model(folder, **own))
    elif method.family == "reward":
        models = Models(reward=load_scalar_model(folder, seed=settings.seed, **own))
    else:
        models = Models(policy=load_language_model(folder, **own))
    if settings.lora is not None:
        model = adapt(models[trained], settings.lora, trained, settings.seed)
        count = sum(p.numel() for p in model.parameters())
        report(context, "lora", [f"{count / 1e6:.2f}M trained parameters on a frozen backbone"])
    if method.online:
        policy = models.get("policy")
        models.reward = reward_of(context, settings, common, policy)
        if "value" in method.trains:
            models.value = _value(settings, policy, models.reward, lambda: load_scalar_model(folder, **common))
    return models


def _value(
    settings: Any, policy: LanguageModel, reward: ScalarModel | None, load: Callable[[], ScalarModel]
) -> ScalarModel:
    """The value model as `value_init` says; without a reward model to start as, it starts from the policy."""
    if settings.value_init == "shared":
        return value_head(policy)
    start = reward if settings.value_init == "reward" else None
    if start is not None:
        check_values(start)
    if settings.lora is not None:
        return value_adapter(start or policy, settings.lora, settings.seed)
    return value_from(start) if start is not None else load()


def _new_model(method: Method, context: StageContext, settings: Any) -> Any:
    """A decoder, or an encoder for a method that trains one, with a tokenizer of the stage's own data."""
    encoder = "encoder" in method.trains
    tokenizer_folder = context.folder / "tokenizer"
    if processes.is_main() and not (tokenizer_folder / "done").exists():
        files = [context.resolve(one, want="") for one in files_of("data", settings.data)]
        texts = (text for path in files for text in plain_texts(path, split=settings.split or None))
        train_tokenizer(texts, settings.arch.vocab, mask=encoder).save_pretrained(tokenizer_folder)
        (tokenizer_folder / "done").touch()
    processes.barrier()
    tokenizer = load_tokenizer(tokenizer_folder)
    arch = settings.arch
    if settings.max_length > arch.context:
        raise ConfigError(
            "sequences are longer than the model's context",
            where=f"{context.name}.max_length",
            got=settings.max_length,
            expected=f"at most arch.context = {arch.context}",
            fix="raise arch.context or lower max_length",
        )
    make: Callable[..., Any] = masked_from_scratch if encoder else from_scratch
    model = make(arch.preset, tokenizer, seed=settings.seed, context=arch.context, dtype=settings.dtype)
    model.module.to(pick_device(settings.device))
    count = sum(p.numel() for p in model.module.parameters())
    report(context, "model", [f"{count / 1e6:.2f}M parameters, vocabulary {len(tokenizer):,}"])
    return model

"""Weights that are NaN or infinite: found before they are trained, saved or called done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from tiltyard.distributed import processes
from tiltyard.distributed.parts import local
from tiltyard.distributed.unread import sources_of
from tiltyard.errors import ModelError
from tiltyard.models.backbone import Backbone


def non_finite_weight(modules: Mapping[str, nn.Module]) -> str:
    """Names the first parameter that is not finite and how much of it; "" where all are.

    Of parameters that are spread over processes each looks at its parts, and all return what the first one found.

    Args:
        modules: by the name that stands before those of their parameters.
    """
    every = ((f"{key}.{name}", p.detach()) for key, module in modules.items() for name, p in module.named_parameters())
    named = [(name, p) for name, p in every if not p.is_meta]
    parts = [(name, local(p)) for name, p in named]
    found = _first([(name, p) for name, p in parts if p.is_floating_point() and p.numel()])
    unread = [(f"{key}.{name}", s) for key, module in modules.items() for name, s in sources_of(module).items()]
    for _, (name, source) in processes.shard(unread):  # of those in files each reads its share
        found = found or _first([(name, source.read())])
    if unread or any(p is not part for (_, p), (_, part) in zip(named, parts, strict=True)):
        found = next((text for text in processes.gather_objects(found) if text), "")
    return found


def _first(floats: list[tuple[str, Tensor]]) -> str:
    if not floats or bool(_all_finite(p for _, p in floats)):
        return ""
    name, bad = next((name, p) for name, p in floats if not bool(p.isfinite().all()))
    return f"{name}: {int((~bad.isfinite()).sum()):,} of {bad.numel():,} values are NaN or infinite"


def _all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """One number, so that a GPU is waited for once."""
    flags = [tensor.isfinite().all() for tensor in tensors]
    return torch.stack([flag.to(flags[0].device) for flag in flags]).all()


def require_finite(models: Mapping[str, Backbone]) -> None:
    """Raises a ModelError for a model whose weights are not finite: nothing can be learnt from or with them."""
    for role, model in models.items():
        if bad := non_finite_weight({role: model.module}):
            raise ModelError(
                f"the weights of the model '{role}' are not finite",
                where=str(model.chat.tokenizer.name_or_path) if hasattr(model.chat, "tokenizer") else role,
                got=bad,
                expected="finite numbers",
                fix="the file is damaged or its training diverged: take an earlier checkpoint, or train it again",
            )

"""Classifiers of several labels as reward models: one label, or a weighted sum of several.

A label's logit is a linear function of the classifier's last input, so the weighted sum of some labels is one linear
layer with the weighted sum of their rows: the model that is made has one label and is like any other reward model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tiltyard.errors import ModelError, nearest


class Chosen(NamedTuple):
    """The weights of a classifier's labels by index, and the number of all of its labels."""

    weights: dict[int, float]
    total: int

    @property
    def alone(self) -> bool:
        """True for the plain score of a model of one label."""
        return self.total == 1 and self.weights == {0: 1.0}


_SHOWN = 12  # labels that an error lists


def label_names(config: Any) -> list[str]:
    """The names of a classifier's labels in the order of its logits; `LABEL_0` and so on where it has none."""
    known = {int(index): str(name) for index, name in (getattr(config, "id2label", None) or {}).items()}
    return [known.get(index, f"LABEL_{index}") for index in range(int(config.num_labels))]


def choose(names: list[str], labels: Mapping[str, float], where: str) -> Chosen:
    """The labels that make the score.

    Args:
        names: of all labels, from `label_names`.
        labels: names or indices and their weights; empty: the only label.
        where: the model, for errors.

    Raises:
        ModelError: no label chosen of several, one that the model does not have, or one that was chosen twice.
    """
    if not labels and len(names) == 1:
        return Chosen({0: 1.0}, 1)
    shown = ", ".join(f"{index}: {name}" for index, name in enumerate(names[:_SHOWN]))
    shown += f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    if not labels:
        raise ModelError(
            f"the model is a classifier of {len(names)} labels: which of them is the reward?",
            where=where,
            got="no label",
            expected=f"one or several of {shown}",
            fix=f"name one, {{from: MODEL, label: {names[-1]}}}, or weigh several, {{from: MODEL, labels: "
            f"{{{names[-1]}: 1.0, {names[0]}: -1.0}}}} (the log-odds of two)",
        )
    found: dict[int, float] = {}
    for label, weight in labels.items():
        index = _index(str(label), names)
        if index is None or index in found:
            raise ModelError(
                "the label was chosen twice" if index is not None else f"the model has no label '{label}'",
                where=where,
                got=str(label),
                expected=f"one of {shown}",
                fix=nearest(str(label), names),
            )
        found[index] = float(weight)
    return Chosen(found, len(names))


def _index(label: str, names: list[str]) -> int | None:
    """The index that a label means: its name where one label alone has it, else its number."""
    if names.count(label) == 1:
        return names.index(label)
    return int(label) if label.isdecimal() and int(label) < len(names) else None


@torch.no_grad()
def take_labels(module: Any, head: str, weights: Mapping[int, float]) -> None:
    """Replaces a classifier's last layer by one whose only output is the weighted sum of some of its outputs.

    Args:
        module: a sequence classifier, changed in place.
        head: the name of its last linear layer inside it.
        weights: from `choose`.
    """
    old = module.get_submodule(head)
    made = nn.Linear(old.in_features, 1, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype)
    row = torch.zeros(old.out_features, dtype=torch.float64, device=old.weight.device)
    for index, weight in weights.items():
        row[index] = weight
    made.weight.copy_(row @ old.weight.double())
    if old.bias is not None:
        made.bias.copy_(row @ old.bias.double())
    module.set_submodule(head, made.train(old.training))
    module.config = copy.deepcopy(module.config)
    module.config.num_labels = module.num_labels = 1
    module.config.problem_type = None


def adapter_labels(folder: str, key: str = "score") -> int | None:
    """The number of labels of the head that an adapter's folder holds; None where it holds none, or is no folder."""
    from safetensors import SafetensorError, safe_open

    path = Path(folder) / "adapter_model.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            shapes = (file.get_slice(k).get_shape() for k in file.keys() if f".{key}." in k and k.endswith("weight"))  # noqa: SIM118
            return next((int(shape[0]) for shape in shapes if len(shape) == 2), None)
    except (OSError, SafetensorError):
        return None  # the loader names what is wrong

"""Names of evaluated models in tables: their own, or the stage or folder that they come from."""

from __future__ import annotations

from pathlib import Path

from tiltyard.errors import ConfigError


def named_models(models: list[str] | dict[str, str], where: str = "evaluate.models") -> dict[str, str]:
    """Returns {name in the table: model}.

    Raises:
        ConfigError: two models of one name.
    """
    if isinstance(models, dict):
        return models
    names: dict[str, str] = {}
    for model in models:
        name = short_name(model)
        if name in names:
            raise ConfigError(
                f"two models would both be called '{name}'",
                where=where,
                got=f"{names[name]} and {model}",
                fix=f"name them: models={{{name}: {names[name]}, other: {model}}}",
            )
        names[name] = model
    return names


def short_name(value: str) -> str:
    """Returns the name of a model in the table: its stage, or the last part of its path other than `model`."""
    parts = [p for p in Path(value).parts if p not in ("model", "/")]
    return parts[-1] if parts else value

"""`merge`: an adapter's folder and its base become an ordinary model folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from tiltyard.errors import ConfigError, ModelError
from tiltyard.files import exists, user_path
from tiltyard.models.backbone import Backbone
from tiltyard.models.encoder import is_encoder
from tiltyard.models.folder import ADAPTER, adapter_config, base_of
from tiltyard.models.load import has_scalar_head, load_language_model, load_masked_model, load_scalar_model, save_model
from tiltyard.models.pretrained import load_config
from tiltyard.models.saving import SaveDType

CARD = "README.md"


def merge(
    source: str | Path,
    into: str | Path | None = None,
    *,
    dtype: SaveDType = "source",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Writes the model of an adapter with the adapter merged into it; the folder appears whole or not at all.

    Args:
        source: folder of an adapter (PEFT's, or a stage's `adapter/`), of a stage, or of a run with one such stage.
        into: folder to write, new or empty; `ADAPTER-merged` beside the adapter without it.
        dtype: width of the weights; `source`: as wide as the base's. A change smaller than the last bit of 16 is lost.

    Returns:
        adapter, base, model (the folder), kind (language, reward, masked), dtype.

    Raises:
        ModelError: no adapter, or one whose base is missing. ConfigError: a folder that holds something.
    """
    adapter = find_adapter(source)
    out = user_path(into) if into else adapter.with_name(f"{adapter.name}-merged")
    if exists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            "there is something where the merged model would be written",
            where=str(out),
            got=", ".join(sorted(one.name for one in out.iterdir())[:6]) if out.is_dir() else "a file",
            expected="a folder that is new or empty",
            fix="give another with --into",
        )
    base = base_of(str(adapter))
    kind, model = _loaded(str(adapter), device, trust_remote_code)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".making", dir=out.parent) as work:
        made = Path(work) / "model"
        save_model(model, made, dtype=dtype)
        if (card := adapter.parent / "model" / CARD).exists():  # of the stage that trained it: the same model
            shutil.copyfile(card, made / CARD)
        if out.is_dir():
            out.rmdir()
        made.rename(out)
    return {"adapter": str(adapter), "base": base, "model": str(out), "kind": kind, "dtype": dtype}


def find_adapter(source: str | Path) -> Path:
    """The folder with the adapter that a text means: itself, a stage's `adapter/`, or that of a run's only such stage.

    Raises:
        ModelError: none, or several.
    """
    path = user_path(source)
    if (path / ADAPTER).exists():
        return path
    if (path / "adapter" / ADAPTER).exists():
        return path / "adapter"
    found = sorted(one.parent for one in path.glob(f"*/adapter/{ADAPTER}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelError(
            "several stages of the run have an adapter",
            where=str(source),
            got=", ".join(one.parent.name for one in found),
            expected="one adapter",
            fix=f"name one: {found[0].parent}",
        )
    raise ModelError(
        "there is no adapter to merge",
        where=str(source),
        got=", ".join(sorted(one.name for one in path.iterdir())[:8]) if path.is_dir() else "no such folder",
        expected=f"a folder with {ADAPTER}, or a stage that was trained with lora",
        fix="a model that was trained whole is merged already: take runs/NAME/STAGE/model",
    )


def _loaded(adapter: str, device: str, trust: bool) -> tuple[str, Backbone]:
    config = load_config(adapter, trust)
    how: dict[str, Any] = {"device": device, "trust_remote_code": trust}
    named = adapter_config(adapter) or {}
    if has_scalar_head(adapter, config) and named.get("task_type") != "CAUSAL_LM":
        return "reward", load_scalar_model(adapter, **how)
    if is_encoder(config):
        return "masked", load_masked_model(adapter, **how)
    return "language", load_language_model(adapter, **how)

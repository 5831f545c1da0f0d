"""Right-padded batches, for models that cannot be packed; row by row where a row's numbers depend on its neighbours.

Padding is on the right, where causal attention hides it from every real token. A model is tried once, when it is
loaded: an architecture that reads ahead is refused, one whose rows differ beside longer rows is run row by row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiltyard.errors import ModelError

FAILURES = (TypeError, RuntimeError, ValueError, AttributeError, NotImplementedError, LookupError, AssertionError)
Call = Callable[..., Tensor]  # (input_ids=, attention_mask=, position_ids=, use_cache=) -> [N, L, ...]

LONG = 70  # tokens of the longest row that is tried: beyond the blocks of 64 of linear attention
LARGEST = 512  # a window or block that is longer is not filled by the trial
# names under which configurations have a window, or the length of the blocks in which they compute
REACHES = (
    "sliding_window",
    "attention_window_size",
    "local_attention",
    "window_size",
    "attention_chunk_size",
    "chunk_size",
    "mamba_chunk_size",
    "block_size",
)
CLOSE, CLOSE_HALF = 1e-4, 5e-2  # of the scale of the numbers; in bfloat16


def takes_positions(module: nn.Module) -> bool:
    """True if the module's forward has the argument `position_ids`."""
    return "position_ids" in inspect.signature(module.forward).parameters


def run_rows(ids_NL: Tensor, length_N: Sequence[int], call: Call, *, alone: bool, positions: bool) -> Tensor:
    """Computes `call` [N, L, ...] for right-padded rows.

    Args:
        alone: each row by itself, without its padding. positions: the model takes `position_ids`.
    """
    if alone:
        found = [call(input_ids=row[None, :n], use_cache=False)[0] for row, n in zip(ids_NL, length_N, strict=True)]
        longest = ids_NL.shape[1]
        return torch.stack([functional.pad(x, (0, 0) * (x.dim() - 1) + (0, longest - len(x))) for x in found])
    # Padding is not masked as well: a row that may attend to nothing (padding beyond a sliding window) would be NaN,
    # and NaN spreads.
    more: dict[str, Any] = {"attention_mask": torch.ones_like(ids_NL)}
    if positions:
        more["position_ids"] = torch.arange(ids_NL.shape[1], device=ids_NL.device).expand_as(ids_NL)
    return call(input_ids=ids_NL, use_cache=False, **more)


def reach(config: Any) -> int:
    """Returns the longest window or block of a model, as far as a trial may fill it; 0 if it has none."""
    found = [getattr(config, name, None) for name in REACHES]
    return max((n for n in found if isinstance(n, int) and 0 < n <= LARGEST), default=0)


def trial_ids(config: Any, device: torch.device, *lengths: int) -> list[Tensor]:
    """Returns rows of random ids, always the same, not longer than the model's context."""
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or max(lengths)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, int(config.vocab_size), (n,), generator=generator) for n in lengths]
    return [row[: int(limit)].to(device) for row in rows]


def differ(found: Tensor, expected: Tensor, half: bool) -> float:
    """Returns the largest difference as a share of the scale of the expected numbers; 0 if it is within rounding."""
    scale = expected.float().abs().max().clamp_min(1e-6)
    gap = float((found.float() - expected.float()).abs().max() / scale)
    return 0.0 if gap < (CLOSE_HALF if half else CLOSE) else gap


@torch.no_grad()
def reason_for_rows_alone(call: Call, config: Any, device: torch.device, *, positions: bool, half: bool) -> str:
    """Tries two rows of different length together and alone; returns the reason to run rows alone, or "".

    Args:
        config: of the language model. half: the arithmetic is bfloat16.

    Raises:
        ModelError: the model reads ahead: its numbers at a token depend on the tokens after it.
    """
    rows = trial_ids(config, device, max(LONG, reach(config) + 5), 5)
    try:
        own = [call(input_ids=row[None], use_cache=False)[0] for row in rows]
    except FAILURES as error:
        raise ModelError(
            "this model does not compute a text from its token ids alone",
            where=type(config).__name__,
            got=f"{type(error).__name__}: {str(error)[:120]}",
            expected="a causal decoder of text",
            fix="use another model",
        ) from error
    if not all(x.isfinite().all() for x in own):
        return ""  # weights that are no numbers are reported elsewhere
    middle = len(rows[0]) // 2
    if gap := differ(call(input_ids=rows[0][None, :middle], use_cache=False)[0], own[0][:middle], half):
        raise ModelError(
            "this model reads ahead: its numbers at a token depend on the tokens after it",
            where=type(config).__name__,
            got=f"a difference of {gap:.2g} of their scale",
            expected="a causal decoder",
            fix="set is_decoder=true (or causal=true) in its config.json if it was trained so, or use another model",
        )
    lengths = [len(row) for row in rows]
    ids = torch.stack([functional.pad(row, (0, max(lengths) - len(row))) for row in rows])
    try:
        together = run_rows(ids, lengths, call, alone=False, positions=positions)
    except FAILURES as error:
        return f"it takes no padded batch ({type(error).__name__}: {str(error)[:80]})"
    gaps = [differ(x[:n], y, half) for x, y, n in zip(together, own, lengths, strict=True)]
    return f"beside a longer row its numbers differ by {max(gaps):.2g} of their scale" if any(gaps) else ""

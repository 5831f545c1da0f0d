"""Reference log-probs of a data set, computed once and kept on disk, so that no reference is in memory while training.

A file's name is the hash of everything its numbers depend on: the reference's weights and config, the chat template,
the arithmetic, and the ids of every prompt and response. The same hash stands inside the file and is checked when it
is read; whatever does not match is computed anew, so a stale cache is never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tiltyard.errors import CompositionError
from tiltyard.files import write_atomic
from tiltyard.models import parallel
from tiltyard.models.language import LanguageModel
from tiltyard.training.batch import Batch
from tiltyard.training.prepare import by_micro
from tiltyard.types import Group

FORMAT = "1"


class RefCache:
    """Looks up the log-probs of groups by the content of their ids."""

    def __init__(self, rows: dict[bytes, tuple[int, int]], logp: Tensor, path: Path | None, fresh: bool):
        self.rows, self.logp, self.path, self.fresh = rows, logp, path, fresh

    def logp_R(self, groups: Sequence[Group]) -> Tensor:
        """[R] over the loss tokens of the groups' responses, in order.

        Raises:
            CompositionError: a group that the cache was not made for.
        """
        parts = []
        for group in groups:
            found = self.rows.get(group_key(group))
            if found is None:
                raise CompositionError(
                    "the cached reference log-probs do not cover this group",
                    where=group.origin or group.prompt.id,
                    fix="build the cache from the groups that are trained on, or keep the reference in memory "
                    "(ref_cache=false)",
                )
            parts.append(self.logp[found[0] : found[0] + found[1]])
        return torch.cat(parts) if parts else self.logp[:0]


def cache_ref_logps(ref: LanguageModel, groups: Sequence[Group], folder: Path | None, budget: int = 8192) -> RefCache:
    """The cache of these groups under this reference: read from `folder` if it is there, else computed and written.

    All processes share the work; the main one writes. `folder=None` keeps it in memory only.
    """
    unique = list({group_key(g): g for g in groups}.items())
    name = content_hash(ref, [key for key, _ in unique])
    path = None if folder is None else folder / f"{name[:40]}.safetensors"
    logp = _read(path, name)
    fresh = logp is None
    if logp is None:
        logp = _compute(ref, [g for _, g in unique], budget)
        if path is not None and parallel.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, save({"logp": logp}, metadata={"content": name}))
        parallel.barrier()
    rows, start = {}, 0
    for key, group in unique:
        count = _loss_tokens(group)
        rows[key] = (start, count)
        start += count
    return RefCache(rows, logp, path, fresh)


def group_key(group: Group) -> bytes:
    """Hash of the ids of the prompt and of every response, and of what part of them a loss may use."""
    content = [group.prompt.ids, *((r.ids, r.loss_spans) for r in group.responses)]
    return hashlib.blake2b(json.dumps(content, separators=(",", ":")).encode(), digest_size=16).digest()


def content_hash(ref: LanguageModel, keys: Sequence[bytes]) -> str:
    """Hash of the data's ids and of everything about the reference that its log-probs depend on."""
    digest = hashlib.sha256()
    config = ref.module.config.to_diff_dict()
    for odd in ("_name_or_path", "transformers_version"):
        config.pop(odd, None)
    template = str(ref.chat.tokenizer.chat_template) if hasattr(ref.chat, "tokenizer") else ""
    facts = [FORMAT, ref.dtype, str(ref.device.type), ref.packed, template, config]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(ref.module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    for key in keys:
        digest.update(key)
    return digest.hexdigest()


def _loss_tokens(group: Group) -> int:
    return sum(len(r.ids) if r.loss_spans is None else sum(b - a for a, b in r.loss_spans) for r in group.responses)


def _compute(ref: LanguageModel, groups: Sequence[Group], budget: int) -> Tensor:
    was_training = ref.module.training
    ref.module.eval()
    own = parallel.shard(groups)
    batch = Batch.of([g for _, g in own], [i for i, _ in own], len(groups), ref.device, budget)
    logp_R = by_micro(batch, lambda part: ref.logp_R(part.forest)[0]).cpu()
    ref.module.train(was_training)
    counts = [_loss_tokens(g) for _, g in own]
    rows = dict(zip((i for i, _ in own), logp_R.split(counts), strict=True))
    if parallel.world() > 1:
        rows = {i: torch.tensor(x, dtype=logp_R.dtype) for part in parallel.gather_objects(
            {i: x.tolist() for i, x in rows.items()}) for i, x in part.items()}  # fmt: skip
    return torch.cat([rows[i] for i in range(len(groups))])


def _read(path: Path | None, name: str) -> Tensor | None:
    """The numbers of a file that says it holds this very content; None where there is none or it cannot be read."""
    if path is None or not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("logp") if (file.metadata() or {}).get("content") == name else None
    except (OSError, SafetensorError):
        return None

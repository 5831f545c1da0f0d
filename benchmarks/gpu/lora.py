"""LoRA on a frozen backbone, and the same with the backbone in four bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benchmarks.gpu.report import Bench, Result, absent
from benchmarks.gpu.shapes import SMALL, TINY, groups, language, relative
from benchmarks.gpu.steps import adapted, line, measured, peak_gflops, work_of
from torch import Tensor

from tiltyard import Models, Offline, Run, fit, load_language_model
from tiltyard.batch.forest import pack
from tiltyard.methods import dpo
from tiltyard.models.adapters import adapt, without_adapters
from tiltyard.models.language import LanguageModel
from tiltyard.models.lora import Lora
from tiltyard.models.saving import save_model

MERGED = 5e-2  # of their norm, that log-probs of the merged and saved model may differ by (its arithmetic is bfloat16)


def lora(bench: Bench) -> Iterator[Result]:
    """The check: speed with adapters, what is trained, and four bits."""
    bench.forget_peak()
    algorithm, models = adapted(bench)
    before = {name: p.detach().cpu().clone() for name, p in models["policy"].module.named_parameters()}
    found = measured(bench, algorithm, models, 3 if bench.tiny else 6)
    work = work_of(bench, "dpo")[1:]
    yield line("dpo with LoRA", found, work, peak_gflops(bench)[0], models)
    changed = [n for n, p in models["policy"].module.named_parameters() if not torch.equal(p.detach().cpu(), before[n])]
    wrong = [name for name in changed if ".lora_" not in name]
    text = f"{len(changed)} tensors changed, {len(wrong)} of them of the backbone {', '.join(wrong[:3])}"
    yield Result("lora", "only adapters are trained", "FAIL" if wrong or not changed else "ok", text)
    if bench.device.type != "cuda":
        yield Result("lora", "four bits", "not run", "needs a CUDA device")
    elif missing := absent("bitsandbytes"):
        yield Result("lora", "four bits", "not run", f"{missing[0]} is not installed here")
    else:
        yield from four_bits(bench)


def four_bits(bench: Bench) -> Iterator[Result]:
    """A folder loaded in four bits, trained with LoRA for some steps, merged, saved and read again."""
    shape = TINY if bench.tiny else SMALL
    plain = language("Llama", shape, bench.device)
    folder = bench.folder / "plain"
    save_model(plain, folder)
    bench.forget_peak()
    model = load_language_model(folder, device=str(bench.device), dtype="bfloat16", quantize="4bit")
    bytes_of = lambda m: sum(p.numel() * p.element_size() for p in m.module.parameters())  # noqa: E731
    trees = groups([(20, (12, 30)), (40, (9, 17))] * 4, shape[-1])
    forest = pack(trees, bench.device)
    with torch.no_grad():
        full, rounded = (one.logp_R(forest)[0] for one in (plain, model))
    numbers = {"mib": bytes_of(model) / 2**20, "full_mib": bytes_of(plain) / 2**20, "gap": relative([rounded], [full])}
    text = (
        f"{numbers['mib']:,.1f} MiB of weights for {numbers['full_mib']:,.1f}, log-probs differ from float32's by "
        f"{numbers['gap']:.1e} of their norm"
    )
    yield Result("lora", "four bits: loaded", "ok" if numbers["gap"] < 0.2 else "FAIL", text, numbers)
    policy = adapt(model, Lora())
    models = Models(policy=policy, ref=without_adapters(policy))
    fit(dpo(Offline(trees, 4), beta=0.1), models, Run(steps=4, lr=1e-3, warmup=0.0, save_every=0))
    yield merged(policy, forest, bench)


def merged(policy: LanguageModel, forest: object, bench: Bench) -> Result:
    """The trained model against the folder that was saved of it."""
    folder = bench.folder / "merged"
    save_model(policy, folder)
    again = load_language_model(folder, device=str(bench.device), dtype="bfloat16")

    def logp(model: LanguageModel) -> Tensor:
        with torch.no_grad():
            return model.logp_R(forest)[0]

    gap = relative([logp(again)], [logp(policy)])
    text = f"log-probs of the merged and saved model differ by {gap:.1e} of their norm (at most {MERGED:g})"
    return Result("lora", "four bits: trained, merged", "ok" if gap <= MERGED else "FAIL", text, {"gap": gap})

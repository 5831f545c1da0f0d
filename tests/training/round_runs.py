"""Short runs of the methods in rounds, here and under torchrun: `python -m tests.training.round_runs FOLDER`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.reference.float64 import exact_norms
from tests.scoring.stubs import Scripted
from tests.training import tiny

from tiltyard.distributed import processes
from tiltyard.feedback import Grade, GradeScorer, Usage
from tiltyard.methods import cringe, iterative_dpo, online_dpo, rest, rft, rso
from tiltyard.sampling import NativeSampler, SampleSettings
from tiltyard.scoring import FunctionScorer
from tiltyard.training.algorithm import Algorithm, Models
from tiltyard.training.rounds import Rounds
from tiltyard.training.source import Offline, Online
from tiltyard.types import Group, Preference, Prompt

STEPS, EVERY = 9, 3
METHODS: dict[str, Any] = {
    "fixed": iterative_dpo,
    "previous": lambda source: iterative_dpo(source, ref_update="previous", loss="ipo"),
    "rft": rft,
    "rft_on": lambda source: rft(source, pool="last", restart=False),
    "rest": lambda source: rest(source, thresholds=[0.2, 0.6]),
    "rest_vmpo": lambda source: rest(source, thresholds=[0.1], loss="vmpo"),
    "rest_given": lambda source: rest(source, data(), thresholds=[0.2, 0.6], loss="gold"),
    "rso": lambda source: rso(source, accepted=4, ranking="tournament"),
    "cringe": lambda source: cringe(source, negatives=3),
}


def data() -> Offline:
    """Answers of a file: some to the prompts of the rounds, some to others."""
    answers = [replace(g, prompt=p) for g, p in zip(tiny.demonstrations(3, seed=4), prompts(), strict=False)]
    return Offline([*answers, *tiny.demonstrations(4, seed=6)], 1)


def score(prompt: Prompt, response: Any) -> float:
    return float(sum(response.ids) % 7)


def careless(groups: list[Group]) -> list[Group]:
    """A judge that leaves out an answer here and a whole group there, and says nothing of a third."""
    found = []
    for group in FunctionScorer(score).score(groups):
        marker = sum(group.prompt.ids) % 4
        if marker == 1:
            continue
        if marker == 2:
            group = replace(group, responses=group.responses[1:], scores=(group.scores or ())[1:])
        found.append(
            replace(group, scores=None, preference=Preference(ranks=(1,) * len(group.responses)))
            if marker == 3
            else group
        )
    return found


class Grader:
    """A judge that says what asking cost: a call, the answer's tokens and a price an answer."""

    def __init__(self) -> None:
        self.usage = Usage()

    def score(self, groups: list[Group]) -> list[tuple[Grade, ...]]:
        for group in groups:
            for response in group.responses:
                self.usage += Usage(calls=1, tokens_in=len(response.ids), tokens_out=1, cost=0.25)
        return [tuple(Grade(score(g.prompt, r)) for r in g.responses) for g in groups]


def prompts(n: int = 7) -> list[Prompt]:
    g = torch.Generator().manual_seed(0)
    return [Prompt(id=str(i), ids=tiny.ids(1 + i % 5, g)) for i in range(n)]


def rounds(**changes: Any) -> Rounds:
    usual: dict[str, Any] = {
        "prompts": prompts(),
        "sampler": NativeSampler(),
        "scorer": FunctionScorer(score),
        "size": 9,
        "prompts_per_step": 4,
        "every": EVERY,
        "samples_per_prompt": 6,
        "settings": SampleSettings(max_tokens=5),
        "seed": 2,
    }
    return Rounds(**(usual | changes))


def models() -> Models:
    return Models(policy=tiny.policy(), ref=tiny.frozen())


def make(name: str, **changes: Any) -> Algorithm:
    if name == "online":
        source = Online(prompts(), NativeSampler(), FunctionScorer(score), 5, 2, SampleSettings(max_tokens=5), seed=2)
        return online_dpo(source)
    if name == "careless":
        return iterative_dpo(rounds(prompts=prompts(20), scorer=Scripted(careless), size=15, **changes))
    if name == "judged":
        scorer = GradeScorer(Grader())
        return rft(rounds(scorer=scorer, **changes))
    return METHODS[name](rounds(**changes))


def run(algorithm: Algorithm, given: Models, folder: Path | None, **settings: Any) -> Models:
    usual: dict[str, Any] = {"steps": STEPS, "lr": 1e-2, "schedule": "cosine", "warmup": 2, "save_every": 2}
    return tiny.fit(algorithm, given, **(usual | {"folder": folder, "keep_groups": folder is not None} | settings))


RANKED = ("previous", "rft", "careless", "online", "judged", "rest_given")  # under torchrun


def main(folder: Path) -> None:
    processes.start()
    for name in RANKED:
        algorithm, given = make(name), models()
        if isinstance(algorithm.source, Rounds):
            algorithm.source.folder = folder / name / "rounds"
        run(algorithm, given, folder / name, tokens_per_microbatch=60)
        save_file(tiny.parameters(given.policy), folder / f"{name}.rank{processes.rank()}.safetensors")
    processes.barrier()


if __name__ == "__main__":
    with exact_norms():
        main(Path(sys.argv[1]))

"""What is compared with TRL: a method of ours, the trainer of theirs, and which of their numbers is which of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Data = Literal["pairs", "chosen", "alternating"]


@dataclass(frozen=True)
class Case:
    """One method of both.

    Args:
        name: the row, and the method of ours without what stands behind a `:`.
        trainer: TRL's trainer, as `trl_side.py` calls it. settings: of its config.
        ours: settings of our method.
        data: pairs; the chosen answers alone; or one labelled answer a prompt, good and bad in turns.
        numbers: our metric -> TRL's, beside loss and gradient norm.
        changed: a definition of TRL's that `trl_side.py` replaces by ours; "" for none.
        note: what the two do differently on purpose.
    """

    name: str
    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    data: Data = "pairs"
    numbers: dict[str, str] = field(default_factory=dict)
    changed: str = ""
    note: str = ""

    @property
    def method(self) -> str:
        return self.name.partition(":")[0]


PAIR = {"chosen_reward": "rewards/chosen", "rejected_reward": "rewards/rejected", "margin": "rewards/margins"}
LOGPS = {"chosen_logp": "logps/chosen", "rejected_logp": "logps/rejected"}
CASES: tuple[Case, ...] = (
    Case("sft", "sft", data="chosen", note="both average over the answers' tokens of the whole batch"),
    Case("dpo", "dpo", {"beta": 0.1}, {"beta": 0.1}, numbers={**PAIR, **LOGPS}),
    Case(
        "ipo",
        "dpo",
        {"beta": 0.1, "loss_type": ["ipo"]},
        {"beta": 0.1},
        numbers=LOGPS,
        note="both average log-ratios over tokens (ours: length_norm=true); TRL logs rewards of sums, we of averages",
    ),
    Case(
        "kto",
        "kto",
        {"beta": 0.1},
        {"beta": 0.1},
        data="alternating",
        numbers={"good_reward": "rewards/chosen", "bad_reward": "rewards/rejected", "kl": "kl"},
        note="the KL term pairs a prompt with the answer of the next one here, of the one before in TRL: TRL is given "
        "the rows in reverse order",
    ),
    Case(
        "orpo",
        "orpo",
        {"beta": 0.1},
        {"lam": 0.1},
        numbers={"margin": "log_odds_chosen"},
        note="TRL's likelihood term covers the prompt and averages over all tokens of the batch, ours (and the paper's "
        "eq. 6) the answer, each answer alike; the odds agree",
    ),
    Case(
        "orpo:answers",
        "orpo",
        {"beta": 0.1},
        {"lam": 0.1},
        numbers={"margin": "log_odds_chosen"},
        changed="orpo_likelihood",
        note="TRL with the likelihood of answers alone, each answer alike",
    ),
    Case(
        "simpo",
        "cpo",
        {"beta": 2.0, "loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.0},
        {"beta": 2.0, "gamma_ratio": 0.5},
        numbers=PAIR,
        note="TRL's simpo_gamma is our beta x gamma_ratio",
    ),
    Case(
        "reward_model",
        "reward",
        numbers={"model_score": "mean_reward", "accuracy": "accuracy"},
        note="the folder that Tiltyard saves, whose padding token ends no answer",
    ),
)


def chosen(only: str) -> list[Case]:
    """The cases whose names begin with one of the comma-separated words; all without any.

    Raises:
        SystemExit: a word that no case begins with.
    """
    words = [w.strip() for w in only.split(",") if w.strip()]
    for word in words:
        if not any(case.name.startswith(word) for case in CASES):
            raise SystemExit(f"no case begins with '{word}'; there are {', '.join(case.name for case in CASES)}")
    return [case for case in CASES if not words or any(case.name.startswith(word) for word in words)]

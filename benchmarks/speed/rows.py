"""The rows of the table: which work, how both sides are told to do it, and what ratio is to be reached."""

from __future__ import annotations

from dataclasses import dataclass, field

THREADS = 2  # the peers' scripts use two
STEPS = {"sft": 20, "reward": 12, "dpo": 12, "dpo-cached": 12, "grpo": 6, "rloo": 6, "ppo": 5, "ppo-shared": 5}
STEPS |= {"online_dpo": 7, "sample": 5}


@dataclass(frozen=True)
class Work:
    """What is measured on our side: a task of `ours.py` on a model.

    rows: of a sampling work. dtype: of products. lora: rank 16 in all linear layers of the blocks. batch: rows, pairs
    or prompts a step. tokens: of a sampled answer. folder: of PEERS_WORK, where models and pairs lie.
    """

    task: str
    model: str = "bench-12m"
    rows: int = 0
    dtype: str = "float32"
    lora: bool = False
    batch: int = 8
    tokens: int = 128
    folder: str = ""

    @property
    def name(self) -> str:
        size = self.model.removeprefix("bench-")
        kind = f"{'-lora' if self.lora else ''}{'-bf16' if self.dtype == 'bfloat16' else ''}"
        return f"{self.task}{self.rows or ''}-{size}{kind}"

    @property
    def words(self) -> list[str]:
        """The command line of `ours.py`."""
        sizes = {
            "work": self.task,
            "model": self.model,
            "dtype": self.dtype,
            "batch": self.batch,
            "tokens": self.tokens,
        }
        said = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
        return [*said, "--rows", str(self.rows), *(["--lora"] if self.lora else [])]

    @property
    def steps(self) -> int:
        return STEPS[self.task]


@dataclass(frozen=True)
class Peer:
    """How a peer does the same work: the script of the peers' folder, whose Python, its words, added environment.

    folder: of PEERS_WORK, where models and pairs lie; with one, the script is `peer_side.py` beside this file.
    """

    name: str
    script: str
    words: tuple[str, ...]
    python: str = "trl"
    path: str = ""  # a folder of PEERS_WORK that Python looks into first
    folder: str = ""

    @property
    def key(self) -> str:
        return "-".join([self.name.lower().replace(" ", "-"), *(w.strip("-") for w in self.words)])


def trl(task: str, *words: str, model: str = "bench-12m", path: str = "") -> Peer:
    """TRL's trainer of this task; PPO is TRL 1.12's, later versions dropped it."""
    return Peer("TRL 1.12" if path else "TRL", "bench_trl.py", ("--task", task, "--model", model, *words), "trl", path)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `reach`: the ratio of speeds to be reached. `rss`: the part of the peer's peak memory that ours may be, and `share`
    the part of the machine's GEMM speed to be reached (0: none is asked for). `passes`: see `floor.flops`.
    """

    name: str
    title: str
    work: Work
    peer: Peer
    reach: float
    passes: dict[str, float]
    rss: float = 0.5
    share: float = 0.0
    data: str = "pairs"  # whose lengths the floor takes: pairs, texts, or sampled answers
    groups: int = 8
    answers: int = 0  # of a prompt, where they are sampled
    tokens: int = field(default=128)


ONLINE = {"logp": 2.0, "train": 1.0}  # sampling, the reference, one update
PPO = {"logp": 2.0, "score": 2.0, "train": 4.0, "train_score": 4.0}  # also the reward and the value model
SHARED = {"logp": 2.0, "score": 1.0, "train": 4.0}  # values come with the policy's own passes
BIG = "bench-60m"


def _sampling(rows: int, peer: str, reach: float) -> Row:
    if peer == "HF":
        words = Peer("HF generate", "bench_gen_hf.py", ("--n", str(rows)))
    else:
        words = Peer("vLLM", "bench_gen_vllm.py", ("--dtype", "float32", "--n", str(rows)), "vllm")
    work = Work("sample", rows=rows)
    name, title = f"sample{rows}-{peer.lower()}", f"sampling {rows} x 128 tokens"
    return Row(name, title, work, words, reach, {"logp": 1.0}, rss=0.0, data="sampled", groups=rows, answers=1)


def _grpo(model: str, reach: float, share: float = 0.0) -> Row:
    size = " 60m" if model == BIG else ""
    title = f"GRPO{size}, 8 prompts x 4 x 128 tokens, KL on"
    peer, work = trl("grpo", model=model), Work("grpo", model)
    return Row(work.name, title, work, peer, reach, ONLINE, share=share, data="sampled", answers=4)


ROWS: tuple[Row, ...] = (
    Row("sft-12m", "SFT, 8 rows", Work("sft"), trl("sft"), 1.9, {"train": 1.0}, data="texts"),
    Row("reward-12m", "reward, 8 pairs", Work("reward"), trl("reward"), 1.9, {"train_score": 1.0}),
    Row("dpo-12m", "DPO, 8 pairs, live reference", Work("dpo"), trl("dpo"), 2.6, {"train": 1.0, "logp": 1.0}),
    Row(
        "dpo-cached-12m",
        "DPO, cached reference",
        Work("dpo-cached"),
        trl("dpo", "--precompute", "--tag", "cached"),
        2.7,
        {"train": 1.0},
    ),
    _grpo("bench-12m", 4.0),
    Row("rloo-12m", "RLOO, same", Work("rloo"), trl("rloo"), 4.0, ONLINE, data="sampled", answers=4),
    Row(
        "ppo-12m",
        "PPO, 32 rollouts, 4 epochs, own value model",
        Work("ppo"),
        trl("ppo", path="trl112"),
        2.5,
        PPO,
        data="sampled",
        groups=32,
        answers=1,
    ),
    Row(
        "ppo-shared-12m",
        "PPO, values on the policy's backbone",
        Work("ppo-shared"),
        trl("ppo", path="trl112"),
        4.0,
        SHARED,
        data="sampled",
        groups=32,
        answers=1,
    ),
    Row(
        "online_dpo-12m",
        "online DPO, 8 prompts x 2",
        Work("online_dpo"),
        trl("online_dpo"),
        4.0,
        ONLINE | {"score": 1.0},
        data="sampled",
        answers=2,
    ),
    _sampling(32, "HF", 4.0),
    _sampling(32, "vLLM", 1.5),
    _sampling(256, "HF", 8.0),
    _sampling(256, "vLLM", 1.2),
    Row(
        "dpo-60m",
        "DPO 60m, 8 pairs",
        Work("dpo", BIG),
        trl("dpo", model=BIG),
        2.3,
        {"train": 1.0, "logp": 1.0},
        share=0.6,
    ),
    _grpo(BIG, 3.0, share=0.6),
)


def chosen(only: str, more: tuple[Row, ...] = ()) -> list[Row]:
    """The rows whose names begin with one of the comma-separated words; without any all but `more`.

    Raises:
        SystemExit: a word that no row begins with.
    """
    words = [w.strip() for w in only.split(",") if w.strip()]
    for word in words:
        if not any(row.name.startswith(word) for row in (*ROWS, *more)):
            raise SystemExit(f"no row begins with '{word}'; there are {', '.join(row.name for row in (*ROWS, *more))}")
    named = [row for row in (*ROWS, *more) if any(row.name.startswith(word) for word in words)]
    return named if words else list(ROWS)

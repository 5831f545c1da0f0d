"""What `benchmarks.agree` computes on our side, against the flat references; with TRL beside it where its folder is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.agree import __main__ as agree
from benchmarks.agree import data, ours, peer, table
from benchmarks.agree.cases import CASES, Case, chosen
from rich.console import Console
from tests.plugin import PEERS
from tests.reference import dpo as flat_dpo
from tests.reference import reward as flat_reward
from tests.reference import sft as flat_sft
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

ROWS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> data.Folders:
    work = tmp_path_factory.mktemp("agree")
    model, _ = data.make_tiny(work)
    return data.make_folders(model, work)


@pytest.fixture(scope="module")
def rows(folders: data.Folders) -> list[data.Row]:
    return data.rows_of(folders.model.parent / "tiny.jsonl", folders.model, ROWS, 100)


def plain(folder: Path, head: Any = AutoModelForCausalLM) -> Any:
    """The model as transformers loads it, with a padding token that learns."""
    model = head.from_pretrained(folder, dtype=torch.float32)
    model.get_input_embeddings().padding_idx = None
    return model


def answers(rows: list[data.Row], *sides: str) -> list[tuple[list[int], list[int]]]:
    return [(row["prompt_ids"], row[side]) for row in rows for side in sides]


def lengths(rows: list[data.Row]) -> torch.Tensor:
    return torch.tensor([[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows])


def flat_loss(case: Case, rows: list[data.Row], folders: data.Folders, policy: Any) -> torch.Tensor:
    """The loss of the methods that have no flat reference of their own, written out."""
    if case.method == "kto":
        ref = plain(folders.ref)
        own = [(row["prompt_ids"], row["chosen_ids" if row["label"] else "rejected_ids"]) for row in rows]
        others = [(own[i][0], own[(i + 1) % len(own)][1]) for i in range(len(own))]
        with torch.no_grad():
            shift = (flat_dpo.log_prob(policy, others) - flat_dpo.log_prob(ref, others)).mean().clamp(min=0)
            base = flat_dpo.log_prob(ref, own)
        assert shift > 0  # else this tests nothing of it
        sign = torch.tensor([1.0 if row["label"] else -1.0 for row in rows])
        ratio = flat_dpo.log_prob(policy, own) - base
        return (1 - torch.sigmoid(0.1 * sign * (ratio - shift))).mean()
    mean = flat_dpo.log_prob(policy, answers(rows, "chosen_ids", "rejected_ids")).view(-1, 2) / lengths(rows)
    if case.method == "simpo":
        return -logsigmoid(2.0 * (mean[:, 0] - mean[:, 1]) - 1.0).mean()
    odds = mean - torch.log1p(-mean.exp())
    return (-mean[:, 0] - 0.1 * logsigmoid(odds[:, 0] - odds[:, 1])).mean()


def flat(case: Case, rows: list[data.Row], folders: data.Folders) -> tuple[float, float]:
    """Loss and gradient norm by the flat references: padded rows, no library of ours."""
    how = {"lr": 1e-12, "max_grad_norm": 1e9}
    if case.method == "reward_model":
        model = plain(folders.reward, AutoModelForSequenceClassification)
        batch = [(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]], [1, 2]) for row in rows]
        (found,), _ = flat_reward.run(model, [batch], **how)
        return found["loss"], found["grad_norm"]
    policy = plain(folders.model)
    if case.method == "sft":
        (found,), _ = flat_sft.run(policy, [answers(rows, "chosen_ids")], **how)
        return found["loss"], found["grad_norm"]
    if case.method in ("dpo", "ipo"):
        batch = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"], 1.0) for row in rows]
        kind = "dpo" if case.method == "dpo" else "ipo averaged"
        (found,), _ = flat_dpo.run(policy, plain(folders.ref), [batch], kind, 0.1, **how)
        return found["loss"], found["grad_norm"]
    loss = flat_loss(case, rows, folders, policy)
    loss.backward()
    return float(loss.detach()), float(torch.nn.utils.clip_grad_norm_(policy.parameters(), 1e9))


@pytest.mark.parametrize("case", [c for c in CASES if not c.changed], ids=lambda c: c.name)
def test_our_side_is_the_flat_reference(case: Case, rows: list[data.Row], folders: data.Folders) -> None:
    """In float32, on a model whose padding token ends turns."""
    mine = ours.run(case, rows, folders)[0]
    loss, norm = flat(case, rows, folders)
    assert mine["loss"] == pytest.approx(loss, rel=2e-6)
    assert mine["grad_norm"] == pytest.approx(norm, rel=2e-5)
    assert set(case.numbers) <= set(mine)  # what is compared with TRL is there


def test_rows_are_pairs_of_prompts_of_their_own(rows: list[data.Row], folders: data.Folders) -> None:
    assert len({tuple(row["prompt_ids"]) for row in rows}) == ROWS
    assert [row["label"] for row in rows] == [True, False, True, False]
    end = json.loads((folders.model / "config.json").read_text())["pad_token_id"]
    assert all(row[f"{side}_ids"][-1] == end for row in rows for side in ("chosen", "rejected"))
    with pytest.raises(SystemExit, match="not 10000"):
        data.rows_of(folders.model.parent / "tiny.jsonl", folders.model, 10_000, 100)


def test_the_table_tells_agreement_from_difference_and_definition(tmp_path: Path) -> None:
    case = Case("dpo", "dpo", numbers={"margin": "rewards/margins", "chosen_reward": "rewards/chosen"})
    mine = {"loss": 0.5, "margin": 1e-3, "chosen_reward": 2.0, "grad_norm": 3.0}
    free = {"loss": 0.50001, "rewards/margins": 1.1e-3, "rewards/chosen": 2.1, "grad_norm": 3.0}
    numbers = agree.numbers_of(case, mine, free, {"grad_norm": 2.5})
    assert [n.agrees for n in numbers] == [True, True, False, True, None]  # a margin counts against the largest reward
    console = Console(width=150, record=True, file=(tmp_path / "out").open("w"))
    table.show(numbers, {"dpo": "why"}, console)
    text = console.export_text()
    assert "agree within 0.0001: 3, differ: 1" in text
    assert "dpo: why" in text
    alone = agree.numbers_of(case, mine, {}, {})
    assert {n.agrees for n in alone} == {None}
    apart = agree.numbers_of(next(c for c in CASES if c.name == "orpo"), mine, {**free, "log_odds_chosen": 1e-3}, {})
    assert [n.agrees for n in apart] == [None, True, None, None]


def test_cases_are_chosen_by_their_names() -> None:
    assert [c.name for c in chosen("orpo,dpo")] == ["dpo", "orpo", "orpo:answers"]
    with pytest.raises(SystemExit, match="no case begins with 'dqo'"):
        chosen("dqo")


def test_without_trl_our_side_is_shown_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    words = ["--tiny", "--work", str(tmp_path), "--steps", "2", "--only", "dpo", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["agree", *words, "--peers", str(tmp_path / "none")])
    agree.main()
    said = capsys.readouterr().out
    assert "our side alone" in said
    found = json.loads((tmp_path / "agree.json").read_text())
    assert {n["theirs"] for n in found["numbers"]} == {None}
    assert len(found["run"]["ours"]) == 2
    assert found["run"]["ours"][0]["margin"] == 0  # from the reference on


def test_what_trl_is_told(folders: data.Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own environment without ours; a failure names its log."""
    seen = {}

    def run(command: list[str], **how: Any) -> Any:
        seen.update(command=command, env=how["env"])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setenv("PYTHONPATH", "src")
    monkeypatch.setattr(subprocess, "run", run)
    jobs = [peer.job(case, folders, batch=ROWS) for case in CASES]
    with pytest.raises(SystemExit, match=r"see .*step\.log"):
        peer.run(Path("python"), jobs, {"rows": []}, tmp_path / "step.json", 1)
    assert "PYTHONPATH" not in seen["env"]
    told = json.loads((tmp_path / "step.work.json").read_text())
    assert [job["model"] == str(folders.reward) for job in told["jobs"]] == [c.trainer == "reward" for c in CASES]


@pytest.mark.slow
def test_trl_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Every case and 20 steps of DPO on a tiny model, where PEERS_WORK names the peers' folder."""
    if peer.python_of(peer.peers_folder()) is None:
        pytest.skip(f"{PEERS} are not here: PEERS_WORK does not name their folder")
    monkeypatch.setattr(sys, "argv", ["agree", "--tiny", "--work", str(tmp_path), "--threads", "1"])
    agree.main()
    assert "differ: 0" in capsys.readouterr().out
    run = json.loads((tmp_path / "agree.json").read_text())["run"]
    losses = [[row["loss"] for row in run[side]] for side in ("ours", "trl")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

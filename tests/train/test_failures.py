"""What ends one rank is said by it, by name, and ends the job at once."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.train.processes import Outcome, at_step, start_ranks

AT_ONCE = 40
"""Seconds, start and imports on a busy machine included; peers used to wait for half an hour."""


def _fault(name: str) -> None:
    raise ValueError(f"a fault of {name}")


def _refusal() -> None:
    raise OSError(28, "No space left on device", "/scratch/x")


def _raises(where: int, rank: int, argv: list[str]) -> None:
    if rank == where:
        at_step(3, partial(_fault, f"rank {rank}"))


def _raises_everywhere(rank: int, argv: list[str]) -> None:
    at_step(3, partial(_fault, f"rank {rank}"))


def _raises_while_another_is_deaf(rank: int, argv: list[str]) -> None:
    """A peer inside NCCL takes no notice of closed connections, nor of signals."""
    at_step(3, partial(_fault, "rank 1") if rank == 1 else partial(time.sleep, 600))


def _is_killed(where: int, rank: int, argv: list[str]) -> None:
    if rank == where:
        at_step(3, partial(os.kill, os.getpid(), signal.SIGKILL))


def _is_refused(rank: int, argv: list[str]) -> None:
    if rank == 1:
        at_step(3, _refusal)


def _cannot_import(rank: int, argv: list[str]) -> None:
    import megatron_grow.train.preflight as preflight

    if rank == 1:
        preflight.find_start = partial(_fault, "rank 1")


def _mistakes(rank: int, argv: list[str]) -> None:
    if rank == 1:
        argv += ["--train.train_itters", "5"]


def _run(workplace: Path, tmp_path: Path, accident: Any, *options: str) -> list[Outcome]:
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(tmp_path / "run")]
    outcomes = start_ranks(tmp_path, [*argv, *options], accident)
    assert all(outcome.code != 0 for outcome in outcomes), outcomes
    assert all(outcome.seconds < AT_ONCE for outcome in outcomes), outcomes
    return outcomes


def _lines(outcome: Outcome) -> list[str]:
    return [line for line in outcome.errors.splitlines() if line.startswith("error")]


@pytest.mark.parametrize("where", [0, 1])
def test_a_fault_of_one_rank(workplace: Path, tmp_path: Path, where: int) -> None:
    outcomes = _run(workplace, tmp_path, partial(_raises, where))
    assert outcomes[where].errors.count("Traceback") == 1
    [line] = _lines(outcomes[where])
    assert line.startswith(f"error on rank {where} (")
    assert line.endswith(f"ValueError: a fault of rank {where}")
    assert outcomes[where].errors.endswith(line + "\n"), "the message comes last"
    assert outcomes[1 - where].errors == ""


def test_a_fault_of_all_ranks_is_said_once(workplace: Path, tmp_path: Path) -> None:
    outcomes = _run(workplace, tmp_path, _raises_everywhere)
    said = "".join(outcome.errors for outcome in outcomes)
    assert said.count("Traceback") == 1 and said.count("a fault of rank") == 2, said


def test_a_peer_that_hears_nothing_is_ended(workplace: Path, tmp_path: Path) -> None:
    outcomes = _run(workplace, tmp_path, _raises_while_another_is_deaf)
    assert "error on rank 1" in outcomes[1].errors and outcomes[0].errors == ""


@pytest.mark.parametrize("where", [0, 1])
def test_a_killed_rank_ends_the_others(workplace: Path, tmp_path: Path, where: int) -> None:
    outcomes = _run(workplace, tmp_path, partial(_is_killed, where))
    assert outcomes[where].code == -signal.SIGKILL
    assert "Traceback" not in outcomes[1 - where].errors
    if where == 1:  # with rank 0 goes the place where ranks leave word for each other
        [line] = _lines(outcomes[0])
        assert line.startswith("error on rank 0 (") and "lost another rank" in line


def test_a_refusal_of_one_ranks_file_system_is_one_line(workplace: Path, tmp_path: Path) -> None:
    outcomes = _run(workplace, tmp_path, _is_refused)
    assert outcomes[0].errors == "" and outcomes[1].errors.count("\n") == 1
    assert outcomes[1].errors.startswith("error on rank 1 (")
    assert outcomes[1].errors.endswith("No space left on device: '/scratch/x'\n")


def test_a_fault_before_the_ranks_have_agreed(workplace: Path, tmp_path: Path) -> None:
    outcomes = _run(workplace, tmp_path, _cannot_import)
    assert outcomes[0].errors == "" and "error on rank 1 (" in outcomes[1].errors


def test_a_mistake_that_one_rank_alone_finds(workplace: Path, tmp_path: Path) -> None:
    outcomes = _run(workplace, tmp_path, _mistakes)
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert outcomes[0].errors.startswith("error: rank 1 on ")
    assert "train_itters" in outcomes[0].errors and outcomes[0].errors.count("\n") == 1
    assert outcomes[1].errors == ""
    assert not (tmp_path / "run").exists(), "nothing is written"

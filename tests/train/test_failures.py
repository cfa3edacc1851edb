"""What ends one rank is said by it, by name, and ends the job at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.train.processes import Outcome, at_step, start_ranks

AT_ONCE = 200
"""Seconds, starts of all on a busy machine included; peers used to wait for half an hour."""


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


ACCIDENTS: dict[str, Callable[[int, list[str]], None]] = {
    "a fault of rank 0": partial(_raises, 0),
    "a fault of rank 1": partial(_raises, 1),
    "a fault of all": _raises_everywhere,
    "a fault beside a deaf rank": _raises_while_another_is_deaf,
    "rank 0 is killed": partial(_is_killed, 0),
    "rank 1 is killed": partial(_is_killed, 1),
    "a refusal": _is_refused,
    "a fault before the start": _cannot_import,
    "a mistake": _mistakes,
}
Runs = dict[str, "Future[list[Outcome]]"]


@pytest.fixture(scope="module")
def runs(workplace: Path) -> Iterator[Runs]:
    """All at once: they wait longer than they compute."""
    with ThreadPoolExecutor(len(ACCIDENTS)) as pool:
        yield {what: pool.submit(_run, workplace, what) for what in ACCIDENTS}


def _run(workplace: Path, what: str) -> list[Outcome]:
    logs = workplace / f"logs of {what}"
    logs.mkdir()
    argv = ["--config", str(workplace / "run.yaml"), "--run.output_dir", str(workplace / what)]
    outcomes = start_ranks(logs, argv, ACCIDENTS[what], timeout=AT_ONCE)
    assert all(outcome.code != 0 for outcome in outcomes), outcomes
    return outcomes


def _lines(outcome: Outcome) -> list[str]:
    return [line for line in outcome.errors.splitlines() if line.startswith("error")]


@pytest.mark.parametrize("where", [0, 1])
def test_a_fault_of_one_rank(runs: Runs, where: int) -> None:
    outcomes = runs[f"a fault of rank {where}"].result()
    assert outcomes[where].errors.count("Traceback") == 1
    [line] = _lines(outcomes[where])
    assert line.startswith(f"error on rank {where} (")
    assert line.endswith(f"ValueError: a fault of rank {where}")
    assert outcomes[where].errors.endswith(line + "\n"), "the message comes last"
    assert outcomes[1 - where].errors == ""


def test_a_fault_of_all_ranks_is_said_once(runs: Runs) -> None:
    outcomes = runs["a fault of all"].result()
    said = "".join(outcome.errors for outcome in outcomes)
    assert said.count("Traceback") == 1 and said.count("a fault of rank") == 2, said


def test_a_peer_that_hears_nothing_is_ended(runs: Runs) -> None:
    outcomes = runs["a fault beside a deaf rank"].result()
    assert "error on rank 1" in outcomes[1].errors and outcomes[0].errors == ""


@pytest.mark.parametrize("where", [0, 1])
def test_a_killed_rank_ends_the_others(runs: Runs, where: int) -> None:
    outcomes = runs[f"rank {where} is killed"].result()
    assert outcomes[where].code == -signal.SIGKILL
    assert "Traceback" not in outcomes[1 - where].errors
    if where == 1:  # with rank 0 goes the place where ranks leave word for each other
        [line] = _lines(outcomes[0])
        assert line.startswith("error on rank 0 (") and "lost another rank" in line


def test_a_refusal_of_one_ranks_file_system_is_one_line(runs: Runs) -> None:
    outcomes = runs["a refusal"].result()
    assert outcomes[0].errors == "" and outcomes[1].errors.count("\n") == 1
    assert outcomes[1].errors.startswith("error on rank 1 (")
    assert outcomes[1].errors.endswith("No space left on device: '/scratch/x'\n")


def test_a_fault_before_the_ranks_have_agreed(runs: Runs) -> None:
    outcomes = runs["a fault before the start"].result()
    assert outcomes[0].errors == "" and "error on rank 1 (" in outcomes[1].errors


def test_a_mistake_that_one_rank_alone_finds(runs: Runs, workplace: Path) -> None:
    outcomes = runs["a mistake"].result()
    assert [outcome.code for outcome in outcomes] == [2, 2]
    assert outcomes[0].errors.startswith("error: rank 1 on ")
    assert "train_itters" in outcomes[0].errors and outcomes[0].errors.count("\n") == 1
    assert outcomes[1].errors == ""
    assert not (workplace / "a mistake").exists(), "nothing is written"

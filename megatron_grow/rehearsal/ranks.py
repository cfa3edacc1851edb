"""All ranks of a job on this machine, forked from this process, which has imported everything."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import pickle
import signal
import sys
import time
import traceback
from pathlib import Path

from megatron_grow.config.exit_codes import ExitCode
from megatron_grow.parallel.ports import free_port
from megatron_grow.rehearsal import shim
from megatron_grow.rehearsal.rank import RankReport, Task, perform

_LINES = 20
"""Of what a rank that failed has printed."""
_PATIENCE = 10.0
"""Seconds in which the ranks of a job that has lost one end by themselves."""


def run(task: Task, directory: Path) -> list[RankReport]:
    """What each rank reports; what it prints is in a file of its own.

    Args:
        task: what they do.
        directory: for their files.
    """
    gc.collect()
    gc.freeze()  # pages stay shared as long as no collector writes to them
    try:
        with free_port() as port:
            ranks = {_fork(task, rank, port, directory): rank for rank in range(task.world_size)}
            killed = _wait(set(ranks))
    finally:
        gc.unfreeze()
    reports = [_report(task, rank, directory) for rank in ranks.values()]
    for process, by in killed.items():
        reports[ranks[process]].killed_by = by
    return reports


def _fork(task: Task, rank: int, port: int, directory: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        _redirect(directory / f"rank_{rank}.log")
        _join(task, rank, port)
        report = perform(task, rank)
        (directory / f"rank_{rank}.pickle").write_bytes(pickle.dumps(report))
        code = int(report.failure is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)


def _join(task: Task, rank: int, port: int) -> None:
    """Be the rank that torchrun would have started."""
    for name in [*os.environ]:
        if name.startswith(("TORCHELASTIC_", "SLURM_")):
            del os.environ[name]
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(task.world_size),
        LOCAL_RANK=str(rank % shim.DEVICES),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )


def _wait(processes: set[int]) -> dict[int, int]:
    """Until all have ended; soon after one has failed, the others are ended.

    Returns:
        Those that a signal from elsewhere has ended, and its number.
    """
    deadline, ours, killed = math.inf, set[int](), {}
    while processes:
        for process in [*processes]:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                processes.discard(process)
                if os.WIFSIGNALED(status) and process not in ours:
                    killed[process] = os.WTERMSIG(status)
                if status:
                    deadline = min(deadline, time.monotonic() + _PATIENCE)
        if time.monotonic() > deadline:
            for process in processes:
                os.kill(process, signal.SIGKILL)
            ours |= processes
            deadline = math.inf
        time.sleep(0.05)
    return killed


def _report(task: Task, rank: int, directory: Path) -> RankReport:
    report = RankReport(rank, rank in task.passes)
    with contextlib.suppress(FileNotFoundError):  # ended from outside, or by another's failure
        report = pickle.loads((directory / f"rank_{rank}.pickle").read_bytes())
    if report.code not in (ExitCode.DONE, ExitCode.STOPPED):
        printed = (directory / f"rank_{rank}.log").read_text(errors="replace")
        report.said = "\n".join(printed.splitlines()[-_LINES:])
    return report

"""One rank of a rehearsal, in a process of its own."""

from __future__ import annotations

import os
import resource
import threading
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_grow.config.exit_codes import ExitCode
from megatron_grow.cost.devices import Device
from megatron_grow.inputs.errors import one_line
from megatron_grow.parallel.failure import lost_a_rank
from megatron_grow.rehearsal import compiled, cuda, imports, shortened  # noqa: F401
from megatron_grow.rehearsal.collectives import replace_nccl
from megatron_grow.rehearsal.half_fake import HalfFake
from megatron_grow.rehearsal.phases import Phases
from megatron_grow.rehearsal.places import raised_at
from megatron_grow.train import entry
from megatron_grow.train.loop import Loop


@dataclass(frozen=True)
class Task:
    """What the ranks of a job do."""

    argv: list[str]
    """Of ``pretrain_progressive.py``."""
    world_size: int
    device: Device
    passes: frozenset[int]
    """Ranks that go through forward and backward passes; others take part in all else."""
    steps: int
    """At the beginning of each stage."""
    stop: bool
    """Whether the run is stopped in its last stage."""
    saves: bool
    """Whether checkpoints are written."""


@dataclass
class RankReport:
    """What a rank has to tell."""

    rank: int
    passes: bool
    code: int = ExitCode.FAILED
    failure: dict[str, Any] | None = None
    said: str = ""
    """The end of what it printed, where it did not end as it should."""
    killed_by: int | None = None
    """The signal that ended it from outside the job."""
    phases: list[dict[str, Any]] = field(default_factory=list)
    resident: dict[int, dict[str, int]] = field(default_factory=dict)
    sockets: int = 0
    threads: int = 0
    host_memory: int = 0
    """Resident bytes of this process at most, those that all ranks share included."""


def perform(task: Task, rank: int) -> RankReport:
    """Run the command as rank ``rank``; this process is good for nothing else afterwards."""
    report = RankReport(rank, rank in task.passes)
    torch.set_num_threads(1)
    mode = HalfFake()
    cuda.install(task.device, mode.wait)
    replace_nccl()
    compiled.stand_in(mode.memory)
    if not task.saves:
        shortened.skip_saves()
    phases = Phases(mode)
    shortened.skip_steps(task.steps, task.stop)
    shortened.skip_micro_batches()
    shortened.skip_evaluations()
    shortened.skip_fresh_values()
    shortened.skip_shards_of_others()
    shortened.read_in_turn()
    if not report.passes:
        shortened.skip_passes()
    _note_failures(report, phases)
    _note_resources(report)
    try:
        with mode:
            report.code = entry.main(task.argv)
    finally:
        report.phases = [phase.to_dict() for phase in phases.found.values()]
        report.resident = phases.resident
        # KiB on Linux.
        report.host_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return report


def _note_failures(report: RankReport, phases: Phases) -> None:
    tell = entry.report

    def told(error: Exception, watch: Any) -> ExitCode:
        report.failure = {
            "type": type(error).__name__,
            "message": one_line(error) or str(error).strip(),
            "place": raised_at(error),
            "lost": lost_a_rank(error),
            "stage": phases.stage,
            "phase": phases.within,
        }
        return tell(error, watch)

    entry.report = told


def _note_resources(report: RankReport) -> None:
    """Count after each step what a process has besides memory."""
    step = Loop.step

    def counted(self: Loop, batches: Any) -> None:
        step(self, batches)
        report.sockets = max(report.sockets, _sockets())
        report.threads = max(report.threads, threading.active_count(), _threads())

    Loop.step = counted  # type: ignore[method-assign]


def _sockets() -> int:
    found = 0
    for entry_ in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{entry_}").startswith("socket:")
        except OSError:  # the directory's own
            continue
    return found


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))

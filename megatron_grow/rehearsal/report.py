"""What a rehearsal has found, as text and as JSON."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table

from megatron_grow.inputs.numbers import spans
from megatron_grow.rehearsal.phases import GRADIENTS, OPTIMIZER, PARTS, WEIGHTS
from megatron_grow.rehearsal.rank import RankReport
from megatron_grow.rehearsal.rehearse import Rehearsal, checkpoint_size

CAVEATS = (
    "Values mean nothing: what is read from a GPU is 0 or 1, so that no gradient is clipped and no "
    "rule ends a stage. The order of NCCL's messages and the fragmentation of memory are not "
    "rehearsed; nor is time: seconds are of this machine's CPU."
)
_RESIDENT = "resident"
_MEMORY = (_RESIDENT, "growth", "training", "evaluation", "save", "load")
"""What there is at all times; then phases whose peaks are told."""
_HELD = (WEIGHTS, GRADIENTS, OPTIMIZER)
_LINES = 8
"""Lines of code in the text that wait for the device; JSON has all."""


def to_dict(found: Rehearsal) -> dict[str, Any]:
    """Everything, as JSON has it."""
    return {
        "run": found.config.run.name,
        "world_size": found.world_size,
        "gpu_memory": found.device.memory,
        "caveats": CAVEATS,
        "saves": found.saves,
        "completed": not found.failed,
        "killed": [rank.rank for rank in _killed(found)],
        "fits": highest(found)[0] <= found.device.memory,
        "jobs": {job: [asdict(rank) for rank in ranks] for job, ranks in found.jobs.items()},
    }


def highest(found: Rehearsal) -> tuple[int, str]:
    """The most that any rank has on its device, in bytes, and where."""
    return max(
        (
            (phase["peak"], f"rank {rank.rank}, {phase['name']} in stage {phase['stage']}")
            for _, rank, phase in _phases(found)
        ),
        default=(0, "nothing was built"),
    )


def render(found: Rehearsal) -> Group:
    """For people."""
    return Group(*_parts(found))


def _parts(found: Rehearsal) -> Iterator[RenderableType]:
    device = decimal(int(found.device.memory))
    yield f"Rehearsal of {found.config.run.name}: {found.world_size} ranks of {device} each."
    yield CAVEATS
    if not found.saves:
        size = decimal(checkpoint_size(found.config, found.stages[-1]))
        yield f"No save and no resume were rehearsed: a checkpoint would take {size}."
    for stage in found.stages:
        layout = stage.parallel.describe(found.world_size)
        title = f"\nStage {stage.index}: {stage.model.num_layers} layers, {layout}"
        yield title
        yield _memory(found, stage.index)
        yield _messages(found, stage.index)
        yield _host_waits(found, stage.index)
    yield from _verdict(found)


def _phases(found: Rehearsal) -> Iterator[tuple[str, RankReport, dict[str, Any]]]:
    for job, ranks in found.jobs.items():
        for rank in ranks:
            for phase in rank.phases:
                yield job, rank, phase


def _memory(found: Rehearsal, stage: int) -> Table:
    """Peaks of each phase, one row for ranks that are alike."""
    table = Table(
        "phase",
        "ranks",
        "peak",
        *PARTS,
        title="memory: resident, and at the peak of each phase",
        title_justify="left",
    )
    alike: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for rank, name, sizes in _sizes(found, stage):
        *parts, other = (sizes.get(part, 0) for part in PARTS)
        cells = (name, *map(_size, (sum(sizes.values()), *parts)))
        alike.setdefault(cells, []).append((rank, other))
    for cells, ranks in sorted(alike.items(), key=lambda row: _MEMORY.index(row[0][0])):
        other = max(other for _, other in ranks)
        table.add_row(cells[0], spans(rank for rank, _ in ranks), *cells[1:], _size(other))
    return table


def _sizes(found: Rehearsal, stage: int) -> Iterator[tuple[int, str, dict[str, int]]]:
    """Of ranks that go through passes: a phase, or what there is at all times, by part."""
    for rank in found.jobs["run"]:
        if rank.passes and stage in rank.resident:
            held = {part: size for part, size in rank.resident[stage].items() if part in _HELD}
            yield rank.rank, _RESIDENT, held
    for job, rank, phase in _phases(found):
        known = job == "run" or phase["name"] == "load"  # the rest is as it was in the run
        if phase["stage"] == stage and phase["name"] in _MEMORY and rank.passes and known:
            yield rank.rank, phase["name"], phase["parts"]


def _size(size: int) -> str:
    return decimal(size) if size else "-"


def _messages(found: Rehearsal, stage: int) -> Table:
    """Of the first rank that went through passes."""
    speaker = min((rank.rank for _, rank, _ in _phases(found) if rank.passes), default=0)
    columns = ("phase", "times", "message", "over", "ranks", "device", "each time", "bytes")
    title = f"messages of rank {speaker}"
    table = Table(*columns, title=title, title_justify="left")
    for job, rank, phase in _phases(found):
        told = job == "run" and rank.rank == speaker and phase["name"] in _MEMORY
        if not told or phase["stage"] != stage:
            continue
        for kind in sorted(phase["collectives"], key=lambda kind: -kind["bytes"]):
            if kind["device"] != "cuda":
                continue
            table.add_row(
                phase["name"],
                str(phase["calls"]),
                kind["kind"].strip("_"),
                kind["group"],
                str(kind["size"]),
                kind["device"],
                f"{kind['count'] / phase['calls']:g}",
                decimal(kind["bytes"] // phase["calls"]),
            )
    return table


def _host_waits(found: Rehearsal, stage: int) -> str:
    """Lines at which the host waits for the device in a step."""
    worst: Counter[str] = Counter()
    steps = 1
    for job, _, phase in _phases(found):
        if job == "run" and phase["stage"] == stage and phase["name"] == "training":
            steps = max(steps, phase["calls"])
            worst |= Counter(phase["host_waits"])
    lines = [f"  {count / steps:6.1f}  {line}" for line, count in worst.most_common(_LINES)]
    return "\n".join(["the host waits for the device, times a step and where:", *lines])


def _verdict(found: Rehearsal) -> Iterator[str]:
    ranks = [rank for job in found.jobs.values() for rank in job]
    planning = [p["seconds"] for _, _, p in _phases(found) if p["name"] == "planning"]
    yield (
        f"\nOf each process at most: {max(rank.sockets for rank in ranks)} sockets, "
        f"{max(rank.threads for rank in ranks)} threads, "
        f"{decimal(max(rank.host_memory for rank in ranks))} of host memory; "
        f"{max(planning, default=0.0):.2f} s to plan a growth."
    )
    peak, where = highest(found)
    fits = "Fits so far" if found.failed else "Fits"
    yield (
        f"{fits if peak <= found.device.memory else 'DOES NOT FIT'}: {decimal(peak)} of "
        f"{decimal(int(found.device.memory))} at most ({where})."
    )
    for job, reports in found.jobs.items():
        for failure, failed in _failures(reports).items():
            yield f"WOULD HAVE FAILED ({job}) on ranks {spans(failed)}: {failure}"
    if killed := _killed(found):
        yield _no_verdict(found, killed)
    elif found.failed and not any(_failures(reports) for reports in found.jobs.values()):
        failed_rank = next(rank for rank in ranks if rank.said)
        yield f"WOULD HAVE FAILED: rank {failed_rank.rank} said, last:\n{failed_rank.said}"


def _killed(found: Rehearsal) -> list[RankReport]:
    """Ranks that did not end by themselves."""
    return [rank for job in found.jobs.values() for rank in job if rank.killed_by is not None]


def _no_verdict(found: Rehearsal, killed: Sequence[RankReport]) -> str:
    by = signal.Signals(killed[0].killed_by or signal.SIGKILL)
    several = "s" if len(killed) > 1 else ""
    what = f"NO VERDICT on the job: {by.name} ended the process{'es' if several else ''} of "
    what += f"rank{several} {spans([rank.rank for rank in killed])}"
    if by is signal.SIGKILL:
        return (
            f"{what}. Most likely this machine has no memory left: the {found.world_size} "
            "processes take about 0.1 GB each. Make room, and rehearse again."
        )
    return f"{what}, which the job did not ask for. It printed, last:\n{killed[0].said}"


def _failures(reports: Sequence[RankReport]) -> dict[str, list[int]]:
    """What ended ranks, and which; what only tells of the end of others is left out."""
    found: dict[str, list[int]] = {}
    for rank in reports:
        if rank.failure and not rank.failure["lost"]:
            text = "{type}: {message} at {place}, in {phase} of stage {stage}".format(
                **rank.failure
            )
            found.setdefault(text, []).append(rank.rank)
    return found

"""Where the time of one step goes: kernels, gaps between them, waits of the host."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_grow.benchmark.gpu import device
from megatron_grow.benchmark.gpu.runner import Row, Task, in_worker
from megatron_grow.benchmark.gpu.shapes import Shape, Sizes
from megatron_grow.benchmark.gpu.trainer import Trainer, fitting

_LONGEST = 10
Interval = tuple[str, float, float]
"""Name, begin and end."""


def tasks(sizes: Sizes) -> list[Task]:
    """Of the full step of both shapes that fit."""
    return [
        Task("profile", shape.name, 15.0, in_worker(measure, shape), second)
        for shape, second in ((sizes.llama, False), (sizes.gpt2, True))
    ]


def measure(shape: Shape) -> Row:
    """Profile one step, and count the waits of another."""
    trainer, attempt = fitting(shape, shape.model)
    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        seconds = trainer.steps(1)
    kernels = list(_kernels(profiler))
    row: Row = {"shape": shape.name, "micro_batch_size": attempt.micro_batch_size}
    row |= {"seconds": seconds, **of_kernels(kernels), "waits": waits(trainer)}
    trainer.release()
    device.let_go()
    return row


def _kernels(profiler: profile) -> Iterator[Interval]:
    """What ran on the device; without one, what ran on the CPU."""
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    where = "CUDA" if torch.cuda.is_available() else "CPU"
    for event in profiler.profiler.kineto_results.events():
        if event.device_type().name == where and not event.is_user_annotation():
            begin = 1e-9 * event.start_ns()
            yield event.name(), begin, begin + 1e-9 * event.duration_ns()


def of_kernels(kernels: Iterable[Interval]) -> Row:
    """The longest kernels by their sums, how many there are, and how long none was running."""
    ordered = sorted(kernels, key=lambda kernel: kernel[1])
    sums, counts = defaultdict[str, float](float), Counter[str]()
    for name, begin, end in ordered:
        sums[name] += end - begin
        counts[name] += 1
    busy, reached = 0.0, ordered[0][1] if ordered else 0.0
    for _, begin, end in ordered:
        busy += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    span = reached - ordered[0][1] if ordered else 0.0
    longest = sorted(sums, key=lambda name: -sums[name])[:_LONGEST]
    return {
        "kernels": len(ordered),
        "idle": 1 - busy / span if span else None,
        "longest": [
            {
                "name": name,
                "count": counts[name],
                "seconds": sums[name],
                "share": sums[name] / sum(sums.values()),
            }
            for name in longest
        ],
    }


def waits(trainer: Trainer) -> dict[str, int]:
    """How often one step makes the host wait for the device, by the line that asks for it."""
    found = Counter[str]()
    with _told_of_waits(found):
        trainer.loop.step(trainer._micro_batches())
    device.synchronize()
    return dict(found.most_common())


@contextmanager
def _told_of_waits(found: Counter[str]) -> Iterator[None]:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if "called a synchronizing" in str(message):
            found[_asking_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")


def _asking_line() -> str:
    """The nearest line of this package or of megatron-core."""
    for frame in reversed(traceback.extract_stack()):
        parts = Path(frame.filename).parts
        roots = [i for i, part in enumerate(parts) if part in ("megatron_grow", "megatron")]
        if roots and frame.filename != __file__:
            return f"{'/'.join(parts[roots[-1] :])}:{frame.lineno}"
    return "elsewhere"

"""``tools/benchmark.py gpu``: what is measured, in which order, and where it is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_grow.benchmark.gpu import (
    ablation,
    beside,
    correctness,
    device,
    growth,
    page,
    profile,
    speed,
)
from megatron_grow.benchmark.gpu.runner import Clock, Row, Task, in_worker, run
from megatron_grow.benchmark.gpu.shapes import SIZES, Sizes
from megatron_grow.benchmark.report import machine

PARTS: dict[str, Callable[[Sizes], list[Task]]] = {
    "correctness": correctness.tasks,
    "speed": speed.tasks,
    "profile": profile.tasks,
    "beside": beside.tasks,
    "ablation": ablation.tasks,
    "growth": growth.tasks,
}
"""In order of importance."""


class Results:
    """All that is known so far; on disk after every row, so that a kill loses nothing."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        self.failed = False
        self._directory, self._sizes = directory, sizes
        self._values: dict[str, Any] = {"host": machine(), "parts": {}}
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, task: Task, row: Row) -> None:
        """Add what a task has found."""
        self.failed |= "failed" in row or not row.get("equal", True)
        if task.part == "device":
            self._values["device"] = row
        else:
            self._values["parts"].setdefault(task.part, {})[task.name] = row
        large, measured = self._sizes.large, self._values["parts"].get("speed", {})
        of_large = [row for row in measured.values() if row.get("shape") == large.name]
        self._values["extrapolated"] = speed.extrapolated(of_large, large.model)
        (self._directory / "gpu.json").write_text(json.dumps(self._values, indent=1) + "\n")
        (self._directory / "gpu.md").write_text(page.page(self._values))


def measure(
    directory: Path,
    parts: Sequence[str],
    minutes: float,
    size: str,
    say: Callable[[str], None],
) -> bool:
    """Measure ``parts`` in ``minutes`` and write ``gpu.json`` and ``gpu.md`` to ``directory``.

    Returns:
        Whether nothing failed and the GPU computed the same as the CPU.
    """
    clock, sizes = Clock(60 * minutes), SIZES[size]
    results = Results(directory, sizes)
    tasks = [Task("device", "facts", 0.0, in_worker(device.facts))]
    for name, part in PARTS.items():
        tasks += part(sizes) if name in parts else []
    tasks.sort(key=lambda task: task.second)
    run(tasks, clock, results.add, say)
    say(f"{clock.used():.0f} s; {directory / 'gpu.md'}")
    return not results.failed

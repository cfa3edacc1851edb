"""What the CPU seam costs a training step."""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path
from statistics import median

from megatron_grow.benchmark.contestants import MegatronGrow, train_section
from megatron_grow.benchmark.gang import Gang
from megatron_grow.benchmark.report import Report
from megatron_grow.config.model import ModelConfig
from megatron_grow.parallel import cpu, cpu_speed

_SEAM = {str(Path(str(module.__file__))) for module in (cpu, cpu_speed)}


class Profiled(MegatronGrow):
    """Counts the time inside the seam's own functions."""

    def profile(self, steps: int) -> dict[str, tuple[int, float]]:
        """Calls of each stand-in, and the seconds in it beside what it stands in for.

        Python's profiler makes calls slower, so the seconds are an upper bound.
        """
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(steps):
            self.step()
        profiler.disable()
        found: dict[str, tuple[int, float]] = {}
        for (file, _, name), (_, calls, own, _, callers) in _stats(profiler).items():
            if file in _SEAM:
                found[name] = _plus(found.get(name, (0, 0.0)), (calls, own))
            elif name.startswith("<built-in method builtins."):  # getattr, isinstance, ...
                for (caller, _, caller_name), (_, _, part, _) in callers.items():
                    if caller in _SEAM:
                        found[caller_name] = _plus(found.get(caller_name, (0, 0.0)), (0, part))
        return {name: (calls // steps, own / steps) for name, (calls, own) in found.items()}


def _stats(profiler: cProfile.Profile) -> dict:
    return pstats.Stats(profiler).stats  # type: ignore[attr-defined]


def _plus(one: tuple[int, float], other: tuple[int, float]) -> tuple[int, float]:
    return one[0] + other[0], one[1] + other[1]


def measure(
    model: ModelConfig, batch: int, precision: str, threads: int, repetitions: int
) -> Report:
    """Profile some steps, and time as many without the profiler."""
    train = train_section(model, batch, precision)
    with Gang(Profiled, model, train, threads=threads) as gang:
        gang.call("step")
        [found] = gang.call("profile", repetitions)
        step = median(gang.call("step")[0] for _ in range(repetitions))
    total = sum(seconds for _, seconds in found.values())
    largest_first = sorted(found.items(), key=lambda item: -item[1][1])
    rows = [[name, str(calls), f"{1e3 * own:.3f}"] for name, (calls, own) in largest_first]
    share = total / step
    rows.append([f"all: {share:.3%} of a step", "", f"{1e3 * total:.3f}"])
    return Report(
        f"The CPU seam in a training step of {step:.2f} s ({precision})",
        ["stand-in", "calls/step", "ms/step, at most"],
        rows,
        {"stand_ins": found, "seconds": total, "step_seconds": step, "share": share},
    )

"""Contestants take turns; a ratio is the median over turns, so that noise falls on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from rich.progress import track

from megatron_grow.benchmark.gang import Gang

Times = dict[str, list[float]]
"""Seconds of each turn, by contestant."""


def take_turns(gangs: Mapping[str, Gang], repetitions: int, warm_up: int = 2) -> Times:
    """Time a step of each in turn; the slowest rank counts."""
    times: Times = {name: [] for name in gangs}
    turns = [(turn, name) for turn in range(warm_up + repetitions) for name in gangs]
    for turn, name in track(turns, "steps", transient=True):
        seconds = max(gangs[name].call("step"))
        if turn >= warm_up:
            times[name].append(seconds)
    return times


def ratio(times: Times, slow: str, fast: str) -> float:
    """How many times longer ``slow`` takes than ``fast``: the median over turns."""
    return median(a / b for a, b in zip(times[slow], times[fast], strict=True))

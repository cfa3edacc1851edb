"""How what growing is worth moves with one thing: runs side by side, a power law through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Law:
    """Runs that differ in one thing."""

    over: str
    """What it is, with its unit."""
    runs: Mapping[float, str]
    """Names of the runs at each value, with ``{}`` where the source stands."""
    sources: Sequence[str]


@dataclass(frozen=True)
class Power:
    """y = c x^exponent, by least squares on logarithms."""

    exponent: float
    error: float | None
    """Of the exponent, one standard error; None of two points, which leave nothing over."""

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Power | None:
        """Through points above 0; None where fewer than two are."""
        positive = [(x, y) for x, y in points if x > 0 and y > 0]
        if len(positive) < 2:
            return None
        x, y = np.log(np.array(positive)).T
        exponent, constant = np.polyfit(x, y, 1)
        free = len(positive) - 2
        left = y - exponent * x - constant
        spread = ((x - x.mean()) ** 2).sum()
        error = float(np.sqrt((left**2).sum() / free / spread)) if free else None
        return cls(float(exponent), error)

    def __str__(self) -> str:
        return f"{self.exponent:+.2f}" + (f" ± {self.error:.2f}" if self.error is not None else "")

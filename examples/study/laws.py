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


@dataclass(frozen=True)
class Lengths:
    """Final losses of finished runs over their steps T: floor + scale / T^exponent."""

    floor: float
    scale: float
    exponent: float

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> Lengths | None:
        """Through lengths and their losses, with the best of exponents from 0.05 to 2.

        None of fewer than three lengths, and where the least exponent is best: no floor in sight.
        """
        if len(points) < 3:
            return None
        steps, losses = np.array(points).T

        def fit(exponent: float) -> tuple[float, Lengths]:
            columns = np.stack([np.ones_like(steps), steps**-exponent], 1)
            (floor, scale), *_ = np.linalg.lstsq(columns, losses, rcond=None)
            left = columns @ (floor, scale) - losses
            return float(left @ left), cls(float(floor), float(scale), exponent)

        best = min((fit(each / 100) for each in range(5, 201)), key=lambda found: found[0])[1]
        return best if best.exponent > 0.05 else None

    def enough(self, share: float, gap: float) -> float:
        """The length from which a run of ``share`` of the steps ends within ``gap``, relative."""
        more = share**-self.exponent - 1 - gap
        return float((self.scale * more / (gap * self.floor)) ** (1 / self.exponent))

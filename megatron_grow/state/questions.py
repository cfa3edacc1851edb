"""What may be asked of a source's weights before its maps are made.

An answer has the same bits however the weights are cut and in whatever order they are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf, nan, prod, sqrt
from typing import Literal

import torch

from megatron_grow.state.boxes import Box, slices, split
from megatron_grow.state.tensors import LogicalTensor

# Values converted to fp64 at a time.
_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class Question:
    """How large a source tensor's weights are: a root mean square for each entry along some axes.

    The answer is in fp64 and has the axes of ``along``, in the tensor's order.
    """

    tensor: LogicalTensor
    along: tuple[str, ...] = ("layer",)
    """Names of axes; the mean is over all others."""

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.tensor.axes]
        if unknown := set(self.along) - set(names):
            raise ValueError(f"{self.tensor.key} has no axis {min(unknown)}; it has {names}")

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """Positions of the axes of ``along``."""
        return tuple(i for i, axis in enumerate(self.tensor.axes) if axis.name in self.along)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the answer."""
        return tuple(self.tensor.shape[i] for i in self.axes)


Answers = Mapping[Question, torch.Tensor]
Weights = Iterable[tuple[Box, torch.Tensor]]
"""Boxes of a tensor, and their values."""
Everyone = Callable[[Callable[[], torch.Tensor], Literal["max", "sum"]], torch.Tensor]
"""Calls what it is given on all who take part, and reduces what they found entry by entry."""


def answer(question: Question, weights: Callable[[], Weights], everyone: Everyone) -> torch.Tensor:
    """The root mean squares that ``question`` asks for.

    Squares are rounded to so coarse a grid that 64-bit integers hold their sum, and integers add up
    alike in any order. The grid depends on the largest value, so that all are looked at twice.

    Args:
        question: about one tensor.
        weights: on each of two calls, what is at hand here of the tensor; over all who take part,
            every value is there once.
        everyone: who they are.

    Returns:
        Not a number where a value is not finite.
    """
    count = prod(question.tensor.shape) // prod(question.shape)
    largest = everyone(lambda: _largest(question, weights()), "max")
    _, exponent = torch.frexp(largest * largest * count)
    # A power of two that brings the sum of squares just below 2^62.
    grid = torch.where(largest.isinf(), 0.0, torch.ldexp(torch.ones_like(largest), 62 - exponent))
    totals = everyone(lambda: _sums_of_squares(question, weights(), grid), "sum")
    # Python divides integers of any size and rounds once.
    found = [
        sqrt(total / count / scale) if scale else nan
        for total, scale in zip(totals.flatten().tolist(), grid.flatten().tolist(), strict=True)
    ]
    return torch.tensor(found, dtype=torch.float64).view(question.shape)


def _largest(question: Question, weights: Weights) -> torch.Tensor:
    """The largest absolute value; infinite if one is not finite."""
    largest = torch.zeros(question.shape, dtype=torch.float64)
    for where, values in _few(question, weights):
        here = values.abs().amax(-1).double().cpu()
        largest[where] = largest[where].maximum(torch.where(here.isfinite(), here, inf))
    return largest


def _sums_of_squares(question: Question, weights: Weights, grid: torch.Tensor) -> torch.Tensor:
    totals = torch.zeros(question.shape, dtype=torch.int64)
    for where, values in _few(question, weights):
        squares = values.to(torch.float64, copy=True).square_()
        squares *= grid[where].unsqueeze(-1).to(values.device)
        totals[where] += squares.nan_to_num_(0.0).round_().long().sum(-1).cpu()
    return totals


def _few(question: Question, weights: Weights) -> Iterable[tuple[tuple[slice, ...], torch.Tensor]]:
    """Some values at a time, those of each entry of the answer in a row, and which these are."""
    axes, dimensions = question.axes, range(len(question.tensor.axes))
    order = (*axes, *(i for i in dimensions if i not in axes))
    for box, values in weights:
        for part in split(box, _AT_A_TIME):
            rows = values[slices(part, box)].permute(order)
            entries = tuple(part[i] for i in axes)
            yield slices(entries), rows.reshape(*rows.shape[: len(axes)], -1)

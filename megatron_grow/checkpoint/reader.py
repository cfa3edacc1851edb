"""What every checkpoint format looks like to those who read it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import torch

from megatron_grow.checkpoint.record import Record
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import Box, full, shape_of, volume
from megatron_grow.state.finite import is_finite
from megatron_grow.state.kinds import MAIN_PARAM, describe
from megatron_grow.state.materialise import Read
from megatron_grow.state.tensors import LogicalTensor


class Reader(ABC):
    """A stored training state, or weights alone; opening one reads no tensor."""

    path: Path
    """The directory."""
    format: str
    """For people."""
    layout: str
    """For people: how it is cut, for example ``TP2 PP2``."""
    record: Record
    """Where training stands, and the model's shape."""
    tensors: dict[str, LogicalTensor]
    """Of the model, by key."""
    of_a_run: bool = True
    """Whether a run wrote it; else the record is that of a run which begins with these weights."""
    left_behind: tuple[str, ...] = ()
    """Files of optimizer state that cannot be read."""
    notes: tuple[str, ...] = ()
    """What people are told of it who look at it or convert it."""

    @abstractmethod
    def dtype(self, key: str, kind: str) -> torch.dtype:
        """Of the stored values; weights that no optimizer keeps in fp32 may be less precise."""

    @abstractmethod
    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``, in fine axes, of that shape and of the stored dtype.

        Safe to call from several threads; what it returns is not written to.

        Raises:
            UserError: they cannot be read, or are damaged.
        """

    def kinds(self, key: str) -> tuple[str, ...]:
        """``main_param`` and, where there is an optimizer, the moments of one tensor."""
        return (MAIN_PARAM,)

    @property
    def trains(self) -> bool:
        """Whether there is an optimizer's state."""
        return any(len(self.kinds(key)) > 1 for key in self.tensors)

    def names(self, key: str) -> Iterable[str]:
        """All names under which state of one tensor is stored; rounded weights have their own."""
        return [describe(key, kind) for kind in self.kinds(key)]

    def read_stored(self, name: str, key: str, box: Box) -> torch.Tensor:
        """As :meth:`read`, the values of ``key`` that are stored under one of its ``names``."""
        kind = next(kind for kind in self.kinds(key) if name == describe(key, kind))
        return self.read(key, kind, box)

    def origin(self, key: str, kind: str) -> tuple[str, int]:
        """How a tensor comes to be, for people, and the bytes that are read for it."""
        return "the same", volume(full(self.tensors[key].shape)) * self.dtype(key, kind).itemsize

    def check_shards(self, part: int = 0, parts: int = 1) -> None:  # noqa: B027
        """Look whether all files are of one save, if they tell, without reading their values.

        Args:
            part: which share of them; ranks look at one each.
            parts: how many shares there are.

        Raises:
            UserError: one is of another.
        """

    def logits(self, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """What the model makes of ``tokens`` in the library that its format belongs to.

        Args:
            tokens: ids, (samples, length).
            dtype: to which weights are rounded; what follows is calculated in fp32.

        Returns:
            (samples, length, vocabulary), fp32; None: there is no such library.

        Raises:
            UserError: the library is not installed.
        """
        return None


def as_promised(
    values: torch.Tensor, path: Path, name: str, box: Box, dtype: torch.dtype
) -> torch.Tensor:
    """``values``, which the reader of ``path`` has made of ``box``.

    Raises:
        UserError: they are of another shape or dtype than :meth:`Reader.read` says.
    """
    found, expected = (tuple(values.shape), values.dtype), (shape_of(box), dtype)
    if found != expected:
        raise UserError(
            f"{path}: the reader of its format returns {name} as {found[0]} {found[1]}, "
            f"not as {expected[0]} {expected[1]}"
        )
    return values


def not_finite(source: Reader, key: str, kind: str) -> UserError:
    """The error of a tensor that holds NaN or infinite values."""
    return UserError(
        f"{source.path}: {describe(key, kind)} is not finite; take a checkpoint from before the "
        "run diverged"
    )


def finite(source: Reader) -> Read:
    """Reads ``source``, and raises :class:`UserError` where it holds NaN or infinite values."""

    def read(key: str, kind: str, box: Box) -> torch.Tensor:
        values = source.read(key, kind, box)
        if not is_finite(values):
            raise not_finite(source, key, kind)
        return values

    return read

"""What every checkpoint format looks like to those who read it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from megatron_grow.checkpoint.record import Record
from megatron_grow.config.errors import UserError
from megatron_grow.state.boxes import Box
from megatron_grow.state.finite import is_finite
from megatron_grow.state.kinds import describe
from megatron_grow.state.materialise import Read
from megatron_grow.state.tensors import LogicalTensor


class Reader(Protocol):
    """A stored training state, or weights alone; opening one reads no tensor."""

    path: Path
    """The directory."""
    format: str
    """For people: ``torch_dist``, ``legacy torch`` or ``Hugging Face``."""
    layout: str
    """For people: how it is cut, for example ``TP2 PP2``."""
    record: Record
    """Where training stands, and the model's shape."""
    tensors: dict[str, LogicalTensor]
    """Of the model, by key."""

    def kinds(self, key: str) -> tuple[str, ...]:
        """``main_param`` and, where there is an optimizer, the moments of one tensor."""
        ...

    def dtype(self, key: str, kind: str) -> torch.dtype:
        """Of the stored values; weights that no optimizer keeps in fp32 may be less precise."""
        ...

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``, in fine axes, of that shape and of the stored dtype.

        Safe to call from several threads.

        Raises:
            UserError: they cannot be read, or are damaged.
        """
        ...


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

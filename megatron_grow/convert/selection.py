"""Which state of a checkpoint is converted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from megatron_grow.checkpoint.formats import Formats
from megatron_grow.checkpoint.open import open_reader
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import Box


class WeightsOnly(Reader):
    """A source without its optimizer state."""

    def __init__(self, source: Reader) -> None:
        """Nothing is read."""
        self.path, self.format, self.layout = source.path, source.format, source.layout
        self.of_a_run = source.of_a_run
        self.record = replace(source.record, optimizer_step=0)
        self.tensors = source.tensors
        self._source = source

    def dtype(self, key: str, kind: str) -> torch.dtype:
        """Of the stored values."""
        return self._source.dtype(key, kind)

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``."""
        return self._source.read(key, kind, box)


def open_weights(path: Path, weights_only: bool, also: Formats = (), *, once: bool) -> Reader:
    """Open a checkpoint, with its optimizer state unless that is not wanted.

    Args:
        path: as :func:`open_reader` has it.
        weights_only: whether to leave the optimizer's state behind.
        also: formats to recognise before those that are built in.
        once: whether values are read only once.

    Raises:
        UserError: damaged, or with optimizer state that cannot be read.
    """
    source = open_reader(path, also=also, once=once)
    if source.left_behind and not weights_only:
        raise UserError(
            f"{source.path} has optimizer state ({source.left_behind[0]}) in a format that "
            "cannot be read; pass --weights-only to convert the weights alone"
        )
    return WeightsOnly(source) if weights_only else source

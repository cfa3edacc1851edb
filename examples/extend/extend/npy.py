"""A checkpoint format: one ``.npy`` file for each kind of state of each tensor.

convert_checkpoint.py reshard SRC DST --format extend.npy:Npy
convert_checkpoint.py inspect DST --source-format extend.npy:Npy
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record, read_record
from megatron_grow.checkpoint.writer import Blocks, Writer
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import Box, slices
from megatron_grow.state.kinds import MAIN_PARAM, describe


@dataclass(frozen=True)
class Npy(Format):
    """A directory for each tensor with its weights and moments in fp32."""

    title, mark = "npy", f"*/{MAIN_PARAM}.npy"
    optimizer_state = resumes = True
    precisions = ("fp32",)

    @classmethod
    def open(cls, directory: Path, *, once: bool = False) -> Reader:
        """See :meth:`Format.open`."""
        return NpyReader(directory)

    def writer(self, directory: Path, source: Reader, record: Record) -> Writer:
        """See :meth:`Format.writer`."""
        return NpyWriter(directory, source, record)


class NpyReader(Reader):
    """Values are read by mapping a file; see :class:`Reader`."""

    format, layout = "npy", "any layout"

    def __init__(self, path: Path) -> None:
        """Read the record; the files say which kinds of state there are."""
        self.path, self.record = path, read_record(path)
        self.tensors = logical_tensors(self.record.model_config)

    def kinds(self, key: str) -> tuple[str, ...]:
        """One for each file."""
        found = {file.stem for file in (self.path / key).glob("*.npy")} - {MAIN_PARAM}
        return (MAIN_PARAM, *sorted(found))

    def dtype(self, key: str, kind: str) -> torch.dtype:
        """fp32."""
        return torch.float32

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``."""
        values = np.load(self.path / key / f"{kind}.npy", mmap_mode="r")
        return torch.from_numpy(values[slices(box)].copy())


class NpyWriter(Writer):
    """Blocks are written into mapped files, in any order; see :class:`Writer`."""

    companions = (RECORD,)

    def __init__(self, directory: Path, source: Reader, record: Record) -> None:
        """Nothing is written yet."""
        self.directory, self._source, self._record = directory, source, record

    def stored(self, key: str, kind: str) -> dict[str, torch.dtype]:
        """Every kind of state, once."""
        return {describe(key, kind): torch.float32}

    def prepare(self) -> None:
        """Make all files at their full size, with their headers."""
        for key, tensor in self._source.tensors.items():
            (self.directory / key).mkdir(parents=True)
            for kind in self._source.kinds(key):
                path = self.directory / key / f"{kind}.npy"
                np.lib.format.open_memmap(path, "w+", np.float32, tensor.shape)

    def write(self, task: int, blocks: Blocks) -> None:
        """Write blocks to where they belong."""
        for block, named in blocks:
            path = self.directory / block.key / f"{block.kind}.npy"
            values = np.load(path, mmap_mode="r+")
            values[slices(block.box)] = named[describe(block.key, block.kind)].numpy()
            values.flush()  # to the disk

    def finish(self, tables: list[Any]) -> None:
        """Write the record."""
        (self.directory / RECORD).write_text(self._record.to_json())

    def reopen(self) -> NpyReader:
        """What was written."""
        return NpyReader(self.directory)

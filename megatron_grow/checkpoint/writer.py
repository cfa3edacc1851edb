"""What every checkpoint format looks like to those who write it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from megatron_grow.checkpoint.manifest import Shard
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.state.boxes import Box


@dataclass(frozen=True)
class Block:
    """A box of one kind of state of a logical tensor: what is made and written at a time."""

    key: str
    kind: str
    box: Box
    """In fine axes; contiguous in the whole tensor."""


Blocks = Iterable[tuple[Block, dict[str, torch.Tensor]]]
"""With their values under each stored name: of the box's shape, of the stored dtype."""


class Writer(ABC):
    """A checkpoint that is being written, into a directory that is no checkpoint yet.

    One process calls ``prepare`` and at the end ``finish``; between them any process and thread
    does tasks, each once.
    """

    directory: Path
    companions: tuple[str, ...] = ()
    """Names of files that hold no tensors, once all is written."""
    shards: Mapping[str, Shard] = MappingProxyType({})
    """Files of chunks of tensors, once all is written; none where a format has no chunks."""

    @abstractmethod
    def stored(self, key: str, kind: str) -> dict[str, torch.dtype]:
        """Under which names this kind of ``key`` is stored, and as what; none: it is left out.

        More than one for weights of a mixed-precision run, stored rounded and in fp32.
        """

    def prepare(self) -> None:
        """Before the first task."""
        self.directory.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def write(self, task: int, blocks: Blocks) -> Any:
        """Write some blocks, asked for one at a time.

        Args:
            task: their number among all tasks of the conversion.
            blocks: with their values.

        Returns:
            What ``finish`` needs to know of it; can be pickled.

        Raises:
            OSError: the disk is full, or fails; with the path.
        """

    @abstractmethod
    def finish(self, tables: list[Any]) -> None:
        """After the last task.

        Args:
            tables: what ``write`` returned, by task.
        """

    @abstractmethod
    def reopen(self) -> Reader:
        """Open what was written as its readers will."""

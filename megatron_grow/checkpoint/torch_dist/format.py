"""Megatron-core's sharded format: what runs save in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.manifest import Shard
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.torch_dist.names import COMMON, COMPLETE, METADATA
from megatron_grow.checkpoint.writer import Writer
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class TorchDist(Format):
    """Megatron-core's sharded format, read under any layout."""

    title, mark = "torch_dist", COMPLETE
    optimizer_state = resumes = layouts = True
    identifying = (METADATA, COMMON)

    @classmethod
    def open(cls, directory: Path, *, once: bool = False) -> Reader:
        """See :meth:`Format.open`."""
        from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader

        return TorchDistReader(directory, once=once)

    @classmethod
    def record(cls, directory: Path) -> Record:
        """Without the table of chunks."""
        from megatron_grow.checkpoint.torch_dist.record import record_of

        return record_of(directory)

    def writer(self, directory: Path, source: Reader, record: Record) -> Writer:
        """See :meth:`Format.writer`."""
        from megatron_grow.checkpoint.torch_dist.writer import TorchDistWriter

        return TorchDistWriter(
            directory,
            record,
            source.tensors,
            {key: source.kinds(key) for key in source.tensors},
            keeps_main=source.trains,
            tensor_parallel=ParallelConfig(**record.parallel).tensor_model_parallel_size,
        )

    @classmethod
    def save(
        cls,
        directory: Path,
        record: Record,
        pieces: Sequence[Piece],
        tensors: dict[str, LogicalTensor],
        *,
        with_optimizer: bool,
        group: dist.ProcessGroup | None,
    ) -> tuple[Iterable[str], dict[str, Shard]]:
        """See :meth:`Format.save`."""
        from megatron_grow.checkpoint.torch_dist.save import save

        return save(directory, record, pieces, tensors, with_optimizer, group)

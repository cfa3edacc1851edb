"""Write a ``torch_dist`` checkpoint block by block, without the model and without a job."""

from __future__ import annotations

import os
import pickle
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_grow.checkpoint.companions import COMPANIONS, extra_state, write_companions
from megatron_grow.checkpoint.layout import METADATA, tensor_key
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.sink import Block
from megatron_grow.checkpoint.torch_dist_source import TorchDistSource
from megatron_grow.state.axes import LogicalTensor
from megatron_grow.state.boxes import Box, fold, intersect, shape_of, slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.sharding import shards

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What weights are stored as, by the run's precision."""

_OBJECTS = "__objects_0.distcp"

Table = list[tuple[str, Box, _StorageInfo]]
"""Stored name, box in the stored shape, and place, of some chunks."""


class TorchDistSink:
    """Training state in megatron-core's sharded format; see :class:`.sink.Sink`."""

    companions: tuple[str, ...] = COMPANIONS

    def __init__(
        self,
        directory: Path,
        record: Record,
        tensors: dict[str, LogicalTensor],
        kinds: dict[str, tuple[str, ...]],
        *,
        keeps_main: bool,
        tensor_parallel: int = 1,
    ) -> None:
        """Nothing is written yet.

        Args:
            directory: where the files will be.
            record: where training stands.
            tensors: the model's.
            kinds: of each, ``main_param`` and moments.
            keeps_main: whether mixed-precision weights are stored in fp32 too, for an optimizer.
            tensor_parallel: ranks whose shards the chunks are cut for.
        """
        self.directory = directory
        self._record, self._tensors, self._kinds = record, tensors, kinds
        self._dtype, self._keeps_main = DTYPES[record.precision], keeps_main
        self._shards = {key: shards(t.axes, tensor_parallel) for key, t in tensors.items()}

    def stored(self, key: str, kind: str) -> dict[str, torch.dtype]:
        """Names and types under which a kind of state is stored."""
        if kind != MAIN_PARAM:
            return {tensor_key(key, kind): torch.float32}
        if self._keeps_main and self._dtype != torch.float32:
            return {key: self._dtype, tensor_key(key, kind): torch.float32}
        return {key: self._dtype}

    def prepare(self) -> None:
        """Make the directory."""
        self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, part: int, blocks: Iterable[tuple[Block, dict[str, torch.Tensor]]]) -> Table:
        """Write a file of blocks, each cut into the chunks of its shards."""
        table: Table = []
        name = f"__{part}_0.distcp"
        with (self.directory / name).open("wb") as file:
            for block, values in blocks:
                for stored, data in values.items():
                    for chunk, part_of in self._chunks(block):
                        piece = data[slices(part_of, block.box)].reshape(shape_of(chunk))
                        table.append((stored, chunk, _append(file, name, _alone(piece))))
            file.flush()
            os.fsync(file.fileno())
        return table

    def finish(self, tables: list[Table]) -> None:
        """Write the table of all chunks, and what else a checkpoint has."""
        entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        storage = {}
        chunks: dict[str, list[ChunkStorageMetadata]] = defaultdict(list)
        for stored, box, place in (entry for table in tables for entry in table):
            offsets = torch.Size(start for start, _ in box)
            chunks[stored].append(ChunkStorageMetadata(offsets, torch.Size(shape_of(box))))
            storage[MetadataIndex(stored, offsets)] = place
        for key, tensor in self._tensors.items():
            for kind in self._kinds[key]:
                for stored, dtype in self.stored(key, kind).items():
                    entries[stored] = TensorStorageMetadata(
                        TensorProperties(dtype=dtype),
                        torch.Size(tensor.checkpoint_shape),
                        chunks[stored],
                    )
        with (self.directory / _OBJECTS).open("wb") as file:
            for name, value in extra_state(self._tensors.values()).items():
                entries[name] = BytesStorageMetadata()
                storage[MetadataIndex(name)] = _append(file, _OBJECTS, value)
        with (self.directory / METADATA).open("wb") as file:
            meta = StorageMeta(checkpoint_id=None, save_id=None)
            pickle.dump(Metadata(entries, storage_data=storage, storage_meta=meta), file)
        write_companions(self.directory, self._record)

    def reopen(self) -> Callable[[str, Block], torch.Tensor]:
        """What a reader now finds of a block under a stored name."""
        written = TorchDistSource(self.directory)
        return lambda name, block: written.read_stored(name, block.key, block.box)

    def _chunks(self, block: Block) -> Iterator[tuple[Box, Box]]:
        """The chunks that a block is cut into: boxes in the stored shape, and in fine axes."""
        tensor = self._tensors[block.key]
        for shard in self._shards[block.key]:
            common = intersect(shard, block.box)
            if common is not None:
                for fine, stored in fold(tensor.shape, common, tensor.groups):
                    yield stored, fine


def _alone(values: torch.Tensor) -> torch.Tensor:
    """``values`` in memory of their own: of a view, torch would store all that it looks at."""
    values = values.contiguous()
    return values if values.untyped_storage().nbytes() == values.nbytes else values.clone()


def _append(file: BufferedWriter, name: str, value: Any) -> _StorageInfo:
    """Write one object to the end of the file called ``name``; the place where it is."""
    start = file.tell()
    torch.save(value, file)
    return _StorageInfo(name, start, file.tell() - start)

"""Write a ``torch_dist`` checkpoint block by block, without the model and without a job."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

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

from megatron_grow.checkpoint.direct import DirectWriter
from megatron_grow.checkpoint.layout import DTYPES
from megatron_grow.checkpoint.manifest import Shard
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.torch_dist.chunks import seal_of, stored_tensor
from megatron_grow.checkpoint.torch_dist.companions import COMPANIONS, extra_state, write_companions
from megatron_grow.checkpoint.torch_dist.names import METADATA, tensor_key
from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.checkpoint.torch_dist.stored import stored_parts, stored_shapes
from megatron_grow.checkpoint.writer import Block, Blocks, Writer
from megatron_grow.state.axes import MeshDim
from megatron_grow.state.boxes import Box, intersect, shape_of, slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.memory import contiguous
from megatron_grow.state.sharding import shards
from megatron_grow.state.tensors import LogicalTensor

_OBJECTS = "__objects_0.distcp"

Table = list[tuple[str, Box, int, int, int]]
"""Of some chunks: stored name, box in the stored shape; start, length and seal in the file."""


class TorchDistWriter(Writer):
    """Training state in megatron-core's sharded format; see :class:`.writer.Writer`."""

    companions = COMPANIONS

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
        self.shards = self._found = dict[str, Shard]()
        self._record, self._tensors, self._kinds = record, tensors, kinds
        self._dtype, self._keeps_main = DTYPES[record.precision], keeps_main
        mesh = {MeshDim.TENSOR: tensor_parallel}
        self._shards = {key: shards(t.axes, mesh) for key, t in tensors.items()}

    def stored(self, key: str, kind: str) -> dict[str, torch.dtype]:
        """Names and types under which a kind of state is stored."""
        if kind != MAIN_PARAM:
            return {tensor_key(key, kind): torch.float32}
        if self._keeps_main and self._dtype != torch.float32:
            return {key: self._dtype, tensor_key(key, kind): torch.float32}
        return {key: self._dtype}

    def write(self, task: int, blocks: Blocks) -> Table:
        """Write a file of blocks, each cut into the chunks of its shards."""
        table: Table = []
        path, end = self.directory / _file(task), 0
        with DirectWriter() as file:
            for block, named in blocks:
                for stored, values in named.items():
                    for name, part_of, chunk in self._chunks(stored, block):
                        piece = contiguous(values[slices(part_of, block.box)])
                        start = end
                        before, held, after = stored_tensor(piece.view(shape_of(chunk)))
                        for data in (before, held, after):
                            file.write_at(path, data, end)
                            end += len(data)
                        table.append((name, chunk, start, end - start, seal_of(held, after)))
        return table

    def finish(self, tables: list[Table]) -> None:
        """Write the table of all chunks, and what else a checkpoint has."""
        entries: dict[str, TensorStorageMetadata] = {}
        storage = {}
        for key, tensor in self._tensors.items():
            for kind in self._kinds[key]:
                for stored, dtype in self.stored(key, kind).items():
                    properties = TensorProperties(dtype=dtype)
                    for name, shape in stored_shapes(stored, tensor).items():
                        entries[name] = TensorStorageMetadata(properties, torch.Size(shape), [])
        # Pickles depend on which strings are one object, not on who sent them if they are these.
        names = {name: name for name in entries}
        for task, table in enumerate(tables):
            file_name = _file(task)
            seals = {start: sealed for _, _, start, _, sealed in table}
            self._found[file_name] = Shard(sum(length for *_, length, _ in table), seals)
            for name, box, start, length, _ in table:
                stored, offsets = names[name], torch.Size(begin for begin, _ in box)
                chunk = ChunkStorageMetadata(offsets, torch.Size(shape_of(box)))
                entries[stored].chunks.append(chunk)
                storage[MetadataIndex(stored, offsets)] = _StorageInfo(file_name, start, length)
        objects: dict[str, BytesStorageMetadata] = {}
        with (self.directory / _OBJECTS).open("wb") as file:
            for name, value in extra_state(self._tensors.values()).items():
                start = file.tell()
                torch.save(value, file)
                objects[name] = BytesStorageMetadata()
                storage[MetadataIndex(name)] = _StorageInfo(_OBJECTS, start, file.tell() - start)
            self._found[_OBJECTS] = Shard(file.tell(), {})
        with (self.directory / METADATA).open("wb") as file:
            meta = StorageMeta(checkpoint_id=None, save_id=None)
            metadata = Metadata({**entries, **objects}, storage_data=storage, storage_meta=meta)
            pickle.dump(metadata, file)
        trains = any(len(kinds) > 1 for kinds in self._kinds.values())
        write_companions(self.directory, self._record, trains)

    def reopen(self) -> TorchDistReader:
        """What was written; its values are read once."""
        return TorchDistReader(self.directory, once=True)

    def _chunks(self, stored: str, block: Block) -> Iterator[tuple[str, Box, Box]]:
        """The chunks that a block is cut into; as :func:`.stored.stored_parts`."""
        tensor = self._tensors[block.key]
        for shard in self._shards[block.key]:
            common = intersect(shard, block.box)
            if common is not None:
                yield from stored_parts(stored, tensor, common)


def _file(task: int) -> str:
    return f"__{task}_0.distcp"

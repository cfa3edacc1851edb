"""Write a legacy checkpoint block by block, without the model and without a job."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from isal.isal_zlib import crc32

from megatron_grow.checkpoint.archive import Archive
from megatron_grow.checkpoint.direct import DirectWriter
from megatron_grow.checkpoint.layout import DTYPES, RECORD
from megatron_grow.checkpoint.legacy.checksums import combine, set_checksums
from megatron_grow.checkpoint.legacy.files import ModelChunk, model_chunks, regions
from megatron_grow.checkpoint.legacy.reader import LegacyReader
from megatron_grow.checkpoint.megatron_lm.state import legacy_state
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.regions import Region, Regions
from megatron_grow.checkpoint.writer import Blocks, Writer
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import Box, shape_of, slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.tensors import LogicalTensor

Table = list[tuple[str, int, int, int]]
"""Stored name, offset in its bytes, length and checksum, of some pieces."""


class LegacyWriter(Writer):
    """Weights in one file for each model-parallel rank; see :class:`.writer.Writer`.

    The files are laid out in full before the first value is there; then any thread and process
    writes its blocks where they belong.
    """

    companions = (RECORD,)

    def __init__(
        self,
        directory: Path,
        record: Record,
        tensors: dict[str, LogicalTensor],
        parallel: ParallelConfig,
        *,
        fused_norms: bool,
    ) -> None:
        """Nothing is written yet.

        Args:
            directory: where the files will be.
            record: where training stands.
            tensors: the model's.
            parallel: the layout that the files are for.
            fused_norms: as :attr:`.Legacy.fused_norms`.

        Raises:
            UserError: the model has experts, or cannot be cut this way.
        """
        if any(tensor.of_experts for tensor in tensors.values()):
            raise UserError("the legacy format holds no experts here; write torch_dist")
        self.directory = directory
        self._record = replace(record, optimizer_step=0)
        self._parallel, self._tensors = parallel, tensors
        self._dtype = DTYPES[record.precision]
        tp = parallel.tensor_model_parallel_size
        axes = (axis for tensor in tensors.values() for axis in tensor.axes)
        parallel.check_axes(axes, "the layout")
        found = model_chunks(parallel, record.model_config.num_layers, "the layout")
        self._files: dict[Path, list[tuple[ModelChunk, list[Region]]]] = defaultdict(list)
        for chunk in found:
            parts = list(regions(chunk, tensors, tp, fused=fused_norms))
            self._files[chunk.path].append((chunk, parts))
        self._regions = Regions(
            region for file in self._files.values() for _, parts in file for region in parts
        )

    def stored(self, key: str, kind: str) -> dict[str, torch.dtype]:
        """Weights under their own names; nothing else."""
        return {key: self._dtype} if kind == MAIN_PARAM else {}

    def prepare(self) -> None:
        """Lay out all files, with holes where the values will be."""
        from torch._subclasses.fake_tensor import FakeTensorMode  # slow to import

        for path, parts in self._files.items():
            state = legacy_state(self._record, self._parallel)
            with FakeTensorMode():  # tensors that take no memory
                for chunk, found in parts:
                    weights: dict[str, torch.Tensor | None] = {
                        chunk.name_within(region): torch.empty(region.shape, dtype=self._dtype)
                        for region in found
                    }
                    state[chunk.entry] = weights | dict.fromkeys(chunk.extra_states(self._tensors))
                (self.directory / path.parent).mkdir(parents=True, exist_ok=True)
                with torch.serialization.skip_data(materialize_fake_tensors=True):
                    torch.save(state, self.directory / path)

    def write(self, task: int, blocks: Blocks) -> Table:
        """Write blocks into all files that hold a part of them."""
        table: Table = []
        with DirectWriter() as file:
            for block, values in blocks:
                for region in self._regions.overlapping(block.key, block.box):
                    path, start, _ = self._places[region.name]
                    for fine, stored in region.parts(block.box):
                        data = values[block.key][slices(fine, block.box)]
                        flat = region.to_stored(data, stored).view(-1).view(torch.uint8)
                        raw = memoryview(flat.numpy())  # type: ignore[arg-type]
                        offset = _flat_start(region.shape, stored) * self._dtype.itemsize
                        file.write_at(path, raw, start + offset)
                        table.append((region.name, offset, raw.nbytes, crc32(raw)))
        return table

    def finish(self, tables: list[Table]) -> None:
        """Write the checksums, and the record."""
        pieces: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
        for name, offset, length, checksum in (entry for table in tables for entry in table):
            pieces[name].append((offset, length, checksum))
        members: dict[Path, dict[str, int]] = defaultdict(dict)
        for name, (path, _, member) in self._places.items():
            in_order = [(checksum, length) for _, length, checksum in sorted(pieces[name])]
            region = self._regions.by_name[name]
            padding = region.padding * prod(region.shape[1:]) * self._dtype.itemsize
            in_order.append((crc32(bytes(padding)), padding))
            members[path][f"data/{member}"] = combine(in_order)
        for path, checksums in members.items():
            set_checksums(path, checksums)
        (self.directory / RECORD).write_text(self._record.to_json())

    def reopen(self) -> LegacyReader:
        """What was written."""
        return LegacyReader(self.directory)

    @cached_property
    def _places(self) -> dict[str, tuple[Path, int, str]]:
        """File of each stored tensor, where its values begin, and the name of its storage."""
        found = {}
        for path, parts in self._files.items():
            archive = Archive(self.directory / path)
            for chunk, held in parts:
                weights = archive.content[chunk.entry]
                for region in held:
                    stored = weights[chunk.name_within(region)]
                    found[region.name] = archive.path, archive.place(stored)[0], stored.member
        return found


def _flat_start(shape: tuple[int, ...], box: Box) -> int:
    """Elements of a row-major tensor before those of ``box``, which are contiguous."""
    whole = [extent == size for extent, size in zip(shape_of(box), shape, strict=True)]
    ranged = next((i for i, (a, b) in enumerate(box) if b - a > 1), len(box))
    assert all(whole[ranged + 1 :]), (shape, box)  # blocks are contiguous in the whole tensor
    start = 0
    for size, (first, _) in zip(shape, box, strict=True):
        start = start * size + first
    return start

"""Write a Hugging Face model, its tensors in whatever order they come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from math import prod
from pathlib import Path

import torch

from megatron_grow.checkpoint.direct import DirectWriter
from megatron_grow.checkpoint.huggingface import files, shards
from megatron_grow.checkpoint.huggingface.config import choose_family, to_config
from megatron_grow.checkpoint.huggingface.names import regions
from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.checkpoint.regions import Region, Regions
from megatron_grow.checkpoint.side_files import CONFIG, parse_object
from megatron_grow.checkpoint.writer import Blocks, Writer
from megatron_grow.config.model import ModelConfig
from megatron_grow.files.durable import sync
from megatron_grow.state.boxes import Box, fold, slices
from megatron_grow.state.kinds import MAIN_PARAM

_GIGABYTE = 10**9


class HuggingFaceWriter(Writer):
    """A directory of ``config.json`` and safetensors that ``transformers`` loads.

    Where each tensor will be is known from the shape alone, so any thread or process writes any
    part of it in place.
    """

    def __init__(
        self,
        directory: Path,
        model: ModelConfig,
        dtypes: Mapping[str, torch.dtype],
        *,
        family: str | None = None,
        side_files: Mapping[str, bytes] | None = None,
        max_shard_size: int = _GIGABYTE,
    ) -> None:
        """Plan the files; nothing is written.

        Args:
            directory: where they will be.
            model: the shape.
            dtypes: how each logical tensor is stored: fp32, bf16 or fp16.
            family: a ``model_type``; absent: the one that the model came from, else one that fits.
            side_files: what goes with the model, by name: tokenizer, generation settings, and a
                ``config.json`` whose other fields are kept.
            max_shard_size: bytes of tensors in one file.

        Raises:
            UserError: a model that the family, or every family, cannot express.
        """
        self.directory = directory
        self._side_files = dict(side_files or {})
        original = self._side_files.pop(CONFIG, None)
        said = parse_object(original, Path(CONFIG)) if original else {}
        chosen = choose_family(model, family, said)
        self._dtypes = dict(dtypes)
        self._regions = Regions(regions(chosen, model))
        zeros = chosen.zeros(model)
        widest = reduce(torch.promote_types, self._dtypes.values())
        self._config = to_config(model, chosen, widest, said)
        self._shards = shards.plan(
            [
                *(shards.Stored(name, shape, widest) for name, shape in zeros.items()),
                *(
                    shards.Stored(region.name, region.shape, self._dtypes[region.key])
                    for region in self._regions.by_name.values()
                ),
            ],
            max_shard_size,
        )
        self._zeros = sum(widest.itemsize * prod(shape) for shape in zeros.values())
        self._shard_of = {name: shard for shard in self._shards for name in shard.offsets}
        beside = {*self._side_files, CONFIG}
        self.companions = tuple(
            sorted(beside | ({files.INDEX} if len(self._shards) > 1 else set()))
        )

    def stored(self, key: str, kind: str) -> dict[str, torch.dtype]:
        """Weights alone are stored, under the logical tensor's own key."""
        return {key: self._dtypes[key]} if kind == MAIN_PARAM else {}

    def prepare(self) -> None:
        """Make all weight files, at their full size, with their headers."""
        super().prepare()
        for shard in self._shards:
            path = self.directory / shard.file
            with path.open("wb") as file:
                file.write(shard.header)
                file.truncate(len(shard.header) + shard.nbytes)

    def write(self, task: int, blocks: Blocks) -> int:
        """Write blocks to where they belong.

        Returns:
            How many bytes were written.
        """
        written = 0
        with DirectWriter() as file:
            for block, values in blocks:
                for region in self._regions.overlapping(block.key, block.box):
                    written += self._write_region(file, region, block.box, values[block.key])
        return written

    def finish(self, tables: list[int]) -> None:
        """Write the index and all that is not weights, and put everything on disk.

        Args:
            tables: the bytes that each task has written.
        """
        total = sum(shard.nbytes for shard in self._shards)
        if sum(tables) != total - self._zeros:  # which an empty file is made of
            raise RuntimeError(f"{sum(tables)} bytes of weights were written, not {total}")
        for name, content in self._side_files.items():
            (self.directory / name).write_bytes(content)
        if len(self._shards) > 1:
            table = {name: shard.file for name, shard in sorted(self._shard_of.items())}
            self._write_json(files.INDEX, {"metadata": {"total_size": total}, "weight_map": table})
        self._write_json(CONFIG, dict(sorted(self._config.items())))
        sync(*self.directory.iterdir(), self.directory)

    def reopen(self) -> HuggingFaceReader:
        """What was written."""
        return HuggingFaceReader(self.directory)

    def _write_region(
        self, file: DirectWriter, region: Region, box: Box, values: torch.Tensor
    ) -> int:
        """What the region holds of ``values``, which fill ``box``; the bytes written."""
        shard = self._shard_of[region.name]
        path, base = self.directory / shard.file, shard.offsets[region.name]
        size, written = values.dtype.itemsize, 0
        for part, where in region.parts(box):
            stored = region.to_stored(values[slices(part, box)], where)
            raw = stored.view(-1).view(torch.uint8).numpy().data
            # A box of some columns is not contiguous in the file: it is written row by row.
            for _, ((start, stop),) in fold(region.shape, where, (len(region.shape),)):
                file.write_at(path, raw[: (stop - start) * size], base + start * size)
                raw = raw[(stop - start) * size :]
            written += stored.nbytes
        return written

    def _write_json(self, name: str, values: dict) -> None:
        (self.directory / name).write_text(json.dumps(values, indent=2) + "\n")

"""A legacy checkpoint as a source."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_grow.checkpoint.archive import Archive
from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.legacy.files import ModelChunk, model_chunks, originals, regions
from megatron_grow.checkpoint.legacy.names import LEGACY
from megatron_grow.checkpoint.megatron_lm.args import parallel_from_args
from megatron_grow.checkpoint.megatron_lm.record import record_of_megatron
from megatron_grow.checkpoint.megatron_lm.state import VERSION
from megatron_grow.checkpoint.pickles import StoredTensor
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import read_record
from megatron_grow.checkpoint.regions import Region, Regions
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import Box, shape_of, slices
from megatron_grow.state.memory import empty
from megatron_grow.state.tensors import LogicalTensor, layer_key

_OPTIMIZER_FILE = "distrib_optim.pt"
_UNREAD = ("_extra_state", "inv_freq")
"""Ends of names that hold no weights."""


class LegacyReader(Reader):
    """The weights of a legacy checkpoint; see :class:`.checkpoint.reader.Reader`."""

    format = "legacy torch"

    def __init__(self, path: Path) -> None:
        """Open the directory of one step.

        Args:
            path: ``iter_*`` or ``release``, with the directories ``mp_rank_*``.

        Raises:
            UserError: damaged, incomplete, or not a model that can be built here.
        """
        self.path = path
        archive = self._first()
        args = self._args(archive)
        if (path / RECORD).exists():
            self.record = read_record(path)
        else:
            step = archive.content.get("iteration")
            self.record = record_of_megatron(args, step, 0, str(archive.path))
        model = self.record.model_config
        self.tensors = logical_tensors(model)
        parallel = parallel_from_args(args)
        tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
        # The padding is that of who wrote the files.
        rows = max(getattr(args, "padded_vocab_size", 0) // tp, 1)
        shares = logical_tensors(replace(model, make_vocab_size_divisible_by=rows))
        virtual = f" VPP{parallel.model_chunks}" if parallel.model_chunks > 1 else ""
        self.layout = f"TP{tp} PP{pp}{virtual}"
        self._dtypes: dict[str, torch.dtype] = {}
        self._stored: dict[str, tuple[Archive, StoredTensor]] = {}
        found: list[Region] = []
        files: dict[Path, list[ModelChunk]] = {}
        for chunk in model_chunks(parallel, model.num_layers, str(path)):
            files.setdefault(chunk.path, []).append(chunk)
        self._check_ranks(files)
        for file, parts in files.items():
            archive = Archive(path / file)
            self._check_version(archive)
            for chunk in parts:
                found += self._open(chunk, archive, shares, tp)
            self._note_optimizer(archive)
            archive.content = None  # all that is needed of it is kept
        self._regions = Regions(originals(found))

    def dtype(self, key: str, kind: str) -> torch.dtype:
        """Of the stored values."""
        return self._dtypes[key]

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``."""
        out = None
        for region in self._regions.overlapping(key, box):
            archive, tensor = self._stored[region.name]
            for part, stored in region.parts(box):
                values = region.to_logical(archive.read(tensor, stored), part)
                if part == box:
                    return values
                if out is None:
                    out = empty(shape_of(box), self._dtypes[key])
                out[slices(part, box)] = values
        assert out is not None, (key, box)  # the regions of all ranks tile each tensor
        return out

    def _first(self) -> Archive:
        for name in ("mp_rank_00", "mp_rank_00_000"):
            if (self.path / name / LEGACY).exists():
                return Archive(self.path / name / LEGACY)
        raise UserError(f"{self.path} has neither mp_rank_00/{LEGACY} nor mp_rank_00_000/{LEGACY}")

    def _args(self, archive: Archive) -> Namespace:
        if not isinstance(archive.content, dict):
            raise UserError(f"{archive.path} holds no checkpoint of Megatron-LM")
        args = archive.content.get("args")
        if not isinstance(args, Namespace):
            raise UserError(
                f"{archive.path} holds no args of Megatron-LM: nothing says what its model is"
            )
        return args

    def _check_ranks(self, files: dict[Path, list[ModelChunk]]) -> None:
        expected = {file.parent.name for file in files}
        there = {path.name for path in self.path.glob("mp_rank_*")}
        for name in sorted(expected ^ there):
            is_there = "has no" if name in expected else "has an unexpected"
            raise UserError(
                f"{self.path} {is_there} {name}; its arguments say {self.layout}, "
                f"{len(expected)} directories from mp_rank_00 on"
            )

    def _check_version(self, archive: Archive) -> None:
        version = archive.content.get("checkpoint_version", 0)
        if version != VERSION:
            raise UserError(
                f"{archive.path} has checkpoint_version={version}, with another order of queries, "
                f"keys and values; {VERSION} is read: load and save it once in Megatron-LM"
            )

    def _open(
        self,
        chunk: ModelChunk,
        archive: Archive,
        tensors: dict[str, LogicalTensor],
        tensor_parallel: int,
    ) -> list[Region]:
        weights = archive.content.get(chunk.entry)
        if not isinstance(weights, dict):
            raise UserError(f"{archive.path} has no {chunk.entry}; its arguments say {self.layout}")
        apart = (layer_key(t.unfused_key, 0) for t in tensors.values() if t.unfused_key)
        fused = not any(name in weights for name in apart)
        found = list(regions(chunk, tensors, tensor_parallel, fused=fused))
        self._check_names(chunk, archive, weights, found)
        for region in found:
            stored = weights[chunk.name_within(region)]
            name = f"{archive.path}: {chunk.name_within(region)}"
            if stored.shape != region.shape:
                raise UserError(
                    f"{name} has shape {stored.shape}, its arguments say {region.shape}"
                )
            if (dtype := self._dtypes.setdefault(region.key, stored.dtype)) != stored.dtype:
                raise UserError(f"{name} is {stored.dtype}, another part of it is {dtype}")
            self._stored[region.name] = archive, stored
        return found

    def _check_names(
        self, chunk: ModelChunk, archive: Archive, weights: dict[str, Any], found: list[Region]
    ) -> None:
        names = {chunk.name_within(region) for region in found}
        held = {str(name) for name in weights if not str(name).endswith(_UNREAD)}
        for name in sorted(held - names):
            what = "experts, which are" if "experts" in name or "router" in name else f"{name},"
            raise UserError(f"{archive.path} holds {what} not in the models that can be built here")
        for name in sorted(names):
            if not isinstance(weights.get(name), StoredTensor):
                raise UserError(f"{archive.path} holds no tensor {name} in {chunk.entry}")

    def _note_optimizer(self, archive: Archive) -> None:
        places = [archive.path] if archive.content.get("optimizer") else []
        if (beside := archive.path.with_name(_OPTIMIZER_FILE)).exists():
            places.append(beside)
        self.left_behind += tuple(str(place.relative_to(self.path)) for place in places)

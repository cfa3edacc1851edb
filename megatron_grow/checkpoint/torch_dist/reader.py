"""A ``torch_dist`` checkpoint as a source."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.torch_dist.chunk_reader import ChunkReader
from megatron_grow.checkpoint.torch_dist.names import MAIN_NAMES, STATE_PREFIX, tensor_key
from megatron_grow.checkpoint.torch_dist.record import record_of
from megatron_grow.checkpoint.torch_dist.stored import stored_parts, stored_shapes
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import Box, shape_of, slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.memory import empty
from megatron_grow.state.tensors import LogicalTensor


class TorchDistReader(Reader):
    """Training state in megatron-core's sharded format; see :class:`.checkpoint.reader.Reader`."""

    format = "torch_dist"

    def __init__(self, path: Path, *, once: bool = False) -> None:
        """Open the checkpoint directory ``path``.

        Args:
            path: of one step.
            once: whether values are read only once, so that the page cache need not keep them.

        Raises:
            UserError: damaged, incomplete, or not of the model that its record describes.
        """
        self.path = path
        self.record = record_of(path)
        self.layout = self.record.layout
        self.tensors = logical_tensors(self.record.model_config)
        self._reader = ChunkReader(path, once=once)
        self._kinds = {key: self._find_kinds(key) for key in self.tensors}
        self._check()

    def kinds(self, key: str) -> tuple[str, ...]:
        """``main_param`` and the moments of one tensor."""
        return self._kinds[key]

    def names(self, key: str) -> set[str]:
        """All names under which state of one tensor is stored."""
        return {key, *(self._name(key, kind) for kind in self._kinds[key])}

    def dtype(self, key: str, kind: str) -> torch.dtype:
        """Of the stored values."""
        return self._reader.dtype(self._first(self._name(key, kind), key))

    def check_shards(self, part: int = 0, parts: int = 1) -> None:
        """As :meth:`.reader.ChunkReader.check_seals`."""
        self._reader.check_seals(part, parts)

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``; not to be written to."""
        return self.read_stored(self._name(key, kind), key, box)

    def read_stored(self, name: str, key: str, box: Box) -> torch.Tensor:
        """The values in ``box`` of the logical tensor ``key`` that are stored under ``name``."""
        tensor = self.tensors[key]
        parts = list(stored_parts(name, tensor, box))
        if len(parts) == 1:
            [(stored, _, coarse)] = parts
            return self._reader.read(stored, coarse).view(shape_of(box))
        out = empty(shape_of(box), self._reader.dtype(self._first(name, key)))
        for stored, fine, coarse in parts:
            out[slices(fine, box)] = self._reader.read(stored, coarse).view(shape_of(fine))
        return out

    def _first(self, name: str, key: str) -> str:
        """Of what is stored of the tensor ``key`` under ``name``."""
        return next(iter(stored_shapes(name, self.tensors[key])))

    def _name(self, key: str, kind: str) -> str:
        if kind != MAIN_PARAM:
            return tensor_key(key, kind)
        names = (f"{STATE_PREFIX}{name}.{key}" for name in MAIN_NAMES)
        # An fp32 checkpoint stores weights once; one without optimizer, rounded.
        return next((name for name in names if self._first(name, key) in self._reader), key)

    def _find_kinds(self, key: str) -> tuple[str, ...]:
        ending = f".{self._first(key, key)}"
        found = sorted(
            name.removeprefix(STATE_PREFIX).removesuffix(ending)
            for name in self._reader.names()
            if name.startswith(STATE_PREFIX) and name.endswith(ending)
        )
        return (MAIN_PARAM, *(kind for kind in found if kind not in MAIN_NAMES))

    def _check(self) -> None:
        """That the tensors are those of the model, and no others."""
        expected: dict[str, tuple[LogicalTensor, tuple[int, ...]]] = {}
        for key, tensor in self.tensors.items():
            for name in self.names(key):
                for stored, shape in stored_shapes(name, tensor).items():
                    expected[stored] = tensor, shape
        for name, (tensor, shape) in expected.items():
            if name not in self._reader:
                raise UserError(f"{self.path} has no {name}")
            found = self._reader.shape(name)
            if found != shape and not tensor.pads_to(found):
                raise UserError(f"{self.path}: {name} has shape {found}, the model needs {shape}")
        if unknown := sorted(set(self._reader.names()) - set(expected)):
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise UserError(
                f"{self.path} holds {unknown[0]}{more}, which the model that its record describes "
                "does not have"
            )

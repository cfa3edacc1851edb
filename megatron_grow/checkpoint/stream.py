"""Read slices of a ``torch_dist`` checkpoint, one at a time, without a process group."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_grow.config.errors import UserError
from megatron_grow.state.boxes import Box, intersect, shape_of, slices, volume

# Chunks kept in memory, because neighbouring slices often come from one chunk.
_CACHED_BYTES = 256 << 20

# All that a checkpoint's .metadata is made of. Whole names: a pickle may ask any module that
# imports os for `os.system`.
_ALLOWED = {
    "collections": {"OrderedDict"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "torch": {
        "Size",
        *(name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


class _MetadataUnpickler(pickle.Unpickler):
    """Loads a checkpoint's ``.metadata`` and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not allowed")
        return super().find_class(module, name)


class CheckpointReader:
    """Slices of the tensors in one checkpoint directory."""

    def __init__(self, directory: Path) -> None:
        """Read the directory's table of chunks.

        Raises:
            UserError: a missing, damaged or hostile ``.metadata``; a chunk's file that is missing
                or too short.
        """
        self.directory = directory
        metadata = self._load_metadata()
        self._tensors = {
            key: stored
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }
        self._storage = {
            (index.fqn, tuple(index.offset)): info
            for index, info in metadata.storage_data.items()
            if index.offset is not None
        }
        self._check_files()
        self._cache: OrderedDict[tuple, torch.Tensor] = OrderedDict()
        self._cached_bytes = 0

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return tuple(self._tensors[key].size)

    def read(self, key: str, box: Box) -> torch.Tensor:
        """The values of ``key`` in ``box``, fp32.

        Raises:
            UserError: a chunk that cannot be read, or a tensor that is not whole.
        """
        out = torch.empty(shape_of(box))
        missing = volume(box)
        for chunk in self._tensors[key].chunks:
            held = tuple((o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
            common = intersect(box, held)
            if common is None:
                continue
            values = self._chunk(key, tuple(chunk.offsets))
            out[slices(common, box)] = values[slices(common, held)].float()
            missing -= volume(common)
        if missing:
            raise UserError(f"{self.directory}: {missing} values of {key} are in no chunk")
        return out

    def _load_metadata(self) -> Metadata:
        path = self.directory / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _MetadataUnpickler(file).load()
            if not isinstance(metadata, Metadata) or metadata.storage_data is None:
                raise pickle.UnpicklingError("it holds no table of chunks")
            return metadata
        except FileNotFoundError:
            raise UserError(f"{path} is missing: the checkpoint is not complete") from None
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{path} is damaged or not a checkpoint's: {error}") from None

    def _check_files(self) -> None:
        ends: dict[str, int] = {}
        for info in self._storage.values():
            ends[info.relative_path] = max(
                ends.get(info.relative_path, 0), info.offset + info.length
            )
        for name, end in ends.items():
            path = self.directory / name
            if not path.exists():
                raise UserError(f"{path} is missing: the checkpoint is not complete")
            if path.stat().st_size < end:
                raise UserError(
                    f"{path} is truncated: {path.stat().st_size} bytes, at least {end} expected"
                )

    def _chunk(self, key: str, offset: tuple[int, ...]) -> torch.Tensor:
        cached = self._cache.get((key, offset))
        if cached is not None:
            self._cache.move_to_end((key, offset))
            return cached
        info = self._storage[key, offset]
        path = self.directory / info.relative_path
        try:
            with path.open("rb") as file:
                file.seek(info.offset)
                raw = file.read(info.length)
            # torch itself reads past a wrong checksum.
            if damaged := zipfile.ZipFile(io.BytesIO(raw)).testzip():
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
            values = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes can raise anything
            reason = " ".join(str(error).split())
            if isinstance(error, pickle.UnpicklingError):
                reason = "it holds something else than a tensor"
            raise UserError(f"{path}: {key} at {offset} cannot be read: {reason}") from None
        self._cache[key, offset] = values
        self._cached_bytes += values.nbytes
        while self._cached_bytes > _CACHED_BYTES and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
        return values

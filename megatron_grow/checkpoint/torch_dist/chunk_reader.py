"""Read slices of a ``torch_dist`` checkpoint, one at a time, without a process group."""

from __future__ import annotations

import io
import os
import pickle
import threading
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import groupby, pairwise
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_grow.checkpoint.layout import MANIFEST
from megatron_grow.checkpoint.manifest import Shard, read_checked, read_manifest
from megatron_grow.checkpoint.pickles import TABLE, Restricted
from megatron_grow.checkpoint.torch_dist.chunks import FOREIGN, DamagedError, read_tensor, seal
from megatron_grow.checkpoint.torch_dist.names import METADATA
from megatron_grow.files.regular import check_regular
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import Box, full, intersect, shape_of, slices, volume
from megatron_grow.state.memory import empty

# Chunks kept in memory, because neighbouring slices often come from one chunk.
_CACHED_BYTES = 256 << 20


class ChunkReader:
    """Slices of the tensors in one checkpoint directory; several threads may read."""

    def __init__(self, directory: Path, *, once: bool = False) -> None:
        """Read the directory's table of chunks; ``once`` is that of :func:`.chunks.read_tensor`.

        Raises:
            UserError: a missing, damaged or hostile ``.metadata``; a chunk's file that is missing
                or too short; tensors that are not whole.
        """
        self.directory = directory
        self.objects: set[str] = set()
        """Names of what is stored beside the tensors."""
        self._once = once
        self._cache = _Cache()
        manifest = read_manifest(directory)
        self._shards = manifest.shards if manifest else {}
        metadata = self._load_metadata()
        try:
            self._understand(metadata)
        except UserError:
            raise
        except Exception as error:  # a damaged table can raise anything
            raise self._damaged(f"{type(error).__name__}: {error}") from None

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._tensors.keys()

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        """Type of a stored tensor's values."""
        return self._tensors[key].properties.dtype

    def read(self, key: str, box: Box) -> torch.Tensor:
        """The values of ``key`` in ``box``, as they are stored; not to be written to.

        Raises:
            UserError: a chunk that cannot be read, or is damaged.
        """
        out = None
        start, stop = box[0] if box else (0, 1)
        for (first, last), chunks in self._chunks[key].items():
            if first >= stop or start >= last:
                continue
            for held in chunks:
                common = intersect(box, held)
                if common is None:
                    continue
                values = self._chunk(key, held)[slices(common, held)]
                if common == box:
                    return values
                if out is None:
                    out = empty(shape_of(box), self.dtype(key))
                out[slices(common, box)] = values
        assert out is not None, (key, box)  # the constructor has seen that nothing is missing
        return out

    def check_seals(self, part: int = 0, parts: int = 1) -> None:
        """Look whether shards are those of the manifest, without reading their values.

        Args:
            part: which share of them; ranks look at one each.
            parts: how many shares there are.

        Raises:
            UserError: one is of another save.
        """
        chunks = sorted(self._storage.values(), key=lambda info: (info.relative_path, info.offset))
        for name, found in groupby(chunks, key=lambda info: info.relative_path):
            shard = self._shards.get(name)
            if shard is None or zlib.crc32(name.encode()) % parts != part:
                continue
            path = self.directory / name
            descriptor = os.open(path, os.O_RDONLY)
            try:
                for info in found:
                    if seal(descriptor, info.offset, info.length) != shard.seals.get(info.offset):
                        raise UserError(f"{path} {FOREIGN}")
            finally:
                os.close(descriptor)

    def _load_metadata(self) -> Metadata:
        path = self.directory / METADATA
        try:
            metadata = Restricted(io.BytesIO(read_checked(path)), TABLE).load()
            if not isinstance(metadata, Metadata) or metadata.storage_data is None:
                raise pickle.UnpicklingError("it holds no table of chunks")
            return metadata
        except FileNotFoundError:
            raise UserError(f"{path} is missing: the checkpoint is not complete") from None
        except UserError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise self._damaged(error) from None

    def _damaged(self, reason: object) -> UserError:
        path, what = self.directory / METADATA, " ".join(str(reason).split())
        return UserError(f"{path} is damaged or not a checkpoint's: {what}")

    def _understand(self, metadata: Metadata) -> None:
        self._storage = {
            (index.fqn, tuple(index.offset)): info
            for index, info in metadata.storage_data.items()
            if index.offset is not None
        }
        self._tensors: dict[str, TensorStorageMetadata] = {}
        for key, stored in metadata.state_dict_metadata.items():
            if isinstance(stored, TensorStorageMetadata):
                self._tensors[key] = stored
            else:
                self.objects.add(key)
        self._chunks = {key: self._boxes(key, stored) for key, stored in self._tensors.items()}
        self._check_files(metadata.storage_data.values())

    def _boxes(self, key: str, stored: TensorStorageMetadata) -> dict[tuple[int, int], list[Box]]:
        """Boxes of the chunks that tile a tensor, by their range of the first axis."""
        found: dict[tuple[int, int], list[Box]] = defaultdict(list)
        whole, count = full(tuple(stored.size)), 0
        for chunk in stored.chunks:
            box = tuple((o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))
            common = intersect(box, whole)
            if (common != box and volume(box)) or (key, tuple(chunk.offsets)) not in self._storage:
                raise self._damaged(f"{key} has no chunk at {tuple(chunk.offsets)}")
            found[box[0] if box else (0, 1)].append(box)
            count += volume(box)
        if missing := volume(whole) - count:
            raise UserError(f"{self.directory}: {missing} values of {key} are in no chunk")
        return found

    def _check_files(self, stored: Iterable[_StorageInfo]) -> None:
        extents: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for info in stored:
            extents[info.relative_path].append((info.offset, info.offset + info.length))
        for name, ranges in extents.items():
            path, end = self.directory / name, max(stop for _, stop in ranges)
            if Path(name).name != name:
                raise self._damaged(f"it names {name!r}, outside of the checkpoint")
            if not path.exists():
                raise UserError(f"{path} is missing: the checkpoint is not complete")
            found = path.stat()
            check_regular(path, found)
            if found.st_size < end:
                raise UserError(
                    f"{path} is truncated: {found.st_size} bytes, at least {end} expected"
                )
            self._check_size(path, found.st_size)
            ranges.sort()
            for (_, stop), (start, _) in pairwise(ranges):
                if start < stop:
                    raise self._damaged(f"two chunks share bytes of {name}")

    def _check_size(self, path: Path, size: int) -> None:
        if not self._shards:
            return  # of a version, or another program, that did not write them down
        expected = self._shards.get(path.name, Shard(0, {})).size
        if size != expected:
            raise UserError(f"{path} has {size} bytes, {MANIFEST} says {expected}: it {FOREIGN}")

    def _chunk(self, key: str, box: Box) -> torch.Tensor:
        offset = tuple(start for start, _ in box)
        return self._cache.get((key, offset), lambda: self._load(key, offset, shape_of(box)))

    def _load(self, key: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
        info = self._storage[key, offset]
        path = self.directory / info.relative_path
        shard = self._shards.get(info.relative_path)
        try:
            values = read_tensor(
                path,
                info.offset,
                info.length,
                sealed=shard.seals.get(info.offset) if shard else None,
                once=self._once,
            )
            if tuple(values.shape) != shape or values.dtype != self.dtype(key):
                raise DamagedError(
                    f"it is {tuple(values.shape)} of {values.dtype}, not {shape} of "
                    f"{self.dtype(key)} as .metadata says"
                )
            return values
        except (DamagedError, OSError) as error:
            raise UserError(f"{path}: {key} at {offset} cannot be read: {error}") from None


class _Cache:
    """The chunks read last; a chunk that several threads want is read once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple, Future[torch.Tensor]] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple, load: Callable[[], torch.Tensor]) -> torch.Tensor:
        with self._lock:
            entry = self._held.get(key)
            if entry is not None:
                self._held.move_to_end(key)
            else:
                mine = self._held[key] = Future()
        if entry is not None:
            return entry.result()
        try:
            values = load()
        except BaseException as error:
            with self._lock:
                del self._held[key]
            mine.set_exception(error)
            raise
        mine.set_result(values)
        with self._lock:
            self._bytes += values.nbytes
            for old, held in list(self._held.items()):
                if self._bytes <= _CACHED_BYTES:
                    break
                if old != key and held.done():
                    del self._held[old]
                    self._bytes -= held.result().nbytes
        return values

"""Files of ``torch.save`` that are read piece by piece."""

from __future__ import annotations

import io
import os
import pickle
import threading
import zipfile
from collections import defaultdict
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from isal.isal_zlib import crc32

from megatron_grow.checkpoint.pickles import TRAINING, Restricted, StoredTensor
from megatron_grow.checkpoint.positional import read_at
from megatron_grow.checkpoint.zips import data_offset
from megatron_grow.files.regular import check_regular
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import Box, full, shape_of, slices
from megatron_grow.state.memory import empty

_CRC_BYTES = 1 << 20
"""Read at a time to compute a checksum."""


class Archive:
    """What one file holds, its tensors described; nothing in it is ever run.

    Values are read by their place in the file, the checksum of each storage is compared before the
    first of them, and no file stays open or mapped. Several threads may read.
    """

    def __init__(self, path: Path) -> None:
        """Read all of ``path`` but the values of its tensors.

        Raises:
            UserError: missing, damaged, or naming what a checkpoint has no use for.
        """
        self.path = path
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._checked: set[str] = set()
        try:
            check_regular(path, path.stat())
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                members = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
                for info in members.values():
                    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                        raise zipfile.BadZipFile(f"{info.filename} is compressed")
                if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                    raise zipfile.BadZipFile("its bytes are in big-endian order")
                content = io.BytesIO(archive.read(members["data.pkl"]))
                self.content: Any = Restricted(content, TRAINING).load()
                self._storages = {
                    name.removeprefix("data/"): (data_offset(file, info), info.file_size, info.CRC)
                    for name, info in members.items()
                    if name.startswith("data/")
                }
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{path} is missing: the checkpoint is not complete") from None
        except pickle.UnpicklingError as error:
            raise UserError(f"{path} is no checkpoint's: {error}") from None
        except Exception as error:  # damaged bytes can raise anything
            raise self._unreadable(error) from None

    def read(self, tensor: StoredTensor, box: Box) -> torch.Tensor:
        """The values in ``box`` of a tensor of one axis or more, as they are stored.

        Raises:
            UserError: they cannot be read, or are damaged.
        """
        try:
            offset, size = self.place(tensor)
            # Whole rows are read, and cut: they are contiguous.
            first, last = box[0]
            row = size // max(tensor.shape[0], 1)
            raw = empty(((last - first) * row,), torch.uint8)
            self._fill(raw, offset + first * row)
            self._check(tensor.member, raw)
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(error) from None
        held = (box[0], *full(tensor.shape[1:]))
        return raw.view(tensor.dtype).view(shape_of(held))[slices(box, held)]

    def scalar(self, tensor: StoredTensor) -> float:
        """The one value of a tensor without axes.

        Raises:
            UserError: it cannot be read, or is damaged.
        """
        return self.read(replace(tensor, shape=(1,), stride=(1,)), ((0, 1),)).item()

    def place(self, tensor: StoredTensor) -> tuple[int, int]:
        """Where a tensor's values begin in the file, and their bytes."""
        offset, length, _ = self._storages[tensor.member]
        size = prod(tensor.shape) * tensor.dtype.itemsize
        first = tensor.first * tensor.dtype.itemsize
        if not tensor.row_major:
            raise ValueError("a tensor is not in row-major order")
        if not 0 <= first <= first + size <= length:
            raise ValueError("a tensor is larger than its storage")
        return offset + first, size

    def _check(self, member: str, read: torch.Tensor) -> None:
        """Compare the checksum of a storage, once; ``read`` is some of its bytes, or all."""
        with self._locks[member]:
            if member in self._checked:
                return
            offset, length, expected = self._storages[member]
            found = 0
            if len(read) == length:
                found = _crc32(read, found)
            else:
                buffer = torch.empty(min(length, _CRC_BYTES), dtype=torch.uint8)
                for done in range(0, length, _CRC_BYTES):
                    part = buffer[: min(length - done, _CRC_BYTES)]
                    self._fill(part, offset + done)
                    found = _crc32(part, found)
            if found != expected:
                raise ValueError(f"the checksum of data/{member} is wrong")
            self._checked.add(member)

    def _fill(self, values: torch.Tensor, start: int) -> None:
        memory = memoryview(values.numpy())  # type: ignore[arg-type]
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            if not read_at(descriptor, memory, start):
                raise ValueError("it is truncated")
        finally:
            os.close(descriptor)

    def _unreadable(self, error: Exception) -> UserError:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, zipfile.BadZipFile) and "not a zip" in reason:
            reason = "it is truncated, or not in the format that torch.save has since torch 1.6"
        return UserError(f"{self.path} cannot be read: {reason}")


def _crc32(values: torch.Tensor, before: int) -> int:
    return crc32(memoryview(values.numpy()), before)  # type: ignore[arg-type]

"""Bytes of the device's memory that are in use, and what for."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

_ROUNDED_TO = 512
"""Bytes: what torch's caching allocator rounds a request up to."""


@dataclass(eq=False)
class Peak:
    """The most that has been in use since it was opened."""

    total: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    """Storages that had been seen by then."""


class Ledger:
    """Storages of the device from when they are first seen until nothing refers to them.

    Of a part are those that were made while it was the current one (:meth:`making`), or that
    have been assigned to it since.
    """

    def __init__(self) -> None:
        """Nothing is in use."""
        self.parts: Counter[str] = Counter()
        """Bytes in use now, by part."""
        self.part = "other"
        """The current part."""
        self._counts = True
        self._total = 0
        self._storages: dict[int, tuple[int, str, int]] = {}
        """By address: bytes, part, and how many had been seen with it."""
        self._seen = 0
        self._peaks: list[Peak] = []

    def see(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages or not self._counts:
            return
        size = -(-storage.nbytes() // _ROUNDED_TO) * _ROUNDED_TO
        self._seen += 1
        self._storages[key] = size, self.part, self._seen
        self._total += size
        self.parts[self.part] += size
        for peak in self._peaks:
            if self._total > peak.total:
                peak.total, peak.parts = self._total, Counter(self.parts)
                peak.seen = self._seen
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        if key in self._storages:  # and has not been replaced
            size, part, _ = self._storages.pop(key)
            self._total -= size
            self.parts[part] -= size

    def replace(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """Count the storage of ``new`` instead of that of ``old``, which is about to be freed."""
        self._free(old.untyped_storage()._cdata)
        self.see(new)

    @contextmanager
    def making(self, part: str) -> Iterator[None]:
        """Storages that are first seen in the block are of ``part``."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Storages that are made in the block are in no memory, unless they are seen after it."""
        before, self._counts = self._counts, False
        try:
            yield
        finally:
            self._counts = before

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """Filled while the block lasts."""
        peak = Peak(self._total, Counter(self.parts), self._seen)
        self._peaks.append(peak)
        try:
            yield peak
        finally:
            self._peaks.remove(peak)

    def assign(self, part: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count what is behind ``tensors`` as of ``part``, in open peaks too."""
        for key in {tensor.untyped_storage()._cdata for tensor in tensors}:
            if key in self._storages:
                self._move(key, part)

    def rename(self, parts: Collection[str], part: str) -> None:
        """Count what is now of ``parts`` as of ``part``, in open peaks too."""
        for key in [key for key, (_, its, _) in self._storages.items() if its in parts]:
            self._move(key, part)

    def _move(self, key: int, part: str) -> None:
        size, before, number = self._storages[key]
        self._storages[key] = size, part, number
        # Peaks that it was part of too: what a stage consists of is known once it is built.
        for parts in (self.parts, *(peak.parts for peak in self._peaks if number <= peak.seen)):
            parts[before] -= size
            parts[part] += size

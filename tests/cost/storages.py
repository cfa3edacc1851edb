"""Counts the memory of tensors while a program runs: all storages that operators make."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """Bytes of the storages made under it, or held, that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, tuple] = {}
        self.at_peak: list[tuple] = []

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count ``tensors`` that are there already."""
        for tensor in tensors:
            self._count(tensor, "held")
        self._note_peak()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        before = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in before:
                self._count(leaf, str(func))
        self._note_peak()
        return made

    def _count(self, tensor: torch.Tensor, maker: str) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = (maker, tuple(tensor.shape), storage.nbytes())
            self.now += storage.nbytes()
            weakref.finalize(storage, self._freed, storage._cdata)

    def _note_peak(self) -> None:
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, list(self.alive.values())

    def _freed(self, key: int) -> None:
        self.now -= self.alive.pop(key)[2]

"""Counts the memory of tensors while a program runs: all storages that operators make."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Storages(TorchDispatchMode):
    """Bytes of the storages made under it that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, tuple] = {}
        self.at_peak: list[tuple] = []

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
            if not isinstance(leaf, torch.Tensor):
                continue
            storage = leaf.untyped_storage()
            if storage._cdata in self.alive or storage._cdata in before:
                continue
            self.alive[storage._cdata] = (str(func), tuple(leaf.shape), storage.nbytes())
            self.now += storage.nbytes()
            weakref.finalize(storage, self._freed, storage._cdata)
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, list(self.alive.values())
        return made

    def _freed(self, key: int) -> None:
        self.now -= self.alive.pop(key)[2]

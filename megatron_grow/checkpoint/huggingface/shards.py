"""How tensors are laid out in safetensors files, known before any of them is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch

from megatron_grow.checkpoint.huggingface.files import DTYPES, WEIGHTS

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The order in which the library lays data types out: the widest first keeps all aligned.
_WIDTH_FIRST = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class Stored:
    """A tensor to be stored."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One file."""

    file: str
    header: bytes
    """All that stands before the first tensor."""
    offsets: dict[str, int]
    """Where each tensor begins, in bytes from the start of the file."""
    nbytes: int
    """Of all tensors."""


def plan(tensors: Iterable[Stored], max_shard_size: int) -> list[Shard]:
    """Deal tensors to files, in order.

    Args:
        tensors: what is stored.
        max_shard_size: bytes of tensors in one file; a tensor that is larger has one to itself.
    """
    groups: list[list[Stored]] = [[]]
    used = 0
    for tensor in tensors:
        if groups[-1] and used + tensor.nbytes > max_shard_size:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.nbytes
    if len(groups) == 1:
        return [_shard(WEIGHTS, groups[0])]
    return [
        _shard(f"model-{number:05}-of-{len(groups):05}.safetensors", group)
        for number, group in enumerate(groups, start=1)
    ]


def _shard(file: str, tensors: list[Stored]) -> Shard:
    table: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda t: (_WIDTH_FIRST.index(_NAMES[t.dtype]), t.name)):
        starts[tensor.name], end = end, end + tensor.nbytes
        table[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [starts[tensor.name], end],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + start for name, start in starts.items()}
    return Shard(file, header, offsets, end)

"""Memory of large tensors on the CPU that come and go."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from mmap import mmap

import numpy as np
import torch

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As ``torch.empty``, but of numpy's memory.

    torch asks glibc for memory at multiples of 64 bytes, and glibc before 2.38 does not find what
    was freed for the next such request of the same size: a process that makes and frees blocks of
    128 MiB grew to three times what it held. numpy uses ``malloc``, and asks for huge pages.
    """
    if not prod(shape):
        return torch.empty(tuple(shape), dtype=dtype)  # from numpy its stride would be 0
    memory = np.empty(prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(tuple(shape))


def contiguous(values: torch.Tensor) -> torch.Tensor:
    """As ``values.contiguous()``, of such memory."""
    if values.is_contiguous():
        return values
    return empty(values.shape, values.dtype).copy_(values)


def as_bits(values: torch.Tensor) -> torch.Tensor:
    """``values`` seen as integers of their size: numpy has no bfloat16, and no NaN is itself."""
    return values.view(_BITS[values.element_size()])


def cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As ``values.to(dtype)``, of such memory where it is on the CPU."""
    if values.dtype == dtype or not values.is_cpu:
        return values.to(dtype)
    return empty(values.shape, dtype).copy_(values)


def host_copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies of ``tensors`` as they are now, row-major, in the host's memory.

    What is on a GPU goes to page-locked memory, several times as fast. torch keeps that for the
    next time, in blocks of powers of two.
    """
    copies = [_host_empty(data).copy_(data, non_blocking=True) for data in tensors]
    if not all(data.is_cpu for data in tensors):
        torch.cuda.synchronize()
    return copies


def _host_empty(data: torch.Tensor) -> torch.Tensor:
    if data.is_cpu and data.nbytes:
        # Mapped by itself, so that all of it goes back whichever thread lets go of it: malloc would
        # keep most, between what training has made and freed meanwhile.
        return torch.frombuffer(mmap(-1, data.nbytes), dtype=data.dtype).view(data.shape)
    return torch.empty(data.shape, dtype=data.dtype, pin_memory=not data.is_cpu)

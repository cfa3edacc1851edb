"""What makes torch fast on a CPU beside what makes megatron-core run there; see :mod:`.cpu`."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any

import torch

_LIBC = ctypes.CDLL(None)
# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def install() -> None:
    """Apply to this process; called once, by :func:`megatron_grow.parallel.cpu.install`."""
    if hasattr(_LIBC, "malloc_trim"):
        _keep_freed_memory()
    if not _multiplies_bf16():
        torch.matmul = _in_fp32(torch.matmul)
        for name in ("matmul", "__matmul__"):
            setattr(torch.Tensor, name, _in_fp32(getattr(torch.Tensor, name)))


def _keep_freed_memory() -> None:
    """Let malloc reuse the memory of large tensors, as the GPU's allocator does.

    By default glibc returns each to the system and faults it in again at the next step, page by
    page, which takes longer than to compute an activation.
    """
    _LIBC.mallopt(_M_MMAP_MAX, 0)
    _LIBC.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    torch.cuda.empty_cache = lambda: _LIBC.malloc_trim(0)


def _multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 matrices."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _in_fp32(matmul: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``matmul`` that multiplies bf16 matrices in fp32 and rounds the product.

    Where the instructions are missing, oneDNN emulates them at a fifth of the speed of fp32. The
    sums are in fp32 either way.
    """

    def multiply(*args: Any, **kwargs: Any) -> torch.Tensor:
        if not kwargs:
            left, right = args
            if left.dtype is right.dtype is torch.bfloat16:
                return matmul(left.float(), right.float()).bfloat16()
        return matmul(*args, **kwargs)

    return multiply

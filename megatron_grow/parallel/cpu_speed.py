"""What makes torch fast on a CPU beside what makes megatron-core run there; see :mod:`.cpu`."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch

from megatron_grow.parallel.malloc import give_back_freed_memory, keep_freed_memory


def install() -> None:
    """Apply to this process; called once, by :func:`megatron_grow.parallel.cpu.install`."""
    keep_freed_memory()
    torch.cuda.empty_cache = give_back_freed_memory
    if not _multiplies_bf16():
        torch.matmul = _in_fp32(torch.matmul)
        for name in ("matmul", "__matmul__"):
            setattr(torch.Tensor, name, _in_fp32(getattr(torch.Tensor, name)))


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

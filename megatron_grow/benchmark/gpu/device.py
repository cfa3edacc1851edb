"""The device that is measured: its memory, its peak, waiting for it."""

from __future__ import annotations

import gc
from typing import Any

import torch

from megatron_grow.benchmark import memory
from megatron_grow.cost.devices import DEVICES, device_of_product

OUT_OF_MEMORY = torch.OutOfMemoryError


def facts() -> dict[str, Any]:
    """What is measured on; asked in a worker, since asking takes the device."""
    found: dict[str, Any] = {"torch": torch.__version__, "peak_flops": peak_flops()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def peak_flops() -> float | None:
    """bf16 FLOP/s that the device could do at most; None where no table says it."""
    if not torch.cuda.is_available():
        return None
    name = device_of_product(torch.cuda.get_device_name())
    return DEVICES[name].bf16 if name else None


def capacity() -> int:
    """Bytes that are free on the device, or what a test may use of the host's."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 1 << 30


def synchronize() -> None:
    """Wait until the device has done all that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_peak() -> None:
    """Forget the highest use of memory so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        memory.start_peak()


def peak_memory() -> dict[str, int]:
    """The most bytes since :func:`start_peak`: in tensors, and held by the allocator."""
    if not torch.cuda.is_available():
        return {"peak_allocated": memory.peak(), "peak_reserved": memory.peak()}
    return {
        "peak_allocated": torch.cuda.max_memory_allocated(),
        "peak_reserved": torch.cuda.max_memory_reserved(),
    }


def let_go() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

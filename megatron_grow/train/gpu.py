"""What a run tells of its GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_grow.config.run import RunConfig
from megatron_grow.cost.devices import DEVICES, device_of_product
from megatron_grow.cost.flops import model_flops_per_token
from megatron_grow.methods.base import Context
from megatron_grow.parallel.agreement import reduced
from megatron_grow.train.rows import GpuNumbers


@dataclass(frozen=True)
class Gpu:
    """The GPU of this rank; all ranks have the same kind."""

    peak: float | None
    """FLOPs per second that MFU is a share of; None: nobody says."""
    peak_memory: Callable[[], int]
    """Bytes that tensors have had at most since the stage began."""

    def numbers(self, ctx: Context, tokens_per_second: float, waited: float) -> GpuNumbers:
        """Of a stretch of steps; every rank takes part.

        Args:
            ctx: the last of them.
            tokens_per_second: of all ranks together.
            waited: share of the time that this rank waited for data.
        """
        each = tokens_per_second / dist.get_world_size()
        worst = torch.tensor([self.peak_memory(), waited], dtype=torch.float64)
        memory, waited = reduced(worst, "max").tolist()
        numbers: GpuNumbers = {
            "tokens_per_second_per_gpu": each,
            "peak_memory": int(memory),
            "data_wait": waited,
        }
        if self.peak is not None:
            stage = ctx.stage
            flops = model_flops_per_token(stage.model, stage.batch.seq_length, data=ctx.run.data)
            numbers["mfu"] = flops * each / self.peak
        return numbers


def gpu_of(config: RunConfig) -> Gpu | None:
    """The GPU that this rank begins a stage on; None where it computes on a CPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.reset_peak_memory_stats()
    if config.logging.peak_tflops is not None:
        return Gpu(config.logging.peak_tflops * 1e12, torch.cuda.max_memory_allocated)
    name = device_of_product(torch.cuda.get_device_name())
    return Gpu(DEVICES[name].bf16 if name else None, torch.cuda.max_memory_allocated)

"""The process group of the job, and the model-parallel groups of one stage."""

from __future__ import annotations

import gc
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.parallel import cpu


def start(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Join the job that ``torchrun`` describes; a bare process is a job of one."""
    cpu.install()
    # One queue, so that communication starts in the order in which it was asked for and overlaps
    # with compute (megatron-core wants it under tensor parallelism).
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "0")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Gloo beside NCCL: growth plans and stop requests travel as Python objects.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timeout)
    # What has been imported stays: the collector need not walk through all of it at every growth.
    gc.collect()
    gc.freeze()


def stop() -> None:
    """Leave the job."""
    tear_down()
    if dist.is_initialized():
        dist.destroy_process_group()


def set_up(layout: ParallelConfig, seed: int) -> None:
    """Build megatron-core's process groups for ``layout``."""
    tear_down()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        # Any number here, even 1, asks for the interleaved schedule.
        virtual_pipeline_model_parallel_size=(
            layout.model_chunks if layout.model_chunks > 1 else None
        ),
        context_parallel_size=layout.context_parallel_size,
        create_gloo_process_groups=False,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def tear_down() -> None:
    """Destroy megatron-core's process groups, so that another layout can be set up."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()


def is_first_chunk(number: int) -> bool:
    """Whether chunk ``number`` of this rank, from 0, is the one with the embedding."""
    return parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number)


def is_last_chunk(number: int) -> bool:
    """Whether chunk ``number`` of this rank, from 0, is the one with the head and the loss."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number)

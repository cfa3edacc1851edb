"""The process group of the job, and the model-parallel groups of one stage."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.parallel import cpu, launch
from megatron_grow.parallel.watch import Watch
from megatron_grow.state.axes import MeshDim
from megatron_grow.state.sharding import Mesh, Place

_watch: Watch | None = None


def start(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Join the job that the environment describes; a process without one is a job of one.

    Raises:
        UserError: the environment does not say where the other ranks or this rank's GPU are.
    """
    global _watch
    cpu.install()
    if dist.is_initialized():
        return
    if "RANK" not in os.environ:
        os.environ.update(launch.ALONE)
    launch.check_address(os.environ)
    if torch.cuda.is_available():
        torch.cuda.set_device(launch.own_gpu(os.environ, torch.cuda.device_count()))
    # Gloo beside NCCL: growth plans and stop requests travel as Python objects.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, world_size = _connect(timeout)
    if world_size > 1:
        agent = "TORCHELASTIC_RUN_ID" in os.environ
        _watch = Watch(_connect(timeout)[0], holds_store=rank == 0 and not agent)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    # What has been imported stays: the collector need not walk through all of it at every growth.
    gc.collect()
    gc.freeze()


def _connect(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """A connection to the job's store; this process's rank and how many there are."""
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    # The agent's store outlives an attempt (torchrun --max-restarts), and so would its addresses.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt_{attempt}", store), rank, world_size


def watch() -> Watch | None:
    """What tells the other ranks of a failure; None in a job that this process has not joined."""
    return _watch


def stop() -> None:
    """Leave the job, all ranks together; a rank that has failed must not wait for the others."""
    global _watch
    tear_down()
    if _watch is not None:
        _watch.end()
        dist.barrier()  # whoever still watches would take the first to leave for a failed one
        _watch = None
    if dist.is_initialized():
        dist.destroy_process_group()


def set_up(layout: ParallelConfig, seed: int) -> None:
    """Build megatron-core's process groups for ``layout``."""
    tear_down()
    with _on_one_backend(_backend()):
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor_model_parallel_size,
            pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
            # Any number here, even 1, asks for the interleaved schedule.
            virtual_pipeline_model_parallel_size=(
                layout.model_chunks if layout.model_chunks > 1 else None
            ),
            context_parallel_size=layout.context_parallel_size,
            expert_model_parallel_size=layout.expert_model_parallel_size,
            expert_tensor_parallel_size=layout.expert_tensor_parallel_size,
            create_gloo_process_groups=False,
        )
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def tear_down() -> None:
    """Destroy megatron-core's process groups, so that another layout can be set up."""
    if not parallel_state.model_parallel_is_initialized():
        return
    # In the order in which they were made, so that the ranks of each group destroy it together.
    _, *groups = parallel_state._global_process_group_list
    parallel_state.destroy_model_parallel()
    for group in groups:
        dist.destroy_process_group(group)


def among_stages(stages: Sequence[int]) -> dist.ProcessGroup | None:
    """The ranks of some pipeline stages that have this rank's place in their stage.

    Every rank of the job takes part; it is torn down with the layout.

    Args:
        stages: numbers of pipeline ranks, in order.

    Returns:
        None where this rank is of none of them, or of one alone.
    """
    pipeline = parallel_state.get_pipeline_model_parallel_group()
    if len(stages) < 2:
        return None
    if len(stages) == pipeline.size():
        return pipeline
    # Stages are megatron-core's outermost dimension: each is a run of ranks.
    size = dist.get_world_size() // pipeline.size()
    backend, found = _backend(), None
    for place in range(size):
        ranks = [stage * size + place for stage in stages]
        group = parallel_state.create_group(ranks, backend=backend)
        found = group if dist.get_rank() in ranks else found
    return found


def _backend() -> str:
    """Of what is on the device."""
    return "nccl" if torch.cuda.is_available() else "gloo"


@contextmanager
def _on_one_backend(backend: str) -> Iterator[None]:
    """Make megatron-core's groups use ``backend`` alone.

    They carry what is on the device. By default each would have a backend for the CPU too, with a
    thread and a socket for every peer.
    """
    create = parallel_state.create_group

    def create_on_it(*args: Any, **kwargs: Any) -> dist.ProcessGroup:
        return create(*args, **{**kwargs, "backend": kwargs.get("backend") or backend})

    parallel_state.create_group = create_on_it
    try:
        yield
    finally:
        parallel_state.create_group = create


def mesh() -> Mesh:
    """Ranks along each dimension of the current stage's layout."""
    return {
        MeshDim.TENSOR: parallel_state.get_tensor_model_parallel_world_size(),
        MeshDim.EXPERT: parallel_state.get_expert_model_parallel_world_size(),
        MeshDim.EXPERT_TENSOR: parallel_state.get_expert_tensor_parallel_world_size(),
    }


def place() -> Place:
    """This rank's coordinate along each dimension."""
    return {
        MeshDim.TENSOR: parallel_state.get_tensor_model_parallel_rank(),
        MeshDim.EXPERT: parallel_state.get_expert_model_parallel_rank(),
        MeshDim.EXPERT_TENSOR: parallel_state.get_expert_tensor_parallel_rank(),
    }


def replica(of_experts: bool) -> tuple[int, int]:
    """This rank's number among those that hold the same part of a tensor, and how many they are.

    Ranks that a tensor is not shared out over hold the same of it, too; they are not counted.

    Args:
        of_experts: whether the tensor is shared out over the ranks of experts.
    """
    if of_experts:
        return (
            parallel_state.get_expert_data_parallel_rank(),
            parallel_state.get_expert_data_parallel_world_size(),
        )
    return (
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    )


def is_first_chunk(number: int) -> bool:
    """Whether chunk ``number`` of this rank, from 0, is the one with the embedding."""
    return parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=number)


def is_last_chunk(number: int) -> bool:
    """Whether chunk ``number`` of this rank, from 0, is the one with the head and the loss."""
    return parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=number)

"""The process group of the job, and the model-parallel groups of one stage."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.parallel import cpu, launch
from megatron_grow.parallel.patience import Limits
from megatron_grow.parallel.roll_call import RollCall
from megatron_grow.parallel.watch import Watch
from megatron_grow.state.axes import MeshDim
from megatron_grow.state.sharding import Mesh, Place

_watch: Watch | None = None
_limits = Limits()


def start(limits: Limits = _limits) -> None:
    """Join the job that the environment describes; a process without one is a job of one.

    Args:
        limits: how long ranks wait for each other, from now on.

    Raises:
        UserError: the environment does not say where the other ranks or this rank's GPU are.
    """
    global _watch, _limits
    _limits = limits
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
    store, rank, world_size = _connect_to_store()
    if world_size > 1:
        roll = RollCall(_connect_to_store()[0], rank, world_size)
        _watch = Watch(roll, limits, holds_store=rank == 0 and not launch.agent_holds_store())
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=_of_groups()
    )
    # What has been imported stays: the collector need not walk through all of it at every growth.
    gc.collect()
    gc.freeze()


def _of_groups() -> timedelta:
    """The longest that a collective may take. The watch, which can say more, comes first."""
    return timedelta(minutes=ceil(max(_limits) / timedelta(minutes=1)) + 1)


def _connect_to_store() -> tuple[dist.Store, int, int]:
    """A connection to the job's store; this process's rank and how many there are."""
    store, rank, world_size = next(dist.rendezvous("env://", timeout=_limits.pause))
    if launch.agent_holds_store():  # it outlives an attempt, and so would an attempt's addresses
        attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
        store = dist.PrefixStore(f"attempt_{attempt}", store)
    return store, rank, world_size


def watch() -> Watch | None:
    """What tells the other ranks of a failure; None in a job that this process has not joined."""
    return _watch


def stop() -> None:
    """Leave the job, all ranks together; a rank that has failed must not wait for the others."""
    global _watch
    tear_down()
    if _watch is not None:
        _watch.end()
        # Whoever still watches would take the first to leave for a failed one.
        dist.all_reduce(torch.zeros(1), async_op=True).wait(_limits.step)
        _watch = None
    if dist.is_initialized():
        dist.destroy_process_group()


def set_up(layout: ParallelConfig, seed: int) -> float:
    """Build megatron-core's process groups for ``layout``, and connect those that training uses.

    Returns:
        Seconds that it took.
    """
    tear_down()
    began = time.perf_counter()
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
            distributed_timeout_minutes=_of_groups() // timedelta(minutes=1),
        )
    _connect_groups()
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return time.perf_counter() - began


def _connect_groups() -> None:
    """Let the ranks of each group that training uses meet.

    NCCL connects them in a group's first collective, which would else be one of the first step's.
    """
    gradients = parallel_state.get_data_parallel_group(with_context_parallel=True)
    groups = (
        gradients,
        parallel_state.get_data_parallel_group(),
        parallel_state.get_intra_distributed_optimizer_instance_group(),
        parallel_state.get_tensor_model_parallel_group(),
        parallel_state.get_context_parallel_group(),
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_model_parallel_group(),
        parallel_state.get_embedding_group(check_initialized=False),
        parallel_state.get_position_embedding_group(check_initialized=False),
        parallel_state.get_expert_model_parallel_group(),
        parallel_state.get_expert_tensor_parallel_group(),
        parallel_state.get_expert_tensor_model_pipeline_parallel_group(),
        parallel_state.get_expert_data_parallel_group(),
    )
    for group in groups:  # in one order on all ranks, of which each has some
        # megatron-core reduces gradients over one rank, too.
        if group is gradients or _has_others(group):
            _connect(group)


def _has_others(group: dist.ProcessGroup | None) -> bool:
    """Whether this rank is in ``group``, and not alone."""
    return isinstance(group, dist.ProcessGroup) and group.size() > 1


def _connect(group: dist.ProcessGroup) -> None:
    if dist.get_world_size() > 1:
        met = torch.ones((), device=cpu.device())
        dist.all_reduce(met, group=group)
        if met.is_cuda:
            torch.cuda.synchronize()  # NCCL connects while the host goes on


def tear_down() -> None:
    """Destroy megatron-core's process groups, so that another layout can be set up."""
    if not parallel_state.model_parallel_is_initialized():
        return
    # In the order in which they were made, so that the ranks of each group destroy it together.
    _, *groups = parallel_state._global_process_group_list
    parallel_state.destroy_model_parallel()
    for group in groups:
        dist.destroy_process_group(group)


def for_a_thread() -> dist.ProcessGroup:
    """One more group of all ranks, for what is on the CPU: two threads of a rank must not use one,
    or the messages of one are taken for those of the other. Every rank takes part."""
    return dist.new_group(timeout=_of_groups(), backend="gloo")


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
        group = parallel_state.create_group(ranks, timeout=_of_groups(), backend=backend)
        found = group if dist.get_rank() in ranks else found
    if found is not None:
        _connect(found)
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

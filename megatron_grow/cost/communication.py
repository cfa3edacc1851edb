"""What the ranks of a job send each other in a step, and how fast the links between them are."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.cost.devices import Device
from megatron_grow.cost.step import Step


@dataclass(frozen=True)
class Links:
    """Bytes per second that a rank sends, at the speed of data sheets."""

    tensor: float
    """To tensor-parallel ranks, which are neighbours."""
    data: float
    """To data-parallel ranks. A ring leaves a node once, and each of its ranks in the node has a
    network card: rings share all of these."""
    pipeline: float
    """To the next pipeline rank: these are as far apart as can be."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in one step."""

    sums: int
    """Over tensor-parallel ranks, by rings."""
    tensor: float
    """Of these sums."""
    gradients: float
    """Reduction of gradients, which are fp32."""
    weights: float
    """Gathering of updated weights, where ranks share the optimizer's state."""
    sends: int
    """To the next pipeline rank, as many as to the one before."""
    pipeline: float
    """Of activations to the next pipeline rank, as much as of their gradients to the one before."""


def links(parallel: ParallelConfig, world_size: int, device: Device, network: float) -> Links:
    """Between the ranks of a layout, in megatron-core's order of them: TP, CP, DP, PP.

    Args:
        parallel: the layout.
        world_size: ranks of the job.
        device: what each rank has.
        network: between nodes, bytes per second in each direction, for each GPU.
    """
    node, slow = device.gpus_per_node, min(device.link, network)
    tensor = parallel.tensor_model_parallel_size
    of_pipeline_rank = world_size // parallel.pipeline_model_parallel_size
    cards = max(1, node // tensor)
    return Links(
        tensor=device.link if tensor <= node else slow,
        data=device.link if of_pipeline_rank <= node else min(device.link, cards * network),
        pipeline=device.link if world_size <= node else slow,
    )


def traffic(step: Step, rank: int) -> Traffic:
    """Of a pipeline rank, in one step."""
    placed, one = step.placement, step.activations
    parallel, states = placed.parallel, placed.states[rank]
    tensor, peers = parallel.tensor_model_parallel_size, placed.replicas
    stream = one.boundary * (tensor if parallel.sequence_parallel else 1)
    # An all-reduce is a reduce-scatter and an all-gather, which sequence parallelism has instead.
    # A branch of a layer has one in each direction, and one more where it is recomputed; so have
    # the embedding on the way down and the head on the way back.
    ends = (rank == 0) + (rank == parallel.pipeline_model_parallel_size - 1)
    in_layers = sum(placed.layers[rank]) * (6 if step.recompute_num_layers else 4)
    sums = step.micro_batches * (in_layers + ends) if tensor > 1 else 0
    piped = parallel.pipeline_model_parallel_size > 1
    sends = step.micro_batches * parallel.model_chunks if piped else 0
    gradients = states.gradients * (peers - 1) / peers
    return Traffic(
        sums=sums,
        tensor=sums * 2 * stream * (tensor - 1) / tensor,
        gradients=gradients if placed.shares_state else 2 * gradients,
        weights=states.weights * (peers - 1) / peers if placed.shares_state else 0.0,
        sends=sends,
        pipeline=float(sends * one.boundary),
    )

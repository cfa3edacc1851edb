"""What the ranks of a job send each other in a step, and how fast the links between them are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.cost.buckets import buckets
from megatron_grow.cost.devices import Device
from megatron_grow.cost.step import Placement, Step


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

    exposed: int
    """Gatherings and scatterings of the residual stream among tensor-parallel ranks, by rings, that
    the next product has to wait for. A sum over these ranks is one of each."""
    beside: int
    """Those beside which a product of the backward pass is computed."""
    halves: float
    """Bytes of each."""
    messages: int
    """In which they are sent."""
    reductions: tuple[float, ...]
    """Of gradients, which are fp32: of each bucket, the first one to be complete first."""
    gatherings: tuple[float, ...]
    """Of updated weights, of the same buckets, where ranks share the optimizer's state."""
    sends: int
    """To the next pipeline rank, as many as to the one before."""
    pipeline: float
    """Of activations to the next pipeline rank, as much as of their gradients to the one before."""

    @property
    def tensor(self) -> float:
        """Among tensor-parallel ranks."""
        return (self.exposed + self.beside) * self.halves


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
    parallel, micro_batches = placed.parallel, step.micro_batches
    tensor, shared = parallel.tensor_model_parallel_size, parallel.sequence_parallel
    stream = one.boundary * (tensor if shared else 1)
    # Each of a layer's two branches sums its output, and the gradient of its input, the latter
    # beside the gradient of its first matrix. With sequence parallelism a sum is a scattering and a
    # gathering, at the branch's ends; the backward pass gathers the input once more, beside the
    # gradient of that input. Embedding and head are the halves of a branch.
    layers = sum(placed.layers[rank]) if tensor > 1 else 0
    ends = (rank == 0) + (rank == parallel.pipeline_model_parallel_size - 1) if tensor > 1 else 0
    in_layer = 4 + 2 * shared + 4 * bool(step.recompute_num_layers)
    exposed = micro_batches * (layers * in_layer + ends * (2 + shared))
    beside = micro_batches * 4 * layers
    piped = parallel.pipeline_model_parallel_size > 1
    sends = micro_batches * parallel.model_chunks if piped else 0
    reductions, gatherings = _of_buckets(placed, rank)
    return Traffic(
        exposed=exposed,
        beside=beside,
        halves=stream * (tensor - 1) / tensor,
        messages=(exposed + beside) // (1 if shared else 2),
        reductions=reductions,
        gatherings=gatherings,
        sends=sends,
        pipeline=float(sends * one.boundary),
    )


@lru_cache(maxsize=1024)  # batches of a layout share it
def _of_buckets(placed: Placement, rank: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Reductions of fp32 gradients and gatherings of weights."""
    parallel = placed.parallel
    width = 2 if placed.precision == "bf16" else 4
    reductions, gatherings = [], []
    for of_experts in (True, False):
        peers = parallel.replicas(placed.world_size, of_experts=of_experts)
        for bucket in buckets(placed, rank, of_experts=of_experts) if peers > 1 else ():
            sent = sum(each.numel for each in bucket) * (peers - 1) / peers
            reductions.append(4 * sent * (1 if placed.shares_state else 2))
            if placed.shares_state:
                gatherings.append(width * sent)
    return tuple(reductions), tuple(gatherings)

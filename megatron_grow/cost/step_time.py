"""How long a training step takes, by formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_grow.cost.communication import Traffic, links, traffic
from megatron_grow.cost.devices import Device
from megatron_grow.cost.flops import model_flops_per_token
from megatron_grow.cost.step import Step

_BACKWARD = 2
"""How many times a forward pass a backward pass takes."""


@dataclass(frozen=True)
class Machine:
    """GPUs, and what share of their data sheets' speeds a run is taken to reach."""

    device: Device
    network: float
    """Between nodes, bytes per second in each direction, for each GPU."""
    efficiency: float
    """Of the peak of bf16, while a rank computes and does not wait for others. Counted are the
    operations of :func:`.flops.model_flops_per_token`, and those that are done again."""
    link_efficiency: float
    """Of links and network."""
    latency: float
    """Seconds that a message takes, however short."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what the pipeline rank with most to do does in them."""

    compute: float
    bubble: float
    """It waits for the first micro-batch, or for the last one to be done elsewhere."""
    tensor: float
    """Communication of tensor-parallel ranks, without what products of the backward pass hide."""
    pipeline: float
    """Sends between pipeline ranks."""
    data: float
    """Reduction of gradients and gathering of weights, without what computation hides."""
    update: float
    """The optimizer's, at the speed of memory."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.bubble + self.tensor + self.pipeline + self.data + self.update


def step_time(step: Step, machine: Machine) -> StepTime:
    """Seconds of a step in bf16.

    Not counted: launches of kernels, on which small models wait; data, evaluations, checkpoints;
    the exchange of context-parallel ranks.
    """
    placed = step.placement
    parallel, world_size = placed.parallel, placed.world_size
    passes = _passes(step, machine)
    slowest = max(range(len(passes)), key=passes.__getitem__)
    sent = traffic(step, slowest)
    speed = links(parallel, world_size, machine.device, machine.network)
    reached = machine.link_efficiency
    compute = step.micro_batches * passes[slowest]
    tensor = _tensor(sent, step, slowest, machine, speed.tensor * reached)
    # The other ranks' share of the first micro-batch, and of the last one, is waited for.
    waits = (sum(passes) / passes[slowest] - 1) / (step.micro_batches * parallel.model_chunks)
    return StepTime(
        compute=compute,
        bubble=waits * (compute + tensor),
        tensor=tensor,
        pipeline=2 * (sent.pipeline / (speed.pipeline * reached) + sent.sends * machine.latency),
        data=_data(step, passes, speed.data * reached, machine.latency),
        update=_update_bytes(step, slowest) / machine.device.memory_bandwidth,
    )


def model_flops(step: Step) -> float:
    """Arithmetic that the step needs, as model FLOPs utilisation counts it."""
    model, length = step.placement.model, step.batch.seq_length
    return step.batch.tokens * model_flops_per_token(model, length, data=step.data)


def _passes(step: Step, machine: Machine) -> list[float]:
    """Seconds that one micro-batch takes on each pipeline rank, forward and backward."""
    again = 1 / (1 + _BACKWARD) if step.recompute_num_layers else 0
    layer, head = _flops(step)
    counts = [sum(chunks) for chunks in step.placement.layers]
    flops = [count * layer * (1 + again) for count in counts]
    flops[-1] += head
    return [each / _speed(step, machine) for each in flops]


def _flops(step: Step) -> tuple[float, float]:
    """Of a micro-batch: in one layer, and in the head; forward and backward."""
    model, length = step.placement.model, step.batch.seq_length
    whole = model_flops_per_token(model, length, data=step.data)
    without = replace(model, num_layers=0, layer_sharing=None)
    head = model_flops_per_token(without, length, data=step.data)
    tokens = step.batch.micro_batch_size * length
    return tokens * (whole - head) / max(1, model.num_layers), tokens * head


def _speed(step: Step, machine: Machine) -> float:
    """FLOPs per second of the ranks that compute a micro-batch together."""
    parallel = step.placement.parallel
    ranks = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    return machine.device.bf16 * machine.efficiency * ranks


def _tensor(sent: Traffic, step: Step, rank: int, machine: Machine, speed: float) -> float:
    """Seconds of tensor-parallel communication beside which nothing is computed.

    About half of a layer's backward pass, as long as its forward pass, are the products of the
    matrices at which branches begin; what is sent meanwhile is hidden by them.
    """
    total = sent.exposed + sent.beside
    if not total:
        return 0.0
    each = sent.halves / speed + machine.latency * sent.messages / total
    layer, _ = _flops(step)
    layers = step.micro_batches * sum(step.placement.layers[rank])
    products = layers * layer / (1 + _BACKWARD) / _speed(step, machine)
    return sent.exposed * each + max(0.0, sent.beside * each - products)


def _data(step: Step, passes: Sequence[float], speed: float, latency: float) -> float:
    """Seconds of data-parallel communication beside which nothing is computed.

    Gradients are reduced while the last micro-batch passes back, whatever the number of
    micro-batches, and weights are gathered while the first one passes forward, where the layout
    says so. The last bucket of gradients is complete when nothing is left to compute, and the
    first micro-batch needs it first. Later pipeline ranks reduce all at once, while earlier ones
    still pass back; what they gather, they gather when the first micro-batch comes.
    """
    parallel = step.placement.parallel
    reductions, gatherings = [], []
    for rank in range(len(passes)):
        sent = traffic(step, rank)
        reductions.append([each / speed + latency for each in sent.reductions])
        gatherings.append([each / speed + latency for each in sent.gatherings])
    forward, overlaps = passes[0] / (1 + _BACKWARD), parallel.overlap_grad_reduce
    reduced = [_left(reductions[0], _BACKWARD * forward if overlaps else 0.0)]
    for rank in range(1, len(passes)):
        earlier = sum(passes[:rank]) / parallel.model_chunks * _BACKWARD / (1 + _BACKWARD)
        reduced.append(max(0.0, sum(reductions[rank]) - earlier))
    if not parallel.overlap_param_gather:
        return max(reduced) + max(map(sum, gatherings))
    later = sum(map(sum, gatherings[1:])) / parallel.model_chunks
    return max(reduced) + _left(gatherings[0], forward) + later


def _left(messages: Sequence[float], hidden: float) -> float:
    """Seconds of ``messages`` that ``hidden`` seconds do not hide; the last one never is."""
    return max(messages[-1], sum(messages) - hidden) if messages else 0.0


def _update_bytes(step: Step, rank: int) -> float:
    """That the optimizer reads and writes: gradients for their norm, and to clip and to use them;
    its state and what it updates, both ways."""
    states = step.placement.states[rank]
    shared = step.placement.replicas if step.placement.shares_state else 1
    gradients, weights = states.gradients / shared, states.weights / shared
    return 4 * gradients + 2 * (states.main_params + states.moments) + weights

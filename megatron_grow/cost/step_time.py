"""How long a training step takes, by formula."""

from __future__ import annotations

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
    """Communication of tensor-parallel ranks; none of it is taken to be hidden."""
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
    tensor = sent.tensor / (speed.tensor * reached) + sent.sums * machine.latency
    # The other ranks' share of the first micro-batch, and of the last one, is waited for.
    waits = (sum(passes) / passes[slowest] - 1) / (step.micro_batches * parallel.model_chunks)
    return StepTime(
        compute=compute,
        bubble=waits * (compute + tensor),
        tensor=tensor,
        pipeline=2 * (sent.pipeline / (speed.pipeline * reached) + sent.sends * machine.latency),
        data=_exposed(sent, step, speed.data * reached, machine.latency, passes[slowest]),
        update=_update_bytes(step, slowest) / machine.device.memory_bandwidth,
    )


def model_flops(step: Step) -> float:
    """Arithmetic that the step needs, as model FLOPs utilisation counts it."""
    model, length = step.placement.model, step.batch.seq_length
    return step.batch.tokens * model_flops_per_token(model, length, data=step.data)


def _passes(step: Step, machine: Machine) -> list[float]:
    """Seconds that one micro-batch takes on each pipeline rank, forward and backward."""
    placed, length = step.placement, step.batch.seq_length
    model, parallel = placed.model, placed.parallel
    whole = model_flops_per_token(model, length, data=step.data)
    without = replace(model, num_layers=0, layer_sharing=None)
    head = model_flops_per_token(without, length, data=step.data)
    layer = (whole - head) / max(1, model.num_layers)
    if step.recompute_num_layers:
        layer *= (2 + _BACKWARD) / (1 + _BACKWARD)
    ranks = parallel.tensor_model_parallel_size * parallel.context_parallel_size
    tokens = step.batch.micro_batch_size * length
    reached = machine.device.bf16 * machine.efficiency * ranks
    counts = [sum(chunks) for chunks in placed.layers]
    flops = [count * layer for count in counts]
    flops[-1] += head
    return [tokens * each / reached for each in flops]


def _exposed(sent: Traffic, step: Step, speed: float, latency: float, one_pass: float) -> float:
    """Seconds of data-parallel communication beside which nothing is computed.

    Gradients are reduced while the last micro-batch passes back, weights gathered while the first
    one passes forward, where the layout says so.
    """
    parallel, forward = step.placement.parallel, one_pass / (1 + _BACKWARD)
    beside = [
        (sent.gradients, _BACKWARD * forward if parallel.overlap_grad_reduce else 0.0),
        (sent.weights, forward if parallel.overlap_param_gather else 0.0),
    ]
    return sum(max(0.0, each / speed + latency - hidden) for each, hidden in beside if each)


def _update_bytes(step: Step, rank: int) -> float:
    """That the optimizer reads and writes: gradients for their norm, and to clip and to use them;
    its state and what it updates, both ways."""
    states = step.placement.states[rank]
    shared = step.placement.replicas if step.placement.shares_state else 1
    gradients, weights = states.gradients / shared, states.weights / shared
    return 4 * gradients + 2 * (states.main_params + states.moments) + weights

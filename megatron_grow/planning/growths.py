"""What a growth moves, and how long it stops the training."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from megatron_grow.cost.communication import links
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.cost.peak import growth_peak
from megatron_grow.growth.budget import budget
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.planning.search import Option

_BYTES = 4  # all state moves in fp32
FRESH_PER_SECOND = 40e6
"""Normal values that one core makes of a seed: 85 million in 2 seconds (a Xeon of 2.5 GHz,
docs/benchmarks.md). A process has all of its cores draw, so a pause is shorter where there are
some."""


@dataclass(frozen=True)
class GrowthForecast:
    """Of one growth, by shapes alone: what an operator draws on is not asked."""

    step: int
    """Of the run, after which it happens."""
    source_parameters: int
    target_parameters: int
    carried_bytes: int
    """Main parameters and optimizer state that may come from the source, at most; each once,
    however many ranks hold them."""
    received_bytes: int
    """Of these, that a rank has to receive, at most: all of its part."""
    pause: float
    """Seconds: receiving these over the slowest link, and making all other values. Building the
    groups of NCCL and allocating memory come on top, and are not known before they are measured."""
    memory: int
    """Bytes on the fullest rank, which holds the old state and the new one at once."""


def forecast_growth(step: int, before: Option, after: Option) -> GrowthForecast:
    """Of the growth from one stage's layout to the next one's.

    Args:
        step: of the run.
        before: the layout of the stage that ends.
        after: that of the stage that begins.
    """
    old, new = before.step.placement, after.step.placement
    source, target = logical_tensors(old.model), logical_tensors(new.model)
    drawn = state = 0
    for key, tensor in target.items():
        size = prod(tensor.shape)
        bytes_ = size * (1 + len(new.optimizer.rule(tensor).states)) * _BYTES
        state += bytes_
        drawn += bytes_ if key in source else 0
    share = drawn / state
    received, machine = share * max(each.carried for each in new.states), after.machine
    speed = links(new.parallel, new.world_size, machine.device, machine.network)
    wire = min(speed.tensor, speed.data, speed.pipeline) * machine.link_efficiency
    fresh = (1 - share) * max(each.main_params or each.weights for each in new.states) / _BYTES
    return GrowthForecast(
        step=step,
        source_parameters=count_parameters(old.model),
        target_parameters=count_parameters(new.model),
        carried_bytes=drawn,
        received_bytes=round(received),
        pause=received / wire + fresh / FRESH_PER_SECOND,
        memory=max(
            growth_peak(
                max(old.states, key=lambda state: state.carried),
                state,
                shares_state=new.shares_state,
                exchanged=min(round(received), _BYTES * budget(target.values())),
            )
            for state in new.states
        ),
    )

"""The state of torch optimizers inside megatron-core's wrappers: made early, counted right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer

from megatron_grow.optim.base import Optimizer


def wrappers(optimizer: ChainedOptimizer) -> list[MegatronOptimizer]:
    """What an optimizer chains, in order; without those that this rank has no parameter for."""
    return [each for each in optimizer.chained_optimizers if not each.is_stub_optimizer]


def inner_optimizers(optimizer: ChainedOptimizer) -> Iterator[torch.optim.Optimizer]:
    """The torch optimizers that they wrap."""
    return (wrapper.optimizer for wrapper in wrappers(optimizer))


def init_state(optimizer: torch.optim.Optimizer, config: object = None, *, rule: Optimizer) -> None:
    """Give every parameter the state that its first step would make, as zeros.

    Growth writes state into a new optimizer, and a checkpoint is loaded into one, before it has
    taken a step. Each parameter gets a step tensor of its own: torch counts in place, so a shared
    one would count once for each parameter. Transformer Engine's and Apex's Adam count by group.

    Args:
        optimizer: an inner optimizer; parameters that have state keep it.
        config: unused; megatron-core passes its own when it calls this as ``init_state_fn``.
        rule: the optimizer's.
    """
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param]
            if not state:
                state.update({name: torch.zeros_like(param) for name in rule.states})
                if rule.counts_updates and "step" not in group:
                    state["step"] = _step_tensor(0, param)


def set_step(optimizer: ChainedOptimizer, step: int) -> None:
    """Set the number of updates that rules believe they have done, those that count them."""
    for inner in inner_optimizers(optimizer):
        for group in inner.param_groups:
            if "step" in group:
                group["step"] = step
            for param in group["params"]:
                if "step" in inner.state[param]:
                    inner.state[param]["step"] = _step_tensor(step, param)


def _step_tensor(step: int, param: torch.Tensor) -> torch.Tensor:
    return torch.tensor(float(step), device=param.device)  # the fused kernel wants it on the device

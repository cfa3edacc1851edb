"""An optimizer step in parts, so that others can act between them."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.optimizer import ChainedOptimizer

from megatron_grow.inputs.errors import UserError
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.state import wrappers


def clip(optimizer: ChainedOptimizer, grad_norm: float) -> None:
    """Scale gradients that are ready down to ``clip_grad``, if their norm exceeds it.

    As megatron-core does, but for a look at each gradient while a GPU has nothing to do.
    """
    for wrapper in wrappers(optimizer):
        clip_grad = wrapper.config.clip_grad
        factor = clip_grad / (grad_norm + 1e-6)
        if clip_grad > 0.0 and factor < 1.0:
            grads = [param.grad for param in wrapper.get_parameters() if param.grad is not None]
            if grads:
                torch._foreach_mul_(grads, factor)


def step(optimizer: ChainedOptimizer) -> None:
    """Update main parameters and state, as megatron-core's ``step`` would; the model waits.

    Raises:
        UserError: a rule has made state beside what was made for it.
    """
    for wrapper in wrappers(optimizer):
        state = wrapper.optimizer.state
        before = {param: {**kept} for param, kept in state.items()}
        wrapper.optimizer.step()
        for param, kept in state.items():
            _check_state(wrapper.rule, before[param], kept)


def _check_state(rule: Optimizer, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Growths and checkpoints have the memory that was made for a rule, and know of no other."""
    made = [
        name
        for name, value in after.items()
        if name not in before or (name in rule.states and value is not before[name])
    ]
    if made:
        kind = type(rule)
        raise UserError(
            f"{kind.__module__}:{kind.__qualname__}: its step made {', '.join(made)} of a tensor, "
            "which growths and checkpoints would lose; it must write, in place, to what `states` "
            f"declares ({', '.join(rule.states) or 'nothing'}; each of the tensor's shape), and "
            "count updates in `step`, under `counts_updates`"
        )

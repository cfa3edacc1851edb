"""An optimizer step in parts, so that others can act between them."""

from __future__ import annotations

from typing import Any

from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from megatron_grow.inputs.errors import UserError
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.state import wrappers


def clip(optimizer: ChainedOptimizer, grad_norm: float) -> None:
    """Scale gradients that are ready down to ``clip_grad``, if their norm exceeds it."""
    for wrapper in wrappers(optimizer):
        clip_grad = wrapper.config.clip_grad
        if clip_grad > 0.0 and wrapper.get_parameters():
            clip_grad_by_total_norm_fp32(wrapper.get_parameters(), clip_grad, grad_norm)


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

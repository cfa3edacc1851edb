"""The state of torch optimizers inside megatron-core's wrappers: made early, counted right."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core.optimizer import MegatronOptimizer


def inner_optimizers(optimizer: MegatronOptimizer) -> Iterator[torch.optim.Optimizer]:
    """The torch optimizers that a megatron-core optimizer chains and wraps, in order."""
    for wrapper in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not wrapper.is_stub_optimizer:
            yield wrapper.optimizer


def init_state(optimizer: torch.optim.Optimizer, config: object = None) -> None:
    """Give every parameter the state that its first step would make, as zeros.

    Growth writes moments into a new optimizer, and a checkpoint is loaded into one, before it has
    taken a step. Each parameter gets a step tensor of its own: torch counts in place, so a shared
    one would count once for each parameter.

    Args:
        optimizer: an inner optimizer; parameters that have state keep it.
        config: unused; megatron-core passes its own when it calls this as ``init_state_fn``.
    """
    is_adam = "betas" in optimizer.defaults
    names = ("exp_avg", "exp_avg_sq") if is_adam else ("momentum_buffer",)
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state[param]
            if not state:
                state.update({name: torch.zeros_like(param) for name in names})
                if _counts_per_param(optimizer):
                    state["step"] = _step_tensor(0, param)


def set_step(optimizer: MegatronOptimizer, step: int) -> None:
    """Set the number of updates that Adam believes it has done; others do not count."""
    for inner in inner_optimizers(optimizer):
        for group in inner.param_groups:
            if _counts_per_param(inner):
                for param in group["params"]:
                    inner.state[param]["step"] = _step_tensor(step, param)
            elif "betas" in inner.defaults:
                group["step"] = step


def get_step(optimizer: MegatronOptimizer) -> int | None:
    """Updates that Adam has done; None where no parameter of this rank is under Adam."""
    for inner in inner_optimizers(optimizer):
        for group in inner.param_groups:
            for param in group["params"]:
                if _counts_per_param(inner):
                    return int(inner.state[param]["step"])
                if "betas" in inner.defaults:
                    return int(group.get("step", 0))
    return None


def _counts_per_param(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this is torch's Adam; those of Transformer Engine and Apex count by group."""
    return isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW))


def _step_tensor(step: int, param: torch.Tensor) -> torch.Tensor:
    return torch.tensor(float(step), device=param.device)  # the fused kernel wants it on the device

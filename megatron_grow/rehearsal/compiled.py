"""Functions that a GPU would run compiled: what they make on their way is in no memory."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from megatron.core.fusions import fused_bias_dropout
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from megatron_grow.model.kernels import activation, compiling, cross_entropy, norms, rotary
from megatron_grow.model.kernels.table import KERNELS
from megatron_grow.rehearsal.memory import Ledger

_MODULES: tuple[ModuleType, ...] = (activation, cross_entropy, norms, rotary, fused_bias_dropout)
"""That have compiled functions."""


def stand_in(memory: Ledger) -> None:
    """Have this process use the kernels that need a compiler, without one.

    Args:
        memory: does not count what they make on their way.
    """
    for module in _MODULES:
        for name, function in [*vars(module).items()]:
            original = getattr(function, "_torchdynamo_orig_callable", None)
            if original is not None:
                setattr(module, name, _alone(original, memory))
    for name, kernel in KERNELS.items():
        if kernel.compiles:
            KERNELS[name] = kernel._replace(lacks=lambda device: None)
    compiling.forget = lambda: None


def _alone(function: Callable, memory: Ledger) -> Callable:
    """``function`` as one kernel."""

    def called(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = tree_flatten((args, kwargs))
        return _Kernel.apply(function, memory, tree, *leaves)

    return called


class _Kernel(torch.autograd.Function):
    """A function that keeps its arguments for its gradient, and computes all else again.

    So does what torch's compiler makes of functions of one entry at a time.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable, memory: Ledger, tree: Any, *leaves: Any) -> Any:
        ctx.function, ctx.memory, ctx.tree = function, memory, tree
        ctx.others = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(x if isinstance(x, torch.Tensor) else None for x in leaves))
        args, kwargs = tree_unflatten(leaves, tree)
        with memory.passing():
            out = function(*args, **kwargs)
        for made in tree_leaves(out):
            memory.see(made)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[3:]
        found: list[torch.Tensor | None] = [None] * len(needed)
        with ctx.memory.passing(), torch.enable_grad():
            leaves = [
                other if saved is None else saved.detach().requires_grad_(needs)
                for saved, other, needs in zip(ctx.saved_tensors, ctx.others, needed, strict=True)
            ]
            args, kwargs = tree_unflatten(leaves, ctx.tree)
            wanted = [index for index, needs in enumerate(needed) if needs]
            made = torch.autograd.grad(
                tree_leaves(ctx.function(*args, **kwargs)),
                [leaves[index] for index in wanted],
                gradients,
            )
        for index, gradient in zip(wanted, made, strict=True):
            ctx.memory.see(gradient)
            found[index] = gradient
        return None, None, None, *found

"""Functions that a GPU would run compiled: what they make on their way is in no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from megatron.core.fusions import fused_bias_dropout
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from megatron_grow.config.kernels import PARTS_OF_A_LAYER
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
    KERNELS["layers"] = KERNELS["layers"]._replace(fuse=_fuse_parts)
    compiling.forget = lambda: None


def _fuse_parts(module: torch.nn.Module) -> None:
    """What a compiled layer keeps is what it would with its parts compiled."""
    if isinstance(module, TransformerLayer):
        for part in module.modules():
            for name in PARTS_OF_A_LAYER:
                KERNELS[name].fuse(part)


def _alone(function: Callable, memory: Ledger) -> Callable:
    """``function`` as one kernel."""

    def called(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = tree_flatten((args, kwargs))
        return _Kernel.apply(function, memory, tree, *leaves)

    return called


class _Kernel(torch.autograd.Function):
    """A function that keeps its arguments for its gradient, and computes all else again.

    So does what torch's compiler makes of functions of one entry at a time; where the plain
    function keeps less (a sum nothing, dropout its mask) it keeps that.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable, memory: Ledger, tree: Any, *leaves: Any) -> Any:
        ctx.function, ctx.memory, ctx.tree = function, memory, tree
        args, kwargs = tree_unflatten(leaves, tree)
        with memory.passing():
            out = function(*args, **kwargs)
            # Values mean nothing: tensors of the same shapes do for the gradient.
            ctx.leaves = [torch.empty_like(x) if isinstance(x, torch.Tensor) else x for x in leaves]
            plain = _kept_by_the_plain(ctx, leaves)
        kept = min(_without_parameters(leaves), plain, key=_bytes)
        ctx.save_for_backward(*kept)
        for tensor in (*tree_leaves(out), *kept):
            memory.see(tensor)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[3:]
        found: list[torch.Tensor | None] = [None] * len(needed)
        with ctx.memory.passing():
            leaves, out = _again(ctx)
            wanted = [index for index, needs in enumerate(needed) if needs]
            made = torch.autograd.grad(out, [leaves[index] for index in wanted], gradients)
        for index, gradient in zip(wanted, made, strict=True):
            ctx.memory.see(gradient)
            found[index] = gradient
        return None, None, None, *found


@torch.enable_grad()
def _again(ctx: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """Leaves, and what the function makes of them, with its gradient."""
    leaves = [
        leaf.detach().requires_grad_(needs) if isinstance(leaf, torch.Tensor) else leaf
        for leaf, needs in zip(ctx.leaves, ctx.needs_input_grad[3:], strict=True)
    ]
    args, kwargs = tree_unflatten(leaves, ctx.tree)
    return leaves, tree_leaves(ctx.function(*args, **kwargs))


def _kept_by_the_plain(ctx: Any, given: Sequence[Any]) -> list[torch.Tensor]:
    """What autograd keeps of the function, of ``given`` tensors these themselves."""
    if not any(ctx.needs_input_grad):
        return []
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda nothing: nothing):
        _again(ctx)
    same = {
        _storage(leaf): tensor
        for leaf, tensor in zip(ctx.leaves, given, strict=True)
        if isinstance(leaf, torch.Tensor)
    }
    return _without_parameters(same.get(_storage(tensor), tensor) for tensor in kept)


def _without_parameters(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among ``values``, but those that are there anyway."""
    tensors = (x for x in values if isinstance(x, torch.Tensor))
    return [tensor for tensor in tensors if not isinstance(tensor, torch.nn.Parameter)]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({_storage(x): x.untyped_storage().nbytes() for x in tensors}.values())

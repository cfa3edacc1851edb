"""Normalised SGD with momentum: every tensor moves by exactly the learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

_EPS = 1e-12  # a zero buffer stays zero; far below the norm of any gradient that is not


class NSGD(torch.optim.Optimizer):
    """Momentum by exponential average, divided by its L2 norm, decoupled weight decay.

    ::

        buffer = beta buffer + (1 - beta) grad
        weight = (1 - lr wd) weight - lr buffer / ||buffer||

    The norm is that of the whole parameter as Megatron keeps it, over all its tensor-parallel
    shards. A fused QKV bias is one tensor: the gradient of a key bias is zero but for rounding
    (the softmax does not see it), and a norm of its own would blow that rounding up. The state of
    a parameter is one ``momentum_buffer`` of its shape.

    Args:
        params: parameters of any shape, or groups of them; megatron-core's attribute
            ``tensor_model_parallel`` says which are cut over ``tp_group``.
        lr: learning rate: the L2 norm of each tensor's update.
        momentum: beta.
        weight_decay: decoupled.
        tp_group: ranks over which parameters are cut; None: they are whole.

    Source: the rule that "Convex dominance in deep learning I" (arXiv 2602.07145) pairs with Muon
    for tensors that are not matrices. It states neither norm nor momentum; these are our reading.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        tp_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._tp_group = tp_group

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # Megatron calls it without a closure
        """Update every parameter that has a gradient. Collective over ``tp_group``."""
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            buffers = [self._advance_momentum(param, group["momentum"]) for param in params]
            norms = self._norms(params, buffers).clamp_min(_EPS)
            for param, buffer, norm in zip(params, buffers, norms, strict=True):
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(buffer / norm, alpha=-group["lr"])

    def _advance_momentum(self, param: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state["momentum_buffer"].lerp_(param.grad, 1 - momentum)

    def _norms(self, params: list[torch.Tensor], buffers: list[torch.Tensor]) -> torch.Tensor:
        """(number of params): the L2 norm of each whole tensor."""
        squares = torch.stack([buffer.square().sum() for buffer in buffers])
        cut = [getattr(param, "tensor_model_parallel", False) for param in params]
        if self._tp_group is not None and any(cut):
            summed = squares.clone()
            dist.all_reduce(summed, group=self._tp_group)
            squares = torch.where(torch.tensor(cut, device=squares.device), summed, squares)
        return squares.sqrt()

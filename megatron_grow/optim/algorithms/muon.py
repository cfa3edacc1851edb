"""Muon: momentum, orthogonalised."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from megatron_grow.optim.algorithms.fused_rows import merge_rows, split_rows
from megatron_grow.optim.algorithms.newton_schulz import newton_schulz
from megatron_grow.optim.algorithms.whole_matrices import map_whole

# Matrices of one shape go through Newton-Schulz together, up to this many elements of this rank's
# shards: enough to fill a GPU, little enough (256 MiB in fp32) not to show in peak memory.
_BATCH_ELEMENTS = 2**26

SCALES = {
    "spectral": lambda rows, cols: math.sqrt(max(rows, cols)),
    "unit_rms_norm": lambda rows, cols: math.sqrt(rows / cols),
    "shape_scaling": lambda rows, cols: math.sqrt(max(1.0, rows / cols)),
}
"""Factor of an orthogonalised (rows, cols) = (out, in) update; names of Emerging-Optimizers."""


class Muon(torch.optim.Optimizer):
    """Momentum by exponential average, Nesterov, Newton-Schulz, decoupled weight decay.

    ::

        buffer = beta buffer + (1 - beta) grad
        update = beta buffer + (1 - beta) grad        (Nesterov; else the buffer)
        weight = (1 - lr wd) weight - lr scale newton_schulz(update)

    The update is orthogonalised as the whole matrix, never shard by shard, so it does not depend on
    the layout; fused projections are orthogonalised matrix by matrix. The state of a parameter is
    one ``momentum_buffer`` of its shape.

    Args:
        params: 2-D parameters, or groups of them. megatron-core's attributes
            ``tensor_model_parallel`` and ``partition_dim`` say how a parameter is cut, our
            ``row_pattern`` (:mod:`~megatron_grow.optim.algorithms.fused_rows`) how it is fused, and
            our ``rows`` how many rows the whole has before its padding; all optional.
        lr: learning rate.
        momentum: beta.
        nesterov: look one step ahead.
        weight_decay: decoupled.
        num_ns_steps: Newton-Schulz iterations.
        scale_mode: a key of :data:`SCALES`.
        dtype: type of the Newton-Schulz arithmetic and of what travels between ranks.
        tp_group: ranks over which parameters are cut; None: they are whole.
        dp_group: ranks that hold the same parameters and share the work; None: alone.

    Source: Keller Jordan, github.com/KellerJordan/Muon; tensor parallelism is ours.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        num_ns_steps: int = 5,
        scale_mode: str = "shape_scaling",
        dtype: torch.dtype = torch.float32,
        tp_group: dist.ProcessGroup | None = None,
        dp_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._nesterov = nesterov
        self._num_ns_steps = num_ns_steps
        self._scale = SCALES[scale_mode]
        self._dtype = dtype
        self._tp_group = tp_group
        self._dp_group = dp_group

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # Megatron calls it without a closure
        """Update every parameter that has a gradient. Collective over both groups."""
        for group in self.param_groups:
            for params in _alike(group["params"]):
                momenta = [self._advance_momentum(param, group["momentum"]) for param in params]
                updates = self._orthogonalise(torch.stack(momenta), *_layout(params[0]))
                for param, update in zip(params, updates, strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update, alpha=-group["lr"])

    def _advance_momentum(self, param: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[param]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
        buffer = state["momentum_buffer"].lerp_(param.grad, 1 - momentum)
        update = buffer.lerp(param.grad, 1 - momentum) if self._nesterov else buffer
        return update.to(self._dtype)

    def _orthogonalise(
        self,
        shards: torch.Tensor,
        partition_dim: int | None,
        pattern: tuple[int, ...],
        rows: int | None,
    ) -> torch.Tensor:
        """(n, rows, cols) momenta to scaled, orthogonalised updates."""
        groups = (self._tp_group, self._dp_group)
        function = partial(self._scaled_newton_schulz, rows)
        matrices = [
            map_whole(function, fused, partition_dim, *groups)
            for fused in split_rows(shards, pattern)
        ]
        return merge_rows(matrices, pattern)

    def _scaled_newton_schulz(self, rows: int | None, matrices: torch.Tensor) -> torch.Tensor:
        """Of whole matrices; what lies behind the first ``rows`` of them is padding: zero."""
        padding = matrices.size(1) - (rows or matrices.size(1))
        if padding:
            real = self._scaled_newton_schulz(None, matrices[:, :rows])
            return functional.pad(real, (0, 0, 0, padding))
        return newton_schulz(matrices, self._num_ns_steps) * self._scale(*matrices.shape[1:])


def _layout(param: torch.Tensor) -> tuple[int | None, tuple[int, ...], int | None]:
    """How a parameter is cut over tensor-parallel ranks, how its rows are fused, and how many the
    whole has before its padding (None: nobody says, so all)."""
    cut = getattr(param, "tensor_model_parallel", False)
    partition_dim = getattr(param, "partition_dim", None) if cut else None
    pattern = getattr(param, "row_pattern", (param.size(0),))
    return partition_dim, pattern, getattr(param, "rows", None)


def _alike(params: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Parameters of one shape and layout, in batches; the same batches on every rank."""
    alike = defaultdict(list)
    for param in params:
        if param.grad is not None:
            alike[param.shape, _layout(param)].append(param)
    for batch in alike.values():
        size = max(1, _BATCH_ELEMENTS // batch[0].numel())
        for start in range(0, len(batch), size):
            yield batch[start : start + size]

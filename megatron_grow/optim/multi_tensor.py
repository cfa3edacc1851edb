"""Many tensors in one kernel: what megatron-core takes of Transformer Engine or Apex, by torch.

Without these it goes through the tensors one by one, and waits for the device at each of a norm.
The numbers are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from megatron.core.optimizer import clip_grads, optimizer

Tensors = list[torch.Tensor]


@functools.cache
def install() -> None:
    """Take the place of megatron-core's loops, where it has nothing better; idempotent."""
    if clip_grads.l2_norm_impl.__module__ == "megatron.core.utils":
        clip_grads.l2_norm_impl = _norm
    optimizer._multi_tensor_copy_this_to_that = _copy


def _norm(
    chunk_size: int, overflow: torch.Tensor, lists: Sequence[Tensors], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    """Of all tensors as one vector, (1,), on their device."""
    norms = torch._foreach_norm(lists[0])
    return torch.linalg.vector_norm(torch.stack(norms)).view(1), None


def _copy(this: Tensors, that: Tensors, overflow_buf: torch.Tensor | None = None) -> None:
    """Write each of ``this`` to the same place of ``that``, in its type."""
    if this:
        torch._foreach_copy_(that, this)

"""Cross entropy over a vocabulary that tensor-parallel ranks share, in the memory of the logits.

megatron-core's own makes an fp32 copy of the logits and walks through all of it about eight times.
This one walks through a block of rows at a time, small enough to stay in cache, and leaves the
gradient where the logits were, in their precision: a quarter of the memory under bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 27}
"""Logits in one block: what a core's cache holds; what keeps a GPU busy in half a GB of fp32."""

Softmax = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""As :func:`softmax_`."""


def vocab_parallel_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    group: dist.ProcessGroup,
    vocab_size: int,
    softmax: Softmax | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log likelihood of each label; softmax in fp32 whatever the logits are.

    Args:
        logits: (..., padded vocabulary / ranks of ``group``), contiguous, this rank's part of the
            vocabulary. *Overwritten*: nothing may use their values afterwards.
        labels: (...), tokens of the whole vocabulary.
        group: the tensor-parallel ranks, in the order of their parts.
        vocab_size: tokens; logits behind them are padding, without a share in the softmax and
            with a gradient of exactly 0.
        softmax: of rows of logits; :func:`softmax_` if absent.

    Returns:
        Two of (...), the same on every rank of ``group``: the losses, in fp32, and whether no logit
        is larger than that of the label.
    """
    return _VocabParallelCrossEntropy.apply(logits, labels, group, vocab_size, softmax or softmax_)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        group: dist.ProcessGroup,
        vocab_size: int,
        softmax: Softmax,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = logits.detach().view(-1, logits.shape[-1])  # (tokens, part of the vocabulary)
        first = group.rank() * rows.shape[1]
        rows[:, max(vocab_size - first, 0) :] = -torch.inf
        index = labels.reshape(-1) - first
        elsewhere = (index < 0) | (index >= rows.shape[1])
        index = index.masked_fill(elsewhere, 0).unsqueeze(1)
        predicted = rows.gather(1, index).squeeze(1).float().masked_fill(elsewhere, 0.0)

        top, total = softmax(rows) if first < vocab_size else _nothing_(rows)
        if group.size() > 1:
            top, total, share, predicted = _over_ranks(top, total, predicted, group)
            rows.mul_(share.unsqueeze(1))
        losses, hits = total.log() + (top - predicted), (predicted >= top).view(labels.shape)

        # From softmax to gradient: p - 1 at the label, from the loss to keep precision near p = 1.
        gradient = torch.expm1(-losses).to(rows.dtype).unsqueeze(1)
        rows.scatter_(1, index, rows.gather(1, index).where(elsewhere.unsqueeze(1), gradient))
        ctx.save_for_backward(rows)
        ctx.mark_non_differentiable(hits)
        return losses.view(labels.shape), hits

    @staticmethod
    def backward(ctx: Any, grad_losses: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        gradient.mul_(grad_losses.reshape(-1, 1))
        return gradient.view(*grad_losses.shape, -1), None, None, None, None


def softmax_(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn ``rows`` of logits into their softmax, in place.

    Returns:
        Of each row the largest logit, and the sum of exp(logit - largest); fp32.
    """
    top, total = torch.empty(2, len(rows), 1, device=rows.device)
    size = max(1, _BLOCK_ELEMENTS[rows.device.type] // rows.shape[1])
    for block, largest, sum_ in zip(*(x.split(size) for x in (rows, top, total)), strict=True):
        exp = block.float()  # fp32 logits themselves, or a copy of bf16 ones
        torch.amax(exp, 1, keepdim=True, out=largest)
        exp.sub_(largest).exp_()
        torch.sum(exp, 1, keepdim=True, out=sum_)
        exp.div_(sum_)
        if exp is not block:
            block.copy_(exp)
        del exp  # before the next one is made
    return top.squeeze(1), total.squeeze(1)


def _nothing_(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`softmax_`, where all columns are padding."""
    rows.zero_()
    top, total = torch.zeros(2, len(rows), device=rows.device)
    return top.fill_(-torch.inf), total


def _over_ranks(
    top: torch.Tensor, total: torch.Tensor, predicted: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """From this rank's part of the vocabulary to the whole of it.

    Returns:
        The largest logits, the sums, this rank's share of the sums, and the labels' logits.
    """
    largest = top.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    mine = total * (top - largest).exp()
    sums = torch.stack((mine, predicted))
    dist.all_reduce(sums, group=group)
    return largest, sums[0], mine / sums[0], sums[1]

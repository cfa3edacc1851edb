"""Attention to all tokens but padding, against its formula in fp64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from megatron_grow.model.layers.attention import ScaledDotProductAttention

LENGTH, BATCH, HEADS, SIZE = 7, 3, 4, 8


def attended(padding: torch.Tensor, groups: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What the core gives, and queries, keys and values, (length, batch, heads, size)."""
    config = SimpleNamespace(attention_dropout=0.0, sequence_parallel=False)
    core = ScaledDotProductAttention(config, 1, AttnMaskType.padding, "self")  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(LENGTH, BATCH, heads, SIZE, generator=generator).requires_grad_()
        for heads in (HEADS, groups, groups)
    ]
    return core(*inputs, padding[:, None, None]), inputs


@pytest.mark.parametrize("groups", [HEADS, 2])
def test_padding_is_not_attended_to(groups: int) -> None:
    padding = torch.arange(LENGTH) >= torch.tensor([LENGTH, 4, 1])[:, None]
    found, inputs = attended(padding, groups)
    query, key, value = (
        x.detach().double().repeat_interleave(HEADS // x.shape[2], 2) for x in inputs
    )
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) / SIZE**0.5
    scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    expected = torch.einsum("bhqk,kbhd->qbhd", scores.softmax(-1), value).flatten(2)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_a_sequence_of_padding_alone_gives_numbers() -> None:
    """And gradients, to itself alone."""
    padding = torch.tensor([[False] * LENGTH, [True] * LENGTH, [False] * LENGTH])
    found, inputs = attended(padding, HEADS)
    found.square().sum().backward()
    assert all(x.isfinite().all() for x in (found, *(each.grad for each in inputs)))

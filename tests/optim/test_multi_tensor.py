"""One kernel for many tensors against megatron-core's loops, bit for bit."""

from __future__ import annotations

import torch
from megatron.core.optimizer import clip_grads, optimizer
from megatron.core.optimizer.clip_grads import multi_tensor_applier
from megatron.core.utils import local_multi_tensor_l2_norm, local_multi_tensor_scale

from megatron_grow.optim import multi_tensor
from megatron_grow.parallel import cpu


def _tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1000, 3), (7,), (), (64, 65), (1, 1)]
    found = [
        torch.randn(shape, generator=generator) * 10.0**place for place, shape in enumerate(shapes)
    ]
    return [*found, torch.randn(5, 9, generator=generator).t()]


def test_norm_and_scale_are_megatrons() -> None:
    cpu.install()
    multi_tensor.install()
    tensors, unused = _tensors(), torch.zeros(1, dtype=torch.int)
    # In the loop's own words: megatron-core's literal "cuda" is on a path that is not taken here.
    expected = torch.norm(torch.tensor([torch.norm(each) for each in tensors]))
    norm, _ = multi_tensor_applier(clip_grads.l2_norm_impl, unused, [tensors], False)
    assert torch.equal(norm, expected.view(1))

    scaled = _tensors()
    local_multi_tensor_scale(0, unused, [scaled, scaled], 0.123456789)
    found = _tensors()
    scale = clip_grads.multi_tensor_scale_impl
    multi_tensor_applier(scale, unused, [found, found], 0.123456789)
    assert all(map(torch.equal, found, scaled))
    apart = [torch.empty_like(each) for each in found]
    multi_tensor_applier(scale, unused, [tensors, apart], 0.123456789)
    assert all(map(torch.equal, apart, scaled))
    assert scale is not local_multi_tensor_scale
    assert clip_grads.l2_norm_impl is not local_multi_tensor_l2_norm


def test_copies_round_as_one_by_one() -> None:
    multi_tensor.install()
    targets = [torch.empty_like(each, dtype=torch.bfloat16) for each in _tensors()]
    optimizer._multi_tensor_copy_this_to_that(_tensors(), targets)
    assert all(
        torch.equal(each, of.bfloat16()) for each, of in zip(targets, _tensors(), strict=True)
    )
    optimizer._multi_tensor_copy_this_to_that([], [])

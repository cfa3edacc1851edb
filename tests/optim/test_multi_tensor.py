"""One kernel for many tensors against megatron-core's loops, and steps against its own, bit for
bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from megatron.core.optimizer import clip_grads, optimizer
from megatron.core.optimizer.clip_grads import multi_tensor_applier
from megatron.core.utils import local_multi_tensor_l2_norm

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.optim import multi_tensor
from megatron_grow.parallel import cpu
from tests.distributed import run_ranks
from tests.optim.toy import build


def _tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1000, 3), (7,), (), (64, 65), (1, 1)]
    found = [
        torch.randn(shape, generator=generator) * 10.0**place for place, shape in enumerate(shapes)
    ]
    return [*found, torch.randn(5, 9, generator=generator).t()]


def test_the_norm_is_megatrons() -> None:
    cpu.install()
    multi_tensor.install()
    tensors, unused = _tensors(), torch.zeros(1, dtype=torch.int)
    # In the loop's own words: megatron-core's literal "cuda" is on a path that is not taken here.
    expected = torch.norm(torch.tensor([torch.norm(each) for each in tensors]))
    norm, _ = multi_tensor_applier(clip_grads.l2_norm_impl, unused, [tensors], False)
    assert torch.equal(norm, expected.view(1))
    assert clip_grads.l2_norm_impl is not local_multi_tensor_l2_norm


def test_copies_round_as_one_by_one() -> None:
    multi_tensor.install()
    targets = [torch.empty_like(each, dtype=torch.bfloat16) for each in _tensors()]
    optimizer._multi_tensor_copy_this_to_that(_tensors(), targets)
    assert all(
        torch.equal(each, of.bfloat16()) for each, of in zip(targets, _tensors(), strict=True)
    )
    optimizer._multi_tensor_copy_this_to_that([], [])


def _one_by_one(this: list[torch.Tensor], that: list[torch.Tensor], **_: object) -> None:
    for source, target in zip(this, that, strict=True):
        target.copy_(source)


Found = tuple[list[float], dict[tuple[str, str], list]]


def _ours_and_megatrons(
    section: OptimizerSection, layout: ParallelConfig, precision: str
) -> tuple[Found, Found]:
    """Norms and state of three steps on a rank: ours; those of megatron-core's ``step``."""
    toy = build(section, layout, precision=precision)
    ours = [toy.step(number)[1] for number in range(3)], toy.state()
    toy.loop.ctx.live.release()

    toy = build(section, layout, precision=precision)
    live = toy.loop.ctx.live
    clip_grads.l2_norm_impl = local_multi_tensor_l2_norm
    optimizer._multi_tensor_copy_this_to_that = _one_by_one
    norms = []

    def update(*_: object) -> None:
        norms.append(live.optimizer.step()[1])
        live.updates += 1

    live.update = update
    for number in range(3):
        toy.step(number)
    return ours, (norms, toy.state())


@pytest.mark.parametrize(
    ("rule", "layout", "precision"),
    [
        ("adam", {"tensor_model_parallel_size": 2}, "fp32"),
        ("adam", {"pipeline_model_parallel_size": 2}, "bf16"),
        ("adam", {}, "bf16"),
        ("muon", {"tensor_model_parallel_size": 2}, "bf16"),
    ],
    ids=["tp2", "pp2", "dp2", "muon"],
)
def test_steps_are_megatrons(rule: str, layout: dict[str, int], precision: str) -> None:
    section = OptimizerSection(optimizer=rule, lr=1e-3, clip_grad=0.5)
    both = run_ranks(2, _ours_and_megatrons, section, ParallelConfig(**layout), precision)
    for ours, theirs in both:
        assert ours[0] == theirs[0] and min(ours[0]) > 0.5
        assert ours[1].keys() == theirs[1].keys()
        for name, boxes in ours[1].items():
            for (_, values), (_, expected) in zip(boxes, theirs[1][name], strict=True):
                np.testing.assert_array_equal(values, expected, err_msg=str(name))

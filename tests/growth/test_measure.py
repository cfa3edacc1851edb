"""What noise is relative to, measured in a checkpoint by all ranks together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_grow.config.errors import UserError
from megatron_grow.growth.measure import of_checkpoint
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import Box, slices
from tests.distributed import run_ranks
from tests.toy import MODEL

KEY = "decoder.layers.mlp.linear_fc1.weight"
TENSORS = logical_tensors(replace(MODEL, num_layers=3))


def stored() -> torch.Tensor:
    return torch.randn(TENSORS[KEY].shape, generator=torch.Generator().manual_seed(1))


class Checkpoint:
    """Of one tensor; ``torn_on`` is a rank that cannot read it."""

    tensors = TENSORS

    def __init__(self, torn_on: int | None) -> None:
        self.torn_on = torn_on

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        if dist.get_rank() == self.torn_on:
            raise UserError("a shard is damaged")
        return stored()[slices(box)]


def measure(torn_on: int | None) -> Any:
    try:
        return of_checkpoint(Checkpoint(torn_on), frozenset({KEY}))  # type: ignore[arg-type]
    except UserError as error:
        return str(error)


def test_ranks_measure_together_and_fail_together() -> None:
    first, second = run_ranks(2, measure, None)
    truth = stored().double().flatten(1).square().mean(1).sqrt()
    assert first == second
    assert first[KEY] == pytest.approx(truth.tolist(), rel=1e-12)
    mine, theirs = run_ranks(2, measure, 1)
    assert mine == theirs and mine.endswith("a shard is damaged")

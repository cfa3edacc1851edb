"""What a plan asks about a checkpoint, answered by all ranks together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_grow.growth.answers import of_checkpoint
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import Box, slices
from megatron_grow.state.questions import Question
from tests.distributed import run_ranks
from tests.toy import MODEL

FC1 = logical_tensors(replace(MODEL, num_layers=3))["decoder.layers.mlp.linear_fc1.weight"]
ASKED = Question(FC1)


def stored() -> torch.Tensor:
    return torch.randn(FC1.shape, generator=torch.Generator().manual_seed(1))


class Checkpoint:
    """Of one tensor; ``torn_on`` is a rank that cannot read it."""

    def __init__(self, torn_on: int | None) -> None:
        self.torn_on = torn_on

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        if dist.get_rank() == self.torn_on:
            raise UserError("a shard is damaged")
        return stored()[slices(box)]


def measure(torn_on: int | None) -> Any:
    try:
        return of_checkpoint(Checkpoint(torn_on).read, [ASKED])[ASKED].tolist()
    except UserError as error:
        return str(error)


def test_ranks_measure_together_and_fail_together() -> None:
    first, second = run_ranks(2, measure, None)
    truth = stored().double().flatten(1).square().mean(1).sqrt()
    assert first == second
    assert first == pytest.approx(truth.tolist(), rel=1e-12)
    mine, theirs = run_ranks(2, measure, 1)
    assert mine == theirs and mine.endswith("a shard is damaged")

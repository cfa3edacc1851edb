"""What shared layers cost: the arithmetic of all, the parameters of those that are unique."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.cost.flops import flops_per_sample, model_flops_per_token
from megatron_grow.cost.memory import estimate_memory
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.optim.optimizers import optimizer_of
from tests.cost.gpt2 import gpt2

SPELLED = gpt2(12, 768, normalization="RMSNorm")
LAYER, OUTSIDE = 12 * 768**2 + 2 * 768, (50_304 + 1_024) * 768 + 768


@pytest.mark.parametrize(("sharing", "unique"), [("1x12", 1), ("4x3", 4), ([0] * 6 + [1] * 6, 2)])
def test_parameters_and_arithmetic(sharing: str, unique: int) -> None:
    model = replace(SPELLED, layer_sharing=sharing)
    assert count_parameters(model) == OUTSIDE + unique * LAYER
    assert flops_per_sample(model, "blocks", 1) == 6 * 12 * LAYER
    assert flops_per_sample(model, "total", 1) == 6 * (12 * LAYER + OUTSIDE)
    assert model_flops_per_token(model, 1024) == model_flops_per_token(SPELLED, 1024)


def test_memory_is_that_of_all_layers() -> None:
    """Each has a copy of weights, gradients and state."""
    parallel = ParallelConfig(pipeline_model_parallel_size=2)

    def on_a_rank(model: ModelConfig) -> int:
        optimizer = optimizer_of(OptimizerSection())
        return estimate_memory(model, parallel, 4, precision="bf16", optimizer=optimizer).total

    assert on_a_rank(replace(SPELLED, layer_sharing="1x12")) == on_a_rank(SPELLED)

"""Memory against the bytes per parameter that Megatron-Core's guide states."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.cost.memory import estimate_memory
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.optim.optimizers import optimizer_of
from tests.cost.gpt2 import gpt2
from tests.distributed import run_ranks
from tests.toy import MODEL as MODEL_OF_RANKS
from tests.toy import begin, layout, still_run

MODEL = gpt2(12, 768)
N = count_parameters(MODEL)
ADAM = optimizer_of(OptimizerSection())
MUON = optimizer_of(OptimizerSection(optimizer="muon"))


@pytest.mark.parametrize(
    ("precision", "distributed", "bytes_per_parameter"),
    [
        # Megatron-Core guide, "Distributed Optimizer": theoretical memory, d = 4 data-parallel
        ("bf16", False, 18),
        ("bf16", True, 6 + 12 / 4),
        ("fp32", False, 16),
        ("fp32", True, 8 + 8 / 4),
    ],
)
def test_adam_bytes_per_parameter(precision, distributed, bytes_per_parameter):
    parallel = ParallelConfig(use_distributed_optimizer=distributed)
    estimate = estimate_memory(MODEL, parallel, 4, precision=precision, optimizer=ADAM)
    assert estimate.total == pytest.approx(bytes_per_parameter * N, abs=2)


def test_tensor_parallel_cuts_matrices_but_not_norms():
    parallel = ParallelConfig(tensor_model_parallel_size=2)
    norms = 25 * 2 * 768
    positions = 1024 * 768
    weights = estimate_memory(MODEL, parallel, 2, precision="fp32", optimizer=ADAM).weights
    padding = 64 * 768  # to 128 x 197 rows on each rank
    assert weights == 4 * ((N - norms - positions) // 2 + padding + norms + positions)


def test_fullest_pipeline_rank_holds_an_embedding_and_its_layers():
    parallel = ParallelConfig(pipeline_model_parallel_size=4)
    weights = estimate_memory(MODEL, parallel, 4, precision="fp32", optimizer=ADAM).weights
    embedding, positions = 50_304 * 768, 1024 * 768
    assert weights == 4 * (embedding + positions + count_parameters(MODEL, part="blocks") // 4)


def test_last_pipeline_rank_holds_the_head():
    # rotary positions: the last rank has the final norm more than the first
    model = gpt2(12, 768, position_embedding_type="rope")
    parallel = ParallelConfig(pipeline_model_parallel_size=4)
    weights = estimate_memory(model, parallel, 4, precision="fp32", optimizer=ADAM).weights
    assert weights == 4 * (50_304 * 768 + count_parameters(model, part="blocks") // 4 + 2 * 768)


def test_muon_keeps_one_moment_for_layer_matrices():
    matrices = 12 * 12 * 768**2
    estimate = estimate_memory(MODEL, ParallelConfig(), 1, precision="fp32", optimizer=MUON)
    assert estimate.moments == 4 * (2 * N - matrices)


@pytest.mark.parametrize(
    ("uneven", "layers"),
    [
        ({"virtual_pipeline_model_parallel_size": 3}, 3),
        ({"num_layers_in_first_pipeline_stage": 6}, 6),
        ({"pipeline_model_parallel_layout": "Et*5|t*4|t*3|L"}, 5),
    ],
)
def test_chunks_and_uneven_stages(uneven, layers):
    parallel = ParallelConfig(pipeline_model_parallel_size=4, **uneven)
    weights = estimate_memory(MODEL, parallel, 4, precision="fp32", optimizer=ADAM).weights
    embedding, positions = 50_304 * 768, 1024 * 768
    block = count_parameters(MODEL, part="blocks") // 12
    assert weights == 4 * (embedding + positions + layers * block)


def test_context_parallel_ranks_share_optimizer_state():
    parallel = ParallelConfig(context_parallel_size=2)
    estimate = estimate_memory(MODEL, parallel, 4, precision="fp32", optimizer=ADAM)
    assert estimate.total == pytest.approx((8 + 8 / 4) * N, abs=2)


LAYOUTS = {
    "TP2 PP2": (4, layout(tp=2, pp=2)),
    "PP2 VPP2": (2, layout(pp=2, virtual_pipeline_model_parallel_size=2)),
    "uneven PP2": (2, layout(pp=2, num_layers_in_last_pipeline_stage=3)),
}


def held(parallel: dict[str, Any], world_size: int) -> int:
    """On a rank: bytes of its weights."""
    live = begin(still_run(parallel, MODEL_OF_RANKS), world_size)
    weights = sum(p.nbytes for chunk in live.chunks for p in chunk.parameters())
    live.release()
    return weights


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_fullest_rank_holds_as_much(name: str) -> None:
    world_size, parallel = LAYOUTS[name]
    ranks = run_ranks(world_size, held, parallel, world_size)
    stage = still_run(parallel, MODEL_OF_RANKS).resolve(world_size)[0]
    estimate = estimate_memory(
        stage.model, stage.parallel, world_size, precision="fp32", optimizer=ADAM
    )
    assert estimate.weights == max(ranks)

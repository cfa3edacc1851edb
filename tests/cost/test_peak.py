"""Formulas of memory against the storages of real steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import pytest

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.kernels import KernelsSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.cost.peak import in_flight, peak_memory
from megatron_grow.cost.step import Placement, Step
from megatron_grow.optim.optimizers import optimizer_of
from tests.cost.storages import Storages
from tests.distributed import run_ranks
from tests.toy import begin, layout, loop_over, micro_batches, run_config

GPT2 = ModelConfig(
    num_layers=4,
    hidden_size=64,
    num_attention_heads=4,
    vocab_size=512,
    max_position_embeddings=128,
)
LLAMA = replace(
    GPT2,
    position_embedding_type="rope",
    activation="swiglu",
    num_query_groups=2,
    add_bias_linear=False,
    share_embeddings_and_output_weights=False,
)
NO_LAYERS = replace(GPT2, num_layers=0)
BATCH: dict[str, Any] = {"seq_length": 128, "micro_batch_size": 4, "global_batch_size": 16}

ALONE = {
    "gpt2": ({}, GPT2, {}),
    "gpt2 in bf16": ({}, GPT2, {"precision": "bf16"}),
    "llama": ({}, LLAMA, {}),
    "recomputed": ({}, GPT2, {"recompute_granularity": "full"}),
    "two at once": ({}, GPT2, {"recompute_granularity": "full", "recompute_num_layers": 2}),
    "no layers": ({}, NO_LAYERS, {}),
}
TOGETHER = {
    "TP": (layout(2), GPT2, {}),
    "TP SP": (layout(2, sequence_parallel=True), LLAMA, {}),
    "PP": (layout(pp=2), GPT2, {}),
    "PP of two chunks": (layout(pp=2, virtual_pipeline_model_parallel_size=2), GPT2, {}),
}


def test_alone() -> None:
    _check(ALONE, 1)


def test_together() -> None:
    _check(TOGETHER, 2)


def _check(cases: dict[str, tuple[dict, ModelConfig, dict]], world_size: int) -> None:
    configs = {
        name: run_config(StageSection(parallel=parallel), model=model, **(BATCH | train))
        for name, (parallel, model, train) in cases.items()
    }
    ranks = run_ranks(world_size, _measured, configs, world_size)
    wrong = []
    for name, config in configs.items():
        expected = peak_memory(_step(config, world_size))
        for rank, measured in enumerate(ranks):
            peak = expected[min(rank, len(expected) - 1)]
            bytes_, alive = measured[name]
            told = peak.activations + peak.working
            if abs(told / bytes_ - 1) > 0.05:
                wrong.append(f"{name}, rank {rank}: {told} for {bytes_}, of which {alive}")
    assert not wrong, wrong


def _step(config: RunConfig, world_size: int) -> Step:
    stage, train = config.resolve(world_size)[0], config.train
    placed = Placement(
        stage.model, stage.parallel, world_size, train.precision, optimizer_of(config.optimizer)
    )
    recomputed = train.recompute_granularity == "full"
    return Step(placed, stage.batch, train.recompute_num_layers if recomputed else None)


def _measured(configs: dict[str, RunConfig], world_size: int) -> dict[str, tuple[int, list]]:
    """The most bytes that a step adds to what was there before, and what they were."""
    found = {}
    for name, config in configs.items():
        live = begin(config, world_size)
        steps = loop_over(live, config).steps(micro_batches(config, 0))
        next(steps)
        with Storages() as counted:
            next(steps)
        steps.close()
        found[name] = counted.peak, Counter(counted.at_peak).most_common(12)
        live.release()
    return found


@pytest.mark.parametrize(
    ("chunks", "micro_batches", "expected"),
    [
        (1, 8, [4, 3, 2, 1]),  # 1F1B (Narayanan et al. 2021): as many as ranks are left, itself too
        (1, 2, [2, 2, 2, 1]),
        (2, 8, [11, 9, 7, 5]),  # interleaved: 2 x those behind, a chunk for each rank, and one
        (2, 4, [8, 8, 7, 5]),
    ],
)
def test_micro_batches_in_flight(chunks: int, micro_batches: int, expected: list[int]) -> None:
    parallel = ParallelConfig(
        pipeline_model_parallel_size=4,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
    )
    assert [in_flight(parallel, rank, micro_batches) for rank in range(4)] == expected


def test_fused_kernels_keep_less() -> None:
    """Of a gated unit gate, up and output, not also silu of the gate and a copy of up; no
    cosines and sines; no block of logits in fp32."""
    placed = Placement(LLAMA, ParallelConfig(), 1, "bf16", optimizer_of(OptimizerSection()))
    plain = Step(placed, BatchShape(128, 4, 4))
    fused = replace(plain, kernels=frozenset(asdict(KernelsSection())))
    one, other = plain.activations, fused.activations
    assert one.layer - other.layer == 2 * (2 * 256 * 512 + 4 * 128 * 16)
    assert (one.loss, other.loss) == (4 * 512 * 512, 0)


LLAMA_1B = replace(
    LLAMA,
    num_layers=24,
    hidden_size=2048,
    num_attention_heads=16,
    num_query_groups=None,
    ffn_hidden_size=5504,
    vocab_size=50_257,
    max_position_embeddings=2048,
    normalization="RMSNorm",
)
GPT2_124M = ModelConfig(vocab_size=50_257, activation="gelu_tanh")
GPT2_7B = ModelConfig(
    hidden_size=3072, num_attention_heads=24, vocab_size=50_257, add_bias_linear=False
)


@pytest.mark.parametrize(
    ("model", "layers", "length", "samples", "recomputed", "gigabytes"),
    [
        (LLAMA_1B, 24, 2048, 4, False, 41.446),
        (LLAMA_1B, 0, 2048, 4, False, 4.916),
        (LLAMA_1B, 1, 2048, 4, False, 6.440),
        (GPT2_124M, 12, 1024, 32, False, 15.544),
        (GPT2_124M, 0, 1024, 32, False, 4.310),
        (GPT2_124M, 1, 1024, 32, False, 5.246),
        (GPT2_7B, 57, 1024, 8, True, 123.427),
        (GPT2_7B, 0, 1024, 8, True, 4.197),
        (GPT2_7B, 1, 1024, 8, True, 6.444),
    ],
)
def test_peaks_that_a_gpu_has_told(
    model: ModelConfig, layers: int, length: int, samples: int, recomputed: bool, gigabytes: float
) -> None:
    """``torch.cuda.max_memory_allocated`` on an H200 in bf16 with all kernels, torch 2.11, by
    ``tools/benchmark.py gpu`` on 2026-11-26. What the formula does not know is cuBLAS' workspace,
    which does not depend on the model."""
    model = replace(model, num_layers=layers)
    placed = Placement(model, ParallelConfig(), 1, "bf16", optimizer_of(OptimizerSection()))
    batch = BatchShape(length, samples, samples)
    kernels = frozenset(asdict(KernelsSection()))
    [peak] = peak_memory(Step(placed, batch, 1 if recomputed else None, kernels=kernels))
    assert 0 <= gigabytes * 1e9 - peak.total <= 0.25e9
    assert peak.total == pytest.approx(gigabytes * 1e9, rel=0.02)

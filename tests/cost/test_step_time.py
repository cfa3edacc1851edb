"""Seconds and bytes of a step against closed forms, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.cost.communication import links, traffic
from megatron_grow.cost.devices import DEVICES
from megatron_grow.cost.step import Placement, Step
from megatron_grow.cost.step_time import Machine, step_time
from megatron_grow.optim.optimizers import optimizer_of

H100 = DEVICES["h100"]
MACHINE = Machine(H100, network=50e9, efficiency=0.5, link_efficiency=1.0, latency=0.0)
HIDDEN, LENGTH, VOCAB, LAYERS = 1024, 512, 8192, 8
MODEL = ModelConfig(
    num_layers=LAYERS,
    hidden_size=HIDDEN,
    num_attention_heads=8,
    vocab_size=VOCAB,
    max_position_embeddings=LENGTH,
    add_bias_linear=False,
    normalization="RMSNorm",
)
LAYER = 6 * 12 * HIDDEN**2 + 12 * HIDDEN * LENGTH
"""Operations for one token in a layer: six for each entry of its matrices, and attention's."""
HEAD = 6 * HIDDEN * VOCAB
SPEED = 0.5 * 989.5e12
STREAM = 2 * 4 * LENGTH * HIDDEN
"""Bytes of the residual stream of a micro-batch of 4, in bf16."""


def _step(world: int, recompute: int | None = None, tp: int = 1, pp: int = 1, **parallel: Any):
    layout = ParallelConfig(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, **parallel
    )
    placed = Placement(MODEL, layout, world, "bf16", optimizer_of(OptimizerSection()))
    return Step(placed, BatchShape(LENGTH, 64, 4), recompute)


def test_computation_is_arithmetic_over_speed() -> None:
    tokens = 64 * LENGTH / 4
    found = step_time(_step(4), MACHINE)
    assert found.compute == pytest.approx(tokens * (LAYERS * LAYER + HEAD) / SPEED)
    assert found.bubble == found.tensor == found.pipeline == 0


def test_recomputed_layers_pass_forward_twice() -> None:
    tokens = 64 * LENGTH / 4
    found = step_time(_step(4, recompute=1), MACHINE)
    assert found.compute == pytest.approx(tokens * (LAYERS * LAYER * 4 / 3 + HEAD) / SPEED)


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_pipeline_waits_for_its_other_ranks(chunks: int) -> None:
    """Four ranks of two layers, the last with the head besides; 16 micro-batches of 2,048 tokens.

    Where all ranks take as long it is the (PP - 1) / m of Narayanan et al. 2021, a v-th of that
    with v chunks.
    """
    virtual = chunks if chunks > 1 else None
    found = step_time(_step(4, pp=4, virtual_pipeline_model_parallel_size=virtual), MACHINE)
    other, last = (2048 * flops / SPEED for flops in (2 * LAYER, 2 * LAYER + HEAD))
    assert found.compute == pytest.approx(16 * last)
    assert found.bubble == pytest.approx(3 * other / chunks)
    # Forward and back, 16 times, over NVLink.
    assert found.pipeline == pytest.approx(2 * 16 * chunks * STREAM / 450e9)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize(("recompute", "passes"), [(None, 2), (1, 3)])
def test_tensor_parallel_sums(sequence_parallel: bool, recompute: int | None, passes: int) -> None:
    """Two all-reduces in each pass of a layer, one for embedding and head each; of a ring of four
    each sends 2 x 3/4 of the data. 16 micro-batches."""
    step = _step(4, tp=4, recompute=recompute, sequence_parallel=sequence_parallel)
    expected = 16 * (LAYERS * 2 * passes + 2) * 1.5 * STREAM
    assert traffic(step, 0).tensor == pytest.approx(expected)
    assert step_time(step, MACHINE).tensor == pytest.approx(expected / 450e9)


def test_every_message_takes_a_while() -> None:
    """Of a step of 16 micro-batches: 2 x 8 sums in each direction of the layers of TP4 and two
    more; a send for each chunk in each direction of PP4; a reduction and a gathering of DP4."""
    slow = replace(MACHINE, latency=1.0)
    plain, waits = (
        [step_time(_step(4, **layout), each) for layout in ({"tp": 4}, {"pp": 4}, {})]
        for each in (MACHINE, slow)
    )
    assert waits[0].tensor - plain[0].tensor == pytest.approx(16 * (4 * 8 + 2))
    assert waits[1].pipeline - plain[1].pipeline == pytest.approx(2 * 16)
    assert waits[2].data - plain[2].data == pytest.approx(2)


@pytest.mark.parametrize("sharded", [False, True])
def test_data_parallel_traffic(sharded: bool) -> None:
    """Rings of eight: reduce-scatter in fp32 and all-gather in bf16, or an all-reduce in fp32."""
    step = _step(8, use_distributed_optimizer=sharded)
    weights = (VOCAB + LENGTH) * HIDDEN + LAYERS * (12 * HIDDEN**2 + 2 * HIDDEN) + HIDDEN
    sent = traffic(step, 0)
    assert sent.gradients == pytest.approx(7 / 8 * weights * (4 if sharded else 8))
    assert sent.weights == pytest.approx(7 / 8 * weights * (2 if sharded else 0))
    seconds = (sent.gradients + sent.weights) / 450e9
    assert step_time(step, MACHINE).data == pytest.approx(seconds)


def test_the_last_backward_pass_hides_the_reduction() -> None:
    plain = step_time(_step(8), MACHINE).data
    gradients = traffic(_step(8), 0).gradients / 450e9
    one = 2048 * (LAYERS * LAYER + HEAD) / SPEED
    hidden = step_time(_step(8, overlap_grad_reduce=True), MACHINE).data
    assert plain - hidden == pytest.approx(min(gradients, 2 / 3 * one))
    both = step_time(_step(8, overlap_grad_reduce=True, overlap_param_gather=True), MACHINE).data
    assert both < hidden


@pytest.mark.parametrize(
    ("tp", "pp", "world", "tensor", "data", "pipeline"),
    [
        (1, 1, 8, 450, 450, 450),
        (1, 1, 64, 450, 400, 50),  # eight cards of a node serve one ring
        (8, 1, 64, 450, 50, 50),
        (4, 2, 64, 450, 100, 50),
        (2, 4, 8, 450, 450, 450),
        (2, 8, 64, 450, 450, 50),  # a pipeline rank is a node
        (16, 1, 16, 50, 50, 50),
    ],
)
def test_links(tp: int, pp: int, world: int, tensor: float, data: float, pipeline: float) -> None:
    parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    found = links(parallel, world, H100, 50e9)
    assert found.tensor == tensor * 1e9
    if world // pp > tp:
        assert found.data == data * 1e9
    if pp > 1:
        assert found.pipeline == pipeline * 1e9

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
    each sends 2 x 3/4 of the data. With sequence parallelism the backward pass gathers each
    branch's input once more, and the head's, and the embedding's gradient. 16 micro-batches."""
    step = _step(4, tp=4, recompute=recompute, sequence_parallel=sequence_parallel)
    once_more = (LAYERS * 2 + 2) / 2 if sequence_parallel else 0
    expected = 16 * (LAYERS * 2 * passes + 2 + once_more) * 1.5 * STREAM
    assert traffic(step, 0).tensor == pytest.approx(expected)


def test_tensor_parallel_sums_that_products_hide() -> None:
    """In a layer's backward pass what is sent for the matrices that begin its two branches goes
    beside their gradients: two all-reduces; or, of eight messages with sequence parallelism, four.
    Those products take as long as the layer's forward pass, a third of its operations."""
    layers = 16 * LAYERS * 2048 * LAYER / 3 / (4 * SPEED)
    one = 1.5 * STREAM / 450e9
    for shared, exposed in ((False, 2 * LAYERS + 2), (True, 3 * LAYERS + 3)):
        step = _step(4, tp=4, sequence_parallel=shared)
        assert 16 * 2 * LAYERS * one < layers
        assert step_time(step, MACHINE).tensor == pytest.approx(16 * exposed * one)
        slow = replace(MACHINE, link_efficiency=0.01)
        left = 16 * 2 * LAYERS * 100 * one - layers
        assert left > 0
        assert step_time(step, slow).tensor == pytest.approx(16 * exposed * 100 * one + left)


def test_every_message_takes_a_while() -> None:
    """Of a step of 16 micro-batches: 2 x 8 sums in each direction of the layers of TP4 and two
    more; a send for each chunk in each direction of PP4; a reduction and a gathering of DP4. It is
    as long as nothing hides it."""
    slow = replace(MACHINE, latency=1.0)
    plain, waits = (
        [step_time(_step(4, **layout), each) for layout in ({"tp": 4}, {"pp": 4}, {})]
        for each in (MACHINE, slow)
    )
    hidden = 16 * LAYERS * 2048 * LAYER / 3 / (4 * SPEED) - 16 * 2 * LAYERS * 1.5 * STREAM / 450e9
    assert waits[0].tensor - plain[0].tensor == pytest.approx(16 * (4 * 8 + 2) - hidden)
    assert waits[1].pipeline - plain[1].pipeline == pytest.approx(2 * 16)
    assert waits[2].data - plain[2].data == pytest.approx(2)


@pytest.mark.parametrize("sharded", [False, True])
def test_data_parallel_traffic(sharded: bool) -> None:
    """Rings of eight: reduce-scatter in fp32 and all-gather in bf16, or an all-reduce in fp32."""
    step = _step(8, use_distributed_optimizer=sharded)
    weights = (VOCAB + LENGTH) * HIDDEN + LAYERS * (12 * HIDDEN**2 + 2 * HIDDEN) + HIDDEN
    sent = traffic(step, 0)
    gradients, gathered = sum(sent.reductions), sum(sent.gatherings)
    assert gradients == pytest.approx(7 / 8 * weights * (4 if sharded else 8))
    assert gathered == pytest.approx(7 / 8 * weights * (2 if sharded else 0))
    seconds = (gradients + gathered) / 450e9
    assert step_time(step, MACHINE).data == pytest.approx(seconds)


EMBEDDING = (VOCAB + LENGTH) * HIDDEN
"""Entries of the tables of tokens and positions, which are tied to the head."""
IN_LAYER = 12 * HIDDEN**2 + 2 * HIDDEN
RING = 7 / 8 / 450e9
"""Seconds that a byte takes in a ring of eight."""


def test_one_backward_pass_hides_the_reduction_but_for_the_last_bucket() -> None:
    """However many micro-batches there are. Layer by layer: the last bucket to be complete is that
    of the embedding, which is also the first that the next step waits for. The final norm is in the
    first bucket, so that each norm that begins a layer is in the next one."""
    layout: dict[str, Any] = {"overlap_grad_reduce": True, "bucket_size": IN_LAYER}
    gathered = RING * 2 * (EMBEDDING + LAYERS * IN_LAYER + HIDDEN)
    found = step_time(_step(8, **layout), MACHINE).data
    last = EMBEDDING + HIDDEN
    assert found - gathered == pytest.approx(RING * 4 * last)
    both = step_time(_step(8, **layout, overlap_param_gather=True), MACHINE).data
    assert both == pytest.approx(RING * 6 * last)

    slow = replace(MACHINE, link_efficiency=0.01)
    backward = 2 / 3 * 2048 * (LAYERS * LAYER + HEAD) / SPEED
    for samples in (64, 640):
        step = _step(8, **layout, use_distributed_optimizer=False)
        step = replace(step, batch=BatchShape(LENGTH, samples, 4))
        total = 100 * RING * 8 * (EMBEDDING + LAYERS * IN_LAYER + HIDDEN)
        assert step_time(step, slow).data == pytest.approx(total - backward)


def test_a_model_of_one_bucket_hides_nothing() -> None:
    one = _step(8, overlap_grad_reduce=True, bucket_size=10**9)
    assert step_time(one, MACHINE).data == pytest.approx(step_time(_step(8), MACHINE).data)


def test_later_pipeline_ranks_reduce_while_earlier_ones_pass_back() -> None:
    """Two ranks of four layers, 16 replicas over NVLink: the first has the embedding, the second
    its copy and the final norm. What they gather the first micro-batch waits for, on each."""
    layout: dict[str, Any] = {"overlap_grad_reduce": True, "bucket_size": IN_LAYER}
    step = _step(16, pp=2, **layout, overlap_param_gather=True)
    step = replace(step, batch=BatchShape(LENGTH, 64, 4))
    table, second = VOCAB * HIDDEN, VOCAB * HIDDEN + 4 * IN_LAYER + HIDDEN
    backward = 2 / 3 * 2048 * 4 * LAYER / SPEED
    machine = replace(MACHINE, device=replace(H100, gpus_per_node=8))
    assert RING * 4 * second < backward
    expected = RING * (4 * table + 2 * table + 2 * second)
    assert step_time(step, machine).data == pytest.approx(expected)
    tenth = replace(machine, link_efficiency=0.1)
    assert 10 * RING * 4 * second > backward
    late = 10 * RING * 4 * second - backward
    first = max(10 * RING * 4 * table, 10 * RING * 4 * (EMBEDDING + 4 * IN_LAYER) - backward)
    gathered = max(10 * RING * 2 * table, 10 * RING * 2 * (EMBEDDING + 4 * IN_LAYER) - backward / 2)
    expected = max(late, first) + gathered + 10 * RING * 2 * second
    assert step_time(step, tenth).data == pytest.approx(expected)


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

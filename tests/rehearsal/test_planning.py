"""Planning a growth as a rank of a large job: what it knows of others, and what that costs."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_grow.config.run import RunConfig
from megatron_grow.growth.exchange import needs
from megatron_grow.growth.holders import Holders, holdings
from megatron_grow.rehearsal.holding import Holding
from megatron_grow.rehearsal.planning import placement, plan_growth
from megatron_grow.state.boxes import volume
from tests.distributed import run_ranks
from tests.growth.test_experts import run, shared
from tests.toy import begin, grown_run, layout, plan_of

RUN = grown_run(layout(), layout(tp=2, pp=2), source_layers=2, depth="copying_stack", until=1)
EXPERTS = run(shared(1, 2), shared(2, 2, 1))
WORLD = 4


def values_held(runs: list[RunConfig], world_size: int) -> list[Counter[tuple[str, str]]]:
    """On a rank, of each run: values of each kind of state of each tensor, in the first stage."""
    found = []
    for config in runs:
        held: Counter[tuple[str, str]] = Counter()
        live = begin(config, world_size)
        for piece in live.pieces():
            held[piece.key, piece.kind] += volume(piece.box)
        live.release()
        found.append(held)
    return found


@pytest.fixture(scope="module")
def real() -> list[list[Counter[tuple[str, str]]]]:
    """By rank; of a run without experts and of one with them."""
    return run_ranks(WORLD, values_held, [RUN, EXPERTS], WORLD)


@pytest.mark.parametrize("number", [0, 1])
def test_what_ranks_hold_is_what_they_hold(
    real: list[list[Counter[tuple[str, str]]]], number: int
) -> None:
    config = (RUN, EXPERTS)[number]
    holding = Holding(placement(config, config.resolve(WORLD)[0], WORLD))
    whole: Counter[tuple[str, str]] = Counter()
    for rank, values in enumerate(found[number] for found in real):
        computed: Counter[tuple[str, str]] = Counter()
        for piece in holding.of(rank):
            computed[piece.key, piece.kind] += volume(piece.box)
        whole += computed
        # the order of parameters in megatron-core's buffers and its padding are not computed
        assert computed.total() == pytest.approx(values.total(), rel=0.05)
    tensors = plan_of(config, WORLD, 0).tensors
    assert {key: count for (key, _), count in whole.items()} == {
        key: volume(tuple((0, size) for size in tensor.shape)) for key, tensor in tensors.items()
    }


@pytest.mark.parametrize("config", [RUN, EXPERTS])
def test_a_rank_asks_for_no_more_than_it_lacks(config: RunConfig) -> None:
    stages, plan = config.resolve(WORLD), plan_of(config, WORLD, 1)
    for planned in plan_growth(config, stages[0], stages[1], plan, WORLD, range(WORLD)):
        assert planned.received == planned.bound > 0


def test_the_memory_of_a_growth() -> None:
    """Of fp32, TP2 PP2 on 4 ranks, one replica: 16 bytes of each parameter that the rank has then;
    before, the weights, of which it updates a quarter, and a quarter of the moments; and what it
    exchanges."""
    stages, plan = RUN.resolve(WORLD), plan_of(RUN, WORLD, 1)
    for planned in plan_growth(RUN, stages[0], stages[1], plan, WORLD, range(WORLD)):
        layer = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 2 * 64 * 32  # query, keys and values, out, mlp
        biases = 32 + 2 * 16 + 64  # of columns, cut; those of rows are whole
        norms = 4 * 32 + 2 * 32
        at_end = 128 * 32 // 2 + (16 * 32 if planned.rank < 2 else 2 * 32)
        new = 2 * ((layer + biases) // 2 + norms) + at_end
        old = 128 * 32 + 16 * 32 + 2 * 32 + 2 * (layer + biases + norms)
        assert planned.resident == 16 * new
        assert planned.memory == 16 * new + 4 * old + 8 * old // WORLD + 2 * planned.received


def test_requests_do_not_grow_with_the_job() -> None:
    plan = plan_of(RUN, WORLD, 1)
    asked = {}
    for world in (64, 1024):
        before, after = RUN.resolve(WORLD)
        source, target = (Holding(placement(RUN, stage, world)) for stage in (before, after))
        held = [holdings(source.of(rank)) for rank in range(world)]
        found = needs(plan, target.of(5), Holders(held, 5))
        asked[world] = sum(map(len, found.requests))
    assert asked[1024] <= 2 * asked[64]

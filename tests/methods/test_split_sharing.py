"""Groups of layers that split while they train, on every layout."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations, islice
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import AgreedError
from megatron_grow.methods.split_sharing import SplitSharing
from megatron_grow.model.architectures import logical_tensors
from tests import toy
from tests.distributed import run_ranks
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import begin, grow, layout, loop_over, micro_batches, run_config

STEPS, EVERY, RHO = 8, 2, 0.84
MODEL = replace(toy.MODEL, init_method_std=0.1)
"""Whose layers agree less."""
METHOD = {"name": "split_sharing", "layer_sharing": "1x4", "every": EVERY, "rho": RHO}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
LAYOUTS = {
    "DP4": (4, layout()),
    "DP2, replicated optimizer": (2, layout(use_distributed_optimizer=False)),
    "PP2, interleaved": (2, layout(pp=2, virtual_pipeline_model_parallel_size=2)),
    "TP2 PP2 DP2": (8, layout(tp=2, pp=2, sequence_parallel=True, **OVERLAP)),
}


@dataclass
class Run:
    """What a rank saw, step by step."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    groups: list[list[list[int]]] = field(default_factory=list)
    """After the step."""
    correlations: list[dict[str, Any]] = field(default_factory=list)
    """What was reported."""
    states: list[list[Part]] = field(default_factory=list)


def train(parallel: dict[str, Any]) -> Run:
    """On a rank."""
    config = run_config(
        StageSection(parallel=parallel, methods=[METHOD]),
        model=MODEL,
        optimizer=OptimizerSection(lr=1e-3, clip_grad=0.5),
        micro_batch_size=2,
    )
    live, run = begin(config, dist.get_world_size()), Run()
    loop, batches = loop_over(live, config), micro_batches(config, 0)
    (method,) = loop.ctx.methods.values()
    assert isinstance(method, SplitSharing)
    for _ in range(STEPS):
        loop.step(batches)
        run.losses.append(loop.ctx.mean_loss())
        run.grad_norms.append(loop.ctx.grad_norm)
        run.groups.append(method.state_dict()["groups"])
        run.correlations += [
            report.values for report in loop.ctx.reports if "mean" in report.values
        ]
        run.states.append(snapshot(live.pieces()))
    loop.end()
    live.release()
    return run


@pytest.fixture(scope="module")
def one() -> Run:
    (run,) = run_ranks(1, train, layout())
    return run


def same(state: dict, first: int, second: int) -> set[bool]:
    """Whether two layers have the same weights and moments, of each tensor and kind."""
    return {
        np.array_equal(values[first], values[second])
        for (key, _), values in state.items()
        if key.startswith("decoder.layers.")
    }


def check_groups(run: Run, ranks: list[Run]) -> None:
    """Layers are the same to the bit as long as they are of one group, and then no longer."""
    for number, groups in enumerate(run.groups):
        state = assemble(logical_tensors(MODEL), [rank.states[number] for rank in ranks])
        # A split after this step has changed no weight yet.
        before = run.groups[number - 1] if number else [[0, 1, 2, 3]]
        for first, second in combinations(range(4), 2):
            together = any({first, second} <= {*group} for group in groups)
            apart = not any({first, second} <= {*group} for group in before)
            if together:
                assert same(state, first, second) == {True}
            if apart:
                assert False in same(state, first, second)


def test_one_rank(one: Run) -> None:
    """Each split is where the pair's correlation was first below rho; at last all are apart."""
    check_groups(one, [one])
    expected = [[0, 1, 2, 3]]
    measured = iter(one.correlations)
    for step, groups in enumerate(one.groups, start=1):
        if step % EVERY == 0 and expected:
            found = next(measured)
            for (first, _), value in zip(found["pairs"], found["correlations"], strict=True):
                assert abs(value - RHO) > 1e-3, "no layout may decide otherwise"
                if value < RHO:
                    expected = [
                        part
                        for group in expected
                        for part in (
                            [layer for layer in group if layer <= first],
                            [layer for layer in group if layer > first],
                        )
                        if len(part) > 1
                    ]
        assert groups == expected
    sizes = [sum(map(len, groups)) for groups in one.groups]
    assert sizes[0] == 4 and sizes[-1] < 4 and len(set(sizes)) > 2, "it splits more than once"


def part_at_once() -> list[list[Any]]:
    """On a rank: losses, norms and states of runs whose layers part after ``EVERY`` steps: by a
    split of all of them, and by a growth of a model that stores them as one."""
    split = [StageSection(methods=[{**METHOD, "rho": 1.0}])]
    shared = StageSection(until=EVERY, model={"layer_sharing": "1x4"})
    return [_follow(split), _follow([shared, StageSection(grow=GrowSection(depth="unshare"))])]


def _follow(stages: list[StageSection]) -> list[Any]:
    config = run_config(*stages, model=MODEL, optimizer=OptimizerSection(lr=1e-2, clip_grad=0.5))
    live, found = begin(config, 1), []
    while len(found) < STEPS:
        live = grow(live, config, 1) if found else live
        loop, batches = loop_over(live, config), micro_batches(config, len(found))
        for ctx in islice(loop.steps(batches), STEPS - len(found)):
            state = assemble(live.tensors, [snapshot(live.pieces())])
            found.append((ctx.mean_loss(), ctx.grad_norm, state))
        loop.end()
    live.release()
    return found


def test_a_split_is_what_a_growth_is() -> None:
    """Bit for bit: losses, norms by which gradients are clipped, weights, and moments."""
    ((split, grown),) = run_ranks(1, part_at_once)
    assert len(split) == len(grown) == STEPS
    for number, (one, other) in enumerate(zip(split, grown, strict=True), start=1):
        assert one[:2] == other[:2]
        for (key, kind), values in one[2].items():
            if number < EVERY and key.startswith("decoder.layers."):
                values = values[:1]  # of a model that shares them
            elif number == EVERY and key.startswith("decoder.layers."):
                continue  # the split is done already, the growth is not
            assert np.array_equal(values, other[2][key, kind]), (number, key, kind)


def begin_with_pairs() -> tuple[list[Part], list[Part]]:
    """On a rank: the state before and after layers of two groups are made the same."""
    parallel = layout(pp=2, virtual_pipeline_model_parallel_size=2)
    method = {**METHOD, "layer_sharing": [0, 1, 1, 0]}
    config = run_config(StageSection(parallel=parallel, methods=[method]), model=MODEL)
    live = begin(config, dist.get_world_size())
    before = snapshot(live.pieces())
    loop_over(live, config)
    after = snapshot(live.pieces())
    live.release()
    return before, after


def test_a_group_begins_as_its_first_layer() -> None:
    """Chunks of layer 0 and 2 on one rank, of 1 and 3 on the other: the first of layers 1 and 2 is
    not on the first rank of the two."""
    ranks, tensors = run_ranks(2, begin_with_pairs), logical_tensors(MODEL)
    before, after = (assemble(tensors, [rank[when] for rank in ranks]) for when in (0, 1))
    for (key, kind), values in before.items():
        if key.startswith("decoder.layers."):
            assert np.array_equal(after[key, kind], values[[0, 1, 1, 0]]), (key, kind)
    assert same(before, 1, 2) != {True}


def freeze_one() -> str:
    """On a rank: what is said where another method keeps a tensor of one layer of a group as it
    is, and no other."""
    methods = [METHOD, {"name": "frozen", "layers": [1], "tensors": ["*linear_proj.weight"]}]
    config = run_config(StageSection(methods=methods), model=MODEL)
    live = begin(config, 1)
    loop, batches = loop_over(live, config), micro_batches(config, 0)
    with pytest.raises(AgreedError) as error:
        for _ in range(EVERY):
            loop.step(batches)
    live.release()
    return str(error.value)


def test_layers_that_are_no_longer_the_same_are_told() -> None:
    (said,) = run_ranks(1, freeze_one)
    assert said == (
        "stages[0].methods: layers 0 and 1 train as one and are no longer the same; another method "
        "updates one of them alone"
    )


@pytest.mark.parametrize("where", LAYOUTS)
def test_layouts(one: Run, where: str) -> None:
    world_size, parallel = LAYOUTS[where]
    ranks = run_ranks(world_size, train, parallel)
    for rank in ranks:
        assert rank.groups == one.groups
        assert rank.losses == pytest.approx(one.losses, rel=1e-5)
        assert rank.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
    check_groups(ranks[0], ranks)

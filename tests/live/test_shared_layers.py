"""Layers that share their parameters, on layouts: as one rank has it, and bit for bit the same."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import logical_tensors
from tests.distributed import run_ranks
from tests.state.snapshot import Part, State, assemble, model_weights, snapshot
from tests.toy import MODEL, begin, layout, loop_over, micro_batches, run_config

STEPS = 50
CLIP = 0.5
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
SHARED = replace(MODEL, layer_sharing="1x4")
UNITS = replace(MODEL, layer_sharing="2x2")
RUNS = replace(MODEL, layer_sharing=[0, 0, 0, 1])
"""The last layer is alone."""
ADAM = OptimizerSection(lr=3e-3, clip_grad=CLIP, weight_decay=0.1)


def run(parallel: dict[str, Any], model: Any = SHARED, **more: Any) -> RunConfig:
    optimizer = more.pop("optimizer", ADAM)
    stage = StageSection(parallel=parallel)
    return run_config(stage, model=model, optimizer=optimizer, train_iters=STEPS, **more)


LAYOUTS = {
    "TP2 PP2": layout(tp=2, pp=2, sequence_parallel=True),
    "DP4": layout(),
    "DP4 overlapped": layout(**OVERLAP),
    "PP2 interleaved, DP2 overlapped": layout(
        pp=2, virtual_pipeline_model_parallel_size=2, **OVERLAP
    ),
}


@dataclass
class Found:
    """What a rank found."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    state: list[Part] = field(default_factory=list)
    weights: list[Part] = field(default_factory=list)
    """Of the model, layer by layer."""


def train_all(configs: dict[str, RunConfig], steps: int) -> dict[str, Found]:
    return {name: train(config, steps) for name, config in configs.items()}


def train(config: RunConfig, steps: int) -> Found:
    """On a rank."""
    found, live = Found(), begin(config, dist.get_world_size())
    loop, batches = loop_over(live, config), micro_batches(config, 0)
    for _ in range(steps):
        loop.step(batches)
        found.losses.append(loop.ctx.mean_loss())
        found.grad_norms.append(loop.ctx.grad_norm)
    found.state = snapshot(live.pieces())
    with live._parameters_gathered():
        found.weights = model_weights(live.chunks)
    live.release()
    return found


def runs(ranks: int, configs: dict[str, RunConfig], steps: int = STEPS) -> dict[str, list[Found]]:
    """Of each configuration, what all ranks found."""
    found = run_ranks(ranks, train_all, configs, steps)
    return {name: [of_rank[name] for of_rank in found] for name in configs}


def whole(config: RunConfig, ranks: list[Found]) -> State:
    """The state of all ranks, replicas of which agree to the bit."""
    return assemble(logical_tensors(config.model), [found.state for found in ranks])


def check_layers(config: RunConfig, ranks: list[Found]) -> None:
    """Every layer computes with the weights of its unique layer."""
    sharing = config.model.sharing
    known: dict[tuple, np.ndarray] = {}
    seen = set()
    for part in (part for found in ranks for part in found.weights):
        if ".layers." in part.key:
            (layer, _), *rest = part.box
            seen.add(layer)
            first = known.setdefault((part.key, sharing[layer], *rest), part.values)
            assert np.array_equal(part.values, first), (part.key, layer)
    assert seen == {*range(config.model.num_layers)}


@pytest.fixture(scope="module")
def alone() -> dict[str, Found]:
    found = runs(1, {"1x4": run(layout()), "2x2": run(layout(), UNITS)})
    return {name: one for name, (one,) in found.items()}


@pytest.fixture(scope="module")
def on_ranks() -> dict[str, list[Found]]:
    return runs(4, {name: run(parallel) for name, parallel in LAYOUTS.items()})


@pytest.mark.parametrize("where", LAYOUTS)
def test_layers_stay_the_same_to_the_bit(on_ranks: dict[str, list[Found]], where: str) -> None:
    config, ranks = run(LAYOUTS[where]), on_ranks[where]
    check_layers(config, ranks)
    whole(config, ranks)


@pytest.mark.parametrize("where", LAYOUTS)
def test_training_is_that_of_one_rank(
    alone: dict[str, Found], on_ranks: dict[str, list[Found]], where: str
) -> None:
    for found in on_ranks[where]:
        assert found.losses == pytest.approx(alone["1x4"].losses, rel=2e-5)
        # The norm counts a unique layer once, on every layout; most steps are clipped by it.
        assert found.grad_norms == pytest.approx(alone["1x4"].grad_norms, rel=2e-3)
    assert max(alone["1x4"].grad_norms) > CLIP

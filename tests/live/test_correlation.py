"""Correlations of the gradients of layers: those of autograd, on every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.live.correlation import gradient_correlations
from megatron_grow.live.layers import Layers
from megatron_grow.model.architectures import logical_tensors
from tests.distributed import run_ranks
from tests.model.reference import losses
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import MODEL, TRAIN, begin, layout, micro_batches, run_config, tokens

STEPS = 3
PAIRS = {"1x4": [(0, 1), (1, 2), (2, 3)], "2x2": [(0, 2), (1, 3)]}
"""By what is shared; of ``2x2`` each pair is of two layers that are not neighbours."""
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
LAYOUTS = {
    "TP2, sequence parallel": (2, layout(tp=2, sequence_parallel=True)),
    "PP2, interleaved": (2, layout(pp=2, virtual_pipeline_model_parallel_size=2)),
    "PP4": (4, layout(pp=4)),
    "DP4, overlapped": (4, layout(**OVERLAP)),
    "DP2, replicated optimizer": (2, layout(use_distributed_optimizer=False)),
    "TP2 PP2 DP2": (8, layout(tp=2, pp=2, sequence_parallel=True, **OVERLAP)),
}


class Step(NamedTuple):
    """What was measured, and the weights for which."""

    correlations: list[float]
    weights: list[Part]


def sharing(units: str) -> ModelConfig:
    return replace(MODEL, layer_sharing=units)


def measure(parallel: dict[str, Any]) -> dict[str, list[Step]]:
    """On a rank: train, and measure in each step."""
    found = {}
    for units, pairs in PAIRS.items():
        stage = StageSection(parallel=parallel)
        config = run_config(stage, model=sharing(units), micro_batch_size=2)
        live = begin(config, dist.get_world_size())
        batches, found[units] = micro_batches(config, 0), []
        for step in range(1, STEPS + 1):
            weights = snapshot([piece for piece in live.pieces() if piece.kind == "main_param"])
            live.forward_backward(step, batches)
            found[units].append(Step(live.gradient_correlations(pairs), weights))
            live.share_gradients()
            live.update(live.gradient_norm())
        live.release()
    return found


@pytest.fixture(scope="module")
def one() -> dict[str, list[Step]]:
    (found,) = run_ranks(1, measure, layout())
    return found


def by_autograd(units: str, step: int, weights: list[Part]) -> list[float]:
    """Of a model in plain PyTorch, whose layers have weights of their own that are equal."""
    model = sharing(units)
    assert model.sharing is not None
    unshared, whole = replace(model, layer_sharing=None), {}
    tensors = logical_tensors(unshared)
    for (key, _), values in assemble(logical_tensors(model), [weights]).items():
        layers = [*model.sharing] if tensors[key].stacked else slice(None)
        whole[key] = torch.from_numpy(values[layers]).double().view(tensors[key].checkpoint_shape)
        whole[key].requires_grad_(tensors[key].stacked)
    batch = tokens(step - 1, model.vocab_size, TRAIN.global_batch_size, TRAIN.seq_length)
    losses(unshared, whole, batch[:, :-1], batch[:, 1:]).mean().backward()
    gradients = np.concatenate(
        [x.grad.reshape(MODEL.num_layers, -1) for x in whole.values() if x.grad is not None], axis=1
    )
    directions = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    return [float(directions[first] @ directions[second]) for first, second in PAIRS[units]]


@pytest.mark.parametrize("units", PAIRS)
def test_they_are_those_of_autograd(one: dict[str, list[Step]], units: str) -> None:
    for number, (correlations, weights) in enumerate(one[units], start=1):
        expected = by_autograd(units, number, weights)
        assert correlations == pytest.approx(expected, abs=1e-6)
        assert min(expected) < 0.99


@pytest.mark.parametrize("where", LAYOUTS)
def test_every_layout_measures_the_same(one: dict[str, list[Step]], where: str) -> None:
    world_size, parallel = LAYOUTS[where]
    ranks = run_ranks(world_size, measure, parallel)
    for units, alone in one.items():
        for number, step in enumerate(alone):
            (found, *others) = (rank[units][number].correlations for rank in ranks)
            assert all(other == found for other in others)
            assert found == pytest.approx(step.correlations, abs=1e-6)


def of_nothing() -> list[float]:
    """On a rank that updates nothing of any layer: more share them than they have entries."""
    live = begin(run_config(StageSection(parallel=layout(pp=2))), dist.get_world_size())
    none = Layers([], live.stage.parallel, MODEL.num_layers)
    found = gradient_correlations(none, PAIRS["1x4"])
    live.release()
    return found


def test_ranks_that_hold_nothing_of_a_layer() -> None:
    assert run_ranks(2, of_nothing) == [[0.0] * 3] * 2

"""Layers that share their parameters, on layouts: as one rank has it, and bit for bit the same."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import architecture_of, logical_tensors
from megatron_grow.state.tensors import stacked_key
from tests.distributed import run_ranks
from tests.growth.test_experts import EXPERTS
from tests.growth.test_experts import shared as experts_layout
from tests.state.snapshot import Part, State, assemble, model_weights, snapshot
from tests.toy import MODEL, begin, layout, loop_over, micro_batches, run_config

STEPS = 50
CLIP = 0.5
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
SHARED = replace(MODEL, layer_sharing="1x4", normalization="RMSNorm", add_bias_linear=False)
"""Of few tensors, for many steps; the others have biases."""
UNITS = replace(MODEL, layer_sharing="2x2")
UNEVEN = replace(MODEL, layer_sharing=[0, 1, 0, 0])
"""Of two pipeline stages, one has one layer of the first unique one, the other two."""
UNLIKE = replace(
    EXPERTS, options={"experts": 4, "dense_layers": 1}, num_layers=4, layer_sharing=[0, 1, 1, 1]
)
ADAM = OptimizerSection(lr=3e-3, clip_grad=CLIP, weight_decay=0.1)


def run(parallel: dict[str, Any], model: Any = SHARED, **more: Any) -> RunConfig:
    optimizer = more.pop("optimizer", ADAM)
    stage = StageSection(parallel=parallel)
    config = run_config(
        stage, model=model, optimizer=optimizer, global_batch_size=4, train_iters=STEPS, **more
    )
    constant = ScheduleSection(lr_warmup_fraction=0.0, lr_decay_style="constant")
    return replace(config, schedule=constant)


LAYOUTS = {
    "TP2 PP2": run(layout(tp=2, pp=2, sequence_parallel=True), micro_batch_size=2),
    "DP4": run(layout()),
    "DP4 overlapped": run(layout(**OVERLAP)),
}


@dataclass
class Found:
    """What a rank found."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    state: list[Part] = field(default_factory=list)
    weights: list[Part] = field(default_factory=list)
    """Of the model, layer by layer."""
    buckets: int = 0
    """In which gradients are reduced over data-parallel ranks."""


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
    found.buckets = sum(len(buffer.buckets) for chunk in live.chunks for buffer in chunk.buffers)
    found.state = snapshot(live.pieces())
    with live._parameters_gathered():
        found.weights = model_weights([chunk.module for chunk in live.chunks])
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
            key, in_key = stacked_key(part.key)  # has the layer where layers are not all alike
            layer, rest = (layer, rest) if in_key is None else (in_key, [*part.box])
            seen.add(layer)
            first = known.setdefault((key, sharing[layer], *rest), part.values)
            assert np.array_equal(part.values, first), (part.key, layer)
    assert seen == {*range(config.model.num_layers)}


@pytest.fixture(scope="module")
def alone() -> Found:
    return runs(1, {"": run(layout(), micro_batch_size=4)})[""][0]


@pytest.fixture(scope="module")
def on_ranks() -> dict[str, list[Found]]:
    return runs(4, LAYOUTS)


@pytest.mark.parametrize("where", LAYOUTS)
def test_layers_stay_the_same_to_the_bit(on_ranks: dict[str, list[Found]], where: str) -> None:
    config, ranks = LAYOUTS[where], on_ranks[where]
    check_layers(config, ranks)
    whole(config, ranks)


@pytest.mark.parametrize("where", LAYOUTS)
def test_training_is_that_of_one_rank(
    alone: Found, on_ranks: dict[str, list[Found]], where: str
) -> None:
    for found in on_ranks[where]:
        # Rounding grows over so many steps; without clipping's norm the first would be off by 0.1.
        assert found.losses == pytest.approx(alone.losses, rel=2e-5)
        assert found.grad_norms == pytest.approx(alone.grad_norms, rel=2e-3)
        assert found.grad_norms[:5] == pytest.approx(alone.grad_norms[:5], rel=1e-5)
    assert min(alone.grad_norms[:5]) > CLIP


@pytest.mark.parametrize("where", ["DP4", "DP4 overlapped"])
def test_messages_are_few(on_ranks: dict[str, list[Found]], where: str) -> None:
    """Three for each of four layers, and what lies before and behind them."""
    assert [found.buckets for found in on_ranks[where]] == [3 * 4 + 2] * 4


FEW = 4
MUON = OptimizerSection(optimizer="muon", lr=3e-3, clip_grad=CLIP, muon_lr=1e-2)
PP2_DP2 = layout(pp=2, overlap_grad_reduce=True, bucket_size=2000)
"""Where buckets went by that, they would on the first pipeline stage alone."""
VARIANTS: dict[str, tuple[RunConfig, dict[str, Any], float]] = {
    # On one rank; the layout of four; how far losses may be apart.
    "units": (run(layout(), UNITS), PP2_DP2, 1e-6),
    "uneven": (run(layout(), UNEVEN), PP2_DP2, 1e-6),
    "interleaved": (
        run(layout(), UNITS),
        layout(pp=2, virtual_pipeline_model_parallel_size=2, **OVERLAP),
        1e-6,
    ),
    "bf16": (run(layout(), UNITS, precision="bf16"), PP2_DP2, 2e-3),
    "recomputed": (run(layout(), UNITS, recompute_granularity="full"), PP2_DP2, 1e-6),
    "sgd": (
        run(layout(), optimizer=OptimizerSection(optimizer="sgd", lr=0.1, clip_grad=CLIP)),
        PP2_DP2,
        1e-6,
    ),
    "muon": (run(layout(), UNITS, optimizer=MUON), layout(tp=2, pp=2), 1e-6),
    "muon, four stages": (run(layout(), optimizer=MUON), layout(pp=4), 1e-6),
    "unlike layers": (run(layout(), UNLIKE), experts_layout(1, 2, pp=2), 1e-5),
}


def variant(name: str) -> RunConfig:
    """On its layout of four ranks."""
    one, parallel, _ = VARIANTS[name]
    return replace(one, stages=[StageSection(parallel=parallel)])


@pytest.fixture(scope="module")
def variants_alone() -> dict[str, list[Found]]:
    return runs(1, {name: one for name, (one, _, _) in VARIANTS.items()}, FEW)


@pytest.fixture(scope="module")
def variants() -> dict[str, list[Found]]:
    return runs(4, {name: variant(name) for name in VARIANTS}, FEW)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(
    variants_alone: dict[str, list[Found]], variants: dict[str, list[Found]], name: str
) -> None:
    """The same bits in all layers, and the losses and norms of one rank."""
    (alone,), ranks, apart = variants_alone[name], variants[name], VARIANTS[name][2]
    check_layers(variant(name), ranks)
    whole(variant(name), ranks)
    for found in ranks:
        assert found.losses == pytest.approx(alone.losses, rel=apart)
        assert found.grad_norms == pytest.approx(alone.grad_norms, rel=20 * apart)
    assert len(set(alone.losses)) == FEW


def tied_by_torch(config: RunConfig) -> tuple[Found, Found]:
    """On one rank: a stage that trains, and a network that has its layers once, by autograd."""
    live = begin(config, 1)
    model = config.model
    (network,) = architecture_of(model).build(model, live.stage.parallel, config.train)
    network.load_state_dict(live.chunks[0].module.state_dict())
    layers = network.decoder.layers
    for layer, unique in enumerate(model.sharing):
        layers[layer] = layers[model.sharing.index(unique)]
    named = list(network.named_parameters())  # each once
    matrices, others = (
        [p for name, p in named if (p.dim() == 2) == is_matrix] for is_matrix in (True, False)
    )
    section, torchs = config.optimizer, Found()
    adam = torch.optim.AdamW(
        [{"params": matrices}, {"params": others, "weight_decay": 0.0}],
        lr=section.lr,
        betas=(section.adam_beta1, section.adam_beta2),
        eps=section.adam_eps,
        weight_decay=section.weight_decay,
    )
    batch = config.train.global_batch_size
    for step in range(FEW):
        adam.zero_grad()
        losses = []
        for micro in islice(micro_batches(config, step), batch):
            output, loss = architecture_of(model).forward_step(network, micro)
            total, count = loss(output)["loss"]
            losses.append(total / count / batch)
            losses[-1].backward()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], section.clip_grad)
        adam.step()
        torchs.losses.append(sum(loss.item() for loss in losses))
        torchs.grad_norms.append(float(norm))
    torchs.weights = model_weights([network])
    live.release()
    return train(config, FEW), torchs


@pytest.mark.parametrize("sharing", ["1x4", "2x2", [0, 0, 1, 0]])
def test_a_network_that_has_its_layers_once(sharing: Any) -> None:
    """By autograd: a shared layer's gradient is the sum, clipped by a norm that has it once."""
    config = run(layout(), replace(MODEL, layer_sharing=sharing))
    ours, torchs = run_ranks(1, tied_by_torch, config)[0]
    assert ours.losses == pytest.approx(torchs.losses, rel=1e-6)
    assert ours.grad_norms == pytest.approx(torchs.grad_norms, rel=1e-5)
    found = {(part.key, part.box): part.values for part in ours.weights}
    for part in torchs.weights:
        assert np.allclose(found[part.key, part.box], part.values, rtol=0, atol=2e-5), part.key

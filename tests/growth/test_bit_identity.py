"""What a growth in depth keeps, copies and makes, to the bit, on every layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.state import inner_optimizers
from megatron_grow.state.boxes import full, slices
from megatron_grow.state.fresh import fresh
from megatron_grow.state.tensors import Normal
from tests.distributed import run_ranks
from tests.state.snapshot import Part, State, assemble, model_weights, snapshot
from tests.toy import MODEL, Trace, begin, grow, layout, run_config, train_stage

SOURCE_DEPTH, STEPS = 2, 2
REPLICATED = layout(use_distributed_optimizer=False)
UNTIED = replace(
    MODEL,
    share_embeddings_and_output_weights=False,
    activation="swiglu",
    normalization="RMSNorm",
    position_embedding_type="rope",
    add_bias_linear=False,
    qk_layernorm=True,
)

# Of two layers four: the source of each, in weights; None is fresh.
LAYERS: dict[str, list[int | None]] = {
    "random": [0, 1, None, None],
    "zero": [0, 1, None, None],
    "copying_stack": [0, 1, 0, 1],
    "copying_inter": [0, 0, 1, 1],
    "copying_last": [0, 1, 1, 1],
    "copying_zero": [0, 0, 1, 1],
}
# Which of them carry moments: those of originals only, or of copies too.
ORIGINALS = {
    "random": [0, 1, None, None],
    "zero": [0, 1, None, None],
    "copying_stack": [0, 1, None, None],
    "copying_inter": [0, None, 1, None],
    "copying_last": [0, 1, None, None],
    "copying_zero": [0, None, 1, None],
}
BRANCH_ENDS = ("linear_proj.weight", "linear_proj.bias", "linear_fc2.weight", "linear_fc2.bias")


def case(
    depth: str,
    before: dict[str, Any],
    after: dict[str, Any],
    optimizer_state: str = "carry",
    optimizer: str = "adam",
    **more: Any,
) -> RunConfig:
    """Two steps with two layers, then a growth to four."""
    return run_config(
        StageSection(until=STEPS, model={"num_layers": SOURCE_DEPTH}, parallel=before),
        StageSection(
            parallel=after, grow=GrowSection(depth=depth, optimizer_state=optimizer_state)
        ),
        optimizer=OptimizerSection(lr=1e-2, optimizer=optimizer),
        global_batch_size=4,
        **more,
    )


ONE, TP2, PP2 = layout(), layout(tp=2), layout(pp=2)
TP2_PP2 = layout(tp=2, pp=2, sequence_parallel=True)
VPP2 = layout(pp=2, virtual_pipeline_model_parallel_size=2)
# With two layers, and with four.
BARE_ENDS = layout(pp=2, pipeline_model_parallel_layout="E|t|t|L")
BARE_HEAD = layout(pp=2, pipeline_model_parallel_layout="Ett|L")
IDLE = layout(pp=4, pipeline_model_parallel_layout="Et|||tL")
UNEVEN = layout(pp=2, num_layers_in_first_pipeline_stage=1)
CASES: dict[int, dict[str, RunConfig]] = {
    1: {
        **{f"{depth}, one rank": case(depth, ONE, ONE) for depth in LAYERS},
        "copying_stack, carry_old": case("copying_stack", ONE, ONE, "carry_old"),
        "copying_inter, carry_old": case("copying_inter", ONE, ONE, "carry_old"),
        "copying_last, reset": case("copying_last", ONE, ONE, "reset"),
        "random, bf16": case("random", ONE, ONE, precision="bf16"),
        "random, untied": case("random", ONE, ONE, model=UNTIED),
    },
    2: {
        "random, DP2": case("random", ONE, ONE),
        "random, TP2": case("random", TP2, TP2),
        "random, PP2": case("random", PP2, PP2),
        "random, DP2 to TP2": case("random", ONE, TP2),
        "random, untied, TP2 to PP2": case("random", TP2, PP2, model=UNTIED),
        "random, muon, PP2 to TP2": case("random", PP2, TP2, optimizer="muon"),
        "copying_stack, TP2 to PP2": case("copying_stack", TP2, PP2),
        "copying_inter, PP2 to replicated DP2": case("copying_inter", PP2, REPLICATED),
        "copying_last, carry_old, DP2 to PP2": case("copying_last", ONE, PP2, "carry_old"),
        "copying_zero, reset, PP2 to TP2": case("copying_zero", PP2, TP2, "reset"),
        "copying_stack, bf16, DP2 to TP2": case("copying_stack", ONE, TP2, precision="bf16"),
        "copying_inter, bf16, replicated DP2 to PP2": case(
            "copying_inter", REPLICATED, PP2, precision="bf16"
        ),
        "zero, sgd, TP2 to DP2": case("zero", TP2, ONE, optimizer="sgd"),
        "random, PP2 to PP2 VPP2": case("random", PP2, VPP2),
        "random, VPP2 by hand to uneven PP2": case("random", BARE_ENDS, UNEVEN),
        "copying_stack, untied, bare head to PP2 VPP2": case(
            "copying_stack", BARE_HEAD, VPP2, model=UNTIED
        ),
    },
    4: {
        "random, TP2 PP2": case("random", TP2_PP2, TP2_PP2),
        "random, DP4 to TP2 PP2": case("random", ONE, TP2_PP2),
        "random, untied, TP2 PP2 to TP2 DP2": case("random", TP2_PP2, TP2, model=UNTIED),
        "copying_stack, PP2 DP2 to TP2 PP2": case("copying_stack", PP2, TP2_PP2),
        "random, DP4 to TP2 PP2 VPP2": case("random", ONE, VPP2 | TP2_PP2),
        "copying_inter, bf16, idle ranks to PP2 VPP2 DP2": case(
            "copying_inter", IDLE, VPP2, precision="bf16"
        ),
    },
}
SIZES = {name: (size, config) for size, cases in CASES.items() for name, config in cases.items()}
CONFIGS = {name: config for name, (_, config) in SIZES.items()}


@dataclass(frozen=True)
class Found:
    """What one rank found in one case."""

    before: list[Part]
    after: list[Part]
    weights: list[Part]
    """What the model computes with, after."""
    step_counts: list[float]
    """Adam's, of each parameter, after."""


States = dict[str, tuple[State, State]]
"""Before and after, by case."""


def growths(world_size: int) -> dict[str, Found]:
    """On a rank: train and grow each case."""
    found = {}
    for name, config in CASES[world_size].items():
        live = begin(config, world_size)
        train_stage(live, config, Trace())
        before = snapshot(live.pieces())
        live = grow(live, config, world_size)
        weights = model_weights([chunk.module for chunk in live.chunks])
        found[name] = Found(before, snapshot(live.pieces()), weights, step_counts(live))
        live.release()
    return found


def step_counts(live: LiveStage) -> list[float]:
    """What Adam believes to have done, for each parameter; each must count for itself."""
    steps = [
        state["step"]
        for inner in inner_optimizers(live.optimizer)
        for state in inner.state.values()
        if "step" in state
    ]
    assert len({step.data_ptr() for step in steps}) == len(steps)
    return [float(step) for step in steps]


@pytest.fixture(scope="module")
def ranks() -> dict[str, list[Found]]:
    """What each rank found, by case."""
    by_size = {size: run_ranks(size, growths, size) for size in CASES}
    return {name: [rank[name] for rank in by_size[size]] for name, (size, _) in SIZES.items()}


@pytest.fixture(scope="module")
def states(ranks: dict[str, list[Found]]) -> States:
    """The whole state before and after each growth."""
    whole = {}
    for name, (size, config) in SIZES.items():
        tensors = (logical_tensors(stage.model) for stage in config.resolve(size))
        sides = zip(*((found.before, found.after) for found in ranks[name]), strict=True)
        whole[name] = tuple(assemble(t, side) for t, side in zip(tensors, sides, strict=True))
    return whole


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_not_in_a_layer_stays(name: str, states: States) -> None:
    """Embeddings, head, final norm, and their moments."""
    source, target = states[name]
    reset = CONFIGS[name].stages[1].grow.optimizer_state == "reset"
    kept = {(key, kind) for key, kind in source if ".layers." not in key}
    assert kept == {(key, kind) for key, kind in target if ".layers." not in key}
    for key, kind in kept:
        if reset and kind != "main_param":
            assert not target[key, kind].any()
        else:
            assert source[key, kind].any() or key.endswith("bias")
            assert np.array_equal(source[key, kind], target[key, kind])


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_their_sources(name: str, states: States) -> None:
    source, target = states[name]
    grow_section = CONFIGS[name].stages[1].grow
    depth, policy = grow_section.depth, grow_section.optimizer_state
    tensors = logical_tensors(CONFIGS[name].model)
    for key, kind in target:
        if ".layers." not in key:
            continue
        if kind == "main_param":
            layers = ORIGINALS[depth] if _is_zeroed(depth, key) else LAYERS[depth]
        elif policy == "reset":
            layers = [None] * 4
        else:
            carried = LAYERS if policy == "carry" and depth != "copying_zero" else ORIGINALS
            layers = carried[depth]
        made = fresh(tensors[key], full(tensors[key].shape), tensors[key].init, 1234).numpy()
        for layer, origin in enumerate(layers):
            found = target[key, kind][layer]
            if origin is not None:
                assert np.array_equal(found, source[key, kind][origin]), (key, kind, layer)
            elif kind == "main_param" and depth == "random":
                assert np.array_equal(found, made[layer]), (key, layer)
            else:
                assert not found.any(), (key, kind, layer)


def _is_zeroed(depth: str, key: str) -> bool:
    return depth == "copying_zero" and key.endswith(BRANCH_ENDS)


def test_the_source_layers_differ(states: States) -> None:
    """What is compared above can be told apart."""
    source, _ = states["copying_stack, one rank"]
    for (key, kind), values in source.items():
        if ".layers." in key:
            assert not np.array_equal(values[0], values[1]), (key, kind)


@pytest.mark.parametrize(
    "name", [n for n in CONFIGS if n.startswith("random") and "untied" not in n]
)
def test_fresh_layers_have_the_same_bits_on_every_layout(name: str, states: States) -> None:
    _, reference = states["random, one rank"]
    _, target = states[name]
    for key in logical_tensors(MODEL):
        if ".layers." in key:
            new = np.s_[SOURCE_DEPTH:]
            assert np.array_equal(reference[key, "main_param"][new], target[key, "main_param"][new])


def test_fresh_layers_have_the_spread_of_the_targets_depth(states: States) -> None:
    _, target = states["random, one rank"]
    for key, tensor in logical_tensors(MODEL).items():
        if ".layers." in key and isinstance(tensor.init, Normal):
            std = 0.02
            if key.endswith(BRANCH_ENDS):
                std /= sqrt(2 * 4)
            new = target[key, "main_param"][SOURCE_DEPTH:]
            # Four standard errors of a sample's standard deviation.
            assert new.std() == pytest.approx(std, rel=4 / sqrt(2 * new.size))


@pytest.mark.parametrize("name", CONFIGS)
def test_adam_goes_on_counting_unless_it_starts_again(
    name: str, ranks: dict[str, list[Found]]
) -> None:
    for found in ranks[name]:
        counts = found.step_counts
        assert counts == [0 if "reset" in name else STEPS] * len(counts)
        assert counts or CONFIGS[name].optimizer.optimizer != "adam"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_computes_with_what_was_grown(
    name: str, ranks: dict[str, list[Found]], states: States
) -> None:
    """The weights are the main parameters; under bf16, these rounded once."""
    _, target = states[name]
    config = CONFIGS[name]
    tensors = logical_tensors(config.model)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    checked = set()
    for found in ranks[name]:
        for part in found.weights:
            tensor = tensors[part.key]
            main = torch.from_numpy(target[part.key, "main_param"]).view(tensor.checkpoint_shape)
            here = main[slices(part.box)]
            assert part.kind == str(dtype)
            assert torch.equal(here.to(dtype).float(), torch.from_numpy(part.values)), part.key
            checked.add(part.key)
    assert checked == set(tensors)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "bf16" in name])
def test_bf16_growth_starts_from_unrounded_weights(name: str, states: States) -> None:
    _, target = states[name]
    for (key, kind), values in target.items():
        if kind == "main_param" and key.endswith("weight") and "norm" not in key:
            kept = torch.from_numpy(values if ".layers." not in key else values[0])
            assert not torch.equal(kept, kept.bfloat16().float()), key

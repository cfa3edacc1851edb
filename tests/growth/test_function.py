"""What a growth does to the function: logits before and after, and who receives gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.plan import growth
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.operators import OPERATORS
from megatron_grow.state.boxes import Box, full, slices
from megatron_grow.state.materialise import materialise
from tests.distributed import run_ranks
from tests.logits import BATCH, agreed, logits
from tests.toy import (
    MODEL,
    Trace,
    begin,
    grow,
    layout,
    loop_over,
    micro_batches,
    run_config,
    train_stage,
)

STEPS = 2

BIAS_FREE = replace(
    MODEL,
    activation="swiglu",
    normalization="RMSNorm",
    position_embedding_type="rope",
    add_bias_linear=False,
    qk_layernorm=True,
    share_embeddings_and_output_weights=False,
)


def case(
    depth: str, source: int, before: dict[str, Any], after: dict[str, Any], **more: Any
) -> RunConfig:
    """Two steps, so that nothing is at its initial value, then a growth to four layers."""
    return run_config(
        StageSection(until=STEPS, model={"num_layers": source}, parallel=before),
        StageSection(parallel=after, grow=GrowSection(depth=depth)),
        optimizer=OptimizerSection(lr=1e-2, weight_decay=0.0, clip_grad=0.0),
        global_batch_size=BATCH,
        **more,
    )


ONE, TP2, PP2 = layout(), layout(tp=2, sequence_parallel=True), layout(pp=2)
TP2_PP2 = layout(tp=2, pp=2)
OTHERS = "explicit", "llama_pro", "unshare"  # need options, or a source of their own
DEPTHS = [name for name in OPERATORS["depth"].builtin if name not in OTHERS]
CASES: dict[int, dict[str, RunConfig]] = {
    1: {
        **{f"{depth} 2": case(depth, 2, ONE, ONE) for depth in DEPTHS},
        **{f"{depth} 3": case(depth, 3, ONE, ONE, model=BIAS_FREE) for depth in DEPTHS},
        "zero 0": case("zero", 0, ONE, ONE),
        "copying_zero 1": case("copying_zero", 1, ONE, ONE),
        "zero bf16": case("zero", 2, ONE, ONE, precision="bf16"),
        "copying_zero bf16": case("copying_zero", 2, ONE, ONE, precision="bf16"),
    },
    2: {
        "zero DP2": case("zero", 2, ONE, ONE),
        "copying_zero TP2": case("copying_zero", 2, TP2, TP2),
        "copying_zero PP2": case("copying_zero", 2, PP2, PP2),
        "zero DP2 to PP2": case("zero", 0, ONE, PP2),
        "copying_zero PP2 to DP2": case("copying_zero", 2, PP2, ONE, model=BIAS_FREE),
        "zero DP2 to TP2": case("zero", 1, ONE, TP2, model=BIAS_FREE),
        "copying_zero TP2 to PP2": case("copying_zero", 2, TP2, PP2),
        "copying_stack TP2": case("copying_stack", 2, TP2, TP2),
        "copying_inter DP2 to PP2": case("copying_inter", 2, ONE, PP2),
    },
    4: {
        "zero TP2 PP2": case("zero", 2, TP2_PP2, TP2_PP2),
        "copying_zero DP4 to TP2 PP2": case("copying_zero", 2, ONE, TP2_PP2),
    },
}
TO_ROUNDING = ["zero DP2 to TP2", "copying_zero TP2 to PP2", "copying_zero DP4 to TP2 PP2"]
"""Where tensor parallelism changes, and with it the order of sums."""


Logits = dict[str, tuple[np.ndarray, np.ndarray]]
"""Just before and just after the growth, by case."""


def around_growths(world_size: int) -> dict[str, tuple[np.ndarray | None, np.ndarray | None]]:
    """On a rank, for each case: logits just before and just after the growth."""
    found = {}
    for name, config in CASES[world_size].items():
        live = begin(config, world_size)
        train_stage(live, config, Trace())
        before = logits(live)
        live = grow(live, config, world_size)
        found[name] = (before, logits(live))
        live.release()
    return found


@pytest.fixture(scope="module")
def found() -> Logits:
    """Logits of the whole batch before and after each growth."""
    sides: Logits = {}
    for size in CASES:
        ranks = run_ranks(size, around_growths, size)
        for name in CASES[size]:
            before, after = zip(*(rank[name] for rank in ranks), strict=True)
            sides[name] = agreed(before), agreed(after)
    return sides


def test_there_are_logits_to_compare(found: Logits) -> None:
    for before, after in found.values():
        assert before.shape == (BATCH, MODEL.max_position_embeddings, MODEL.vocab_size)
        assert after.shape == before.shape
        assert before.std() > 0.01


def names(*operators: str) -> list[str]:
    return [name for cases in CASES.values() for name in cases if name.split()[0] in operators]


@pytest.mark.parametrize("name", names("zero", "copying_zero", "identity"))
def test_preserved_exactly_where_no_sum_changes_its_order(name: str, found: Logits) -> None:
    before, after = found[name]
    if name in TO_ROUNDING:
        assert after == pytest.approx(before, rel=1e-5, abs=1e-6)
    else:
        assert np.array_equal(before, after)


@pytest.mark.parametrize(
    "name", names("copying_stack", "copying_inter", "copying_last", "random", "mix")
)
def test_other_operators_change_the_function(name: str, found: Logits) -> None:
    before, after = found[name]
    assert np.abs(after - before).max() > 1e-2 * before.std()


# Gradients, on one rank.

Gradients = dict[tuple[str, int], np.ndarray]
"""By (key, layer); layer 0 for what is in no layer."""


def gradients(live: LiveStage, config: RunConfig) -> Gradients:
    """The gradients of the batch of one step, which changes no weight."""
    live.forward_backward(STEPS + 1, micro_batches(config, STEPS))
    found = {}
    for entry in live.chunks[0].module.sharded_state_dict().values():
        if isinstance(entry, ShardedTensor | ShardedTensorFactory):
            first = entry.build()[0] if isinstance(entry, ShardedTensorFactory) else entry
            layer = first.global_offset[0] if ".layers." in entry.key else 0
            found[entry.key, layer] = entry.data.main_grad.numpy().copy()
    return found


def stacked(found: Gradients, key: str) -> np.ndarray:
    """One key's gradients: (layers, ...) of a stacked tensor."""
    layers = sorted(layer for of, layer in found if of == key)
    if ".layers." in key:
        return np.stack([found[key, layer] for layer in layers])
    return found[key, 0]


GRADIENT_CASES = {
    f"{depth}, {name}": case(depth, 2, ONE, ONE, model=model)
    for depth in ("zero", "copying_zero")
    for name, model in {"bias-free": BIAS_FREE, "biases": MODEL}.items()
}
NEW_LAYERS = {"zero": (2, 3), "copying_zero": (1, 3)}


GradientRuns = dict[str, tuple[Gradients, Gradients, list[Gradients]]]
"""Gradients before and after the growth, and weights after 0, 1 and 2 steps, by case."""


def gradients_around_growths() -> GradientRuns:
    """On the one rank."""
    found = {}
    for name, config in GRADIENT_CASES.items():
        live = begin(config, 1)
        train_stage(live, config, Trace())
        before = gradients(live, config)
        live = grow(live, config, 1)
        after = gradients(live, config)
        live.release()
        found[name] = (before, after, weights_after_steps(config))
    return found


def weights_after_steps(config: RunConfig) -> list[Gradients]:
    live = begin(config, 1)
    train_stage(live, config, Trace())
    live = grow(live, config, 1)
    loop, batches, weights = loop_over(live, config), micro_batches(config, STEPS), []
    for _ in range(3):
        weights.append({})
        for piece in live.pieces():
            if piece.kind == "main_param":
                layer = piece.box[0][0] if ".layers." in piece.key else 0
                weights[-1][piece.key, layer] = piece.data.numpy().copy()
        loop.step(batches)
    live.release()
    return weights


@pytest.fixture(scope="module")
def gradient_runs() -> GradientRuns:
    return run_ranks(1, gradients_around_growths)[0]


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_which_tensors_of_a_new_layer_receive_gradient(
    name: str, gradient_runs: GradientRuns
) -> None:
    """Copies with zeroed outputs learn there first; layers of zeros only in their last biases."""
    _, after, _ = gradient_runs[name]
    depth = name.split(",")[0]
    model = GRADIENT_CASES[name].model
    for key, tensor in logical_tensors(model).items():
        if not tensor.stacked:
            assert after[key, 0].any()
            continue
        for layer in range(4):
            gets = after[key, layer].any()
            if layer not in NEW_LAYERS[depth]:
                assert gets, (key, layer)
            elif depth == "copying_zero":
                assert gets == tensor.ends_branch, (key, layer)
            else:
                assert gets == (tensor.ends_branch and key.endswith("bias")), (key, layer)


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_carried_moments_follow_the_gradients(name: str, gradient_runs: GradientRuns) -> None:
    """The map that moments are carried by is that of autograd, but for outputs just zeroed."""
    before, after, _ = gradient_runs[name]
    config = GRADIENT_CASES[name]
    source, target = config.resolve(1)
    plan = growth(source.model, target.model, target.grow, target_depth=4, seed=1)
    for key, tensor in plan.tensors.items():
        fine = (-1, *tensor.shape[1:])
        old_gradient = torch.from_numpy(stacked(before, key)).reshape(fine)

        def read(_: str, kind: str, box: Box, values: torch.Tensor = old_gradient) -> torch.Tensor:
            return values[slices(box)]

        carried = materialise(plan.map(key, "exp_avg"), "exp_avg", full(tensor.shape), read, seed=1)
        true = torch.from_numpy(stacked(after, key)).reshape(fine)
        if tensor.ends_branch:
            old = [i for i in range(4) if i not in NEW_LAYERS[name.split(",")[0]]]
            new = [i for i in range(4) if i not in old]
            assert not carried[new].any()
            carried, true = carried[old], true[old]
        assert torch.equal(carried, true), key


def test_layers_of_zeros_never_move_and_copies_start_one_step_late(
    gradient_runs: GradientRuns,
) -> None:
    start, first, second = gradient_runs["zero, bias-free"][2]
    for key, layer in start:
        if ".layers." in key:
            moved = not np.array_equal(start[key, layer], second[key, layer])
            assert moved == (layer not in NEW_LAYERS["zero"]), (key, layer)
    start, first, second = gradient_runs["copying_zero, bias-free"][2]
    for key, tensor in logical_tensors(BIAS_FREE).items():
        for layer in NEW_LAYERS["copying_zero"] if tensor.stacked else ():
            moved_first = not np.array_equal(start[key, layer], first[key, layer])
            moved_then = not np.array_equal(first[key, layer], second[key, layer])
            assert moved_first == tensor.ends_branch, (key, layer)
            assert moved_then, (key, layer)

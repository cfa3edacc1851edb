"""What is frozen stays, to the bit; everything else trains as if there were nothing beside it."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest

from megatron_grow.growth.plan import initialisation
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods import methods_of
from megatron_grow.model.architectures import logical_tensors
from tests.methods.run import (
    BETA1,
    EIGHT,
    MODEL,
    NEW_LAYERS,
    OLD_FFN,
    ONE,
    STEPS_BEFORE,
    Case,
    Run,
    adam,
    grown,
    runs,
)
from tests.toy import plan_of

LLAMA_PRO = [
    {"name": "frozen", "layers": "old"},
    {"name": "frozen", "tensors": ["embedding.*", "decoder.final_layernorm.*"]},
]
"""Train only the new blocks. The head is tied: the last pipeline stage's copy is frozen, too."""
OLD_UNITS = [{"name": "frozen", "axes": ["ffn"], "layers": [0, 3]}]
METHODS = {"new blocks alone": LLAMA_PRO, "old units": OLD_UNITS}
TENSORS = logical_tensors(MODEL)
MOMENTS = ("exp_avg", "exp_avg_sq")


def trains(name: str, key: str) -> np.ndarray:
    """Which entries of a tensor do."""
    tensor = TENSORS[key]
    found = np.zeros(tensor.shape, bool)
    if name == "new blocks alone":
        if tensor.stacked:
            found[list(NEW_LAYERS)] = True
        return found
    found[...] = True
    axes = [axis.name for axis in tensor.axes]
    if "ffn" in axes:
        old = [slice(None)] * len(axes)
        old[axes.index("ffn")] = slice(OLD_FFN)
        for layer in (0, 3):
            found[(layer, *old[1:])] = False
    return found


OTHERS = ("sgd", "muon", "muon_nsgd")
CASES: dict[str, dict[str, Case]] = {
    "one rank": {
        "plain": ([], {}),
        "recomputed": (LLAMA_PRO, {"recompute_granularity": "full"}),
        **{name: (methods, {}) for name, methods in METHODS.items()},
        **{
            f"{name}, {optimizer}": (methods, {"optimizer": {"optimizer": optimizer}})
            for name, methods in METHODS.items()
            for optimizer in OTHERS
        },
    },
    "eight ranks": {
        "plain": ([], {}),
        **{name: (methods, {}) for name, methods in METHODS.items()},
        "bf16": (OLD_UNITS, {"precision": "bf16"}),
    },
}


@functools.cache
def run(where: str) -> dict[str, Run]:
    return runs({"one rank": ONE, "eight ranks": EIGHT}[where], CASES[where])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", ["one rank", "eight ranks"])
def test_frozen_entries_stay_and_all_others_move(where: str, name: str) -> None:
    """Weights (no update, no decay) and moments, over four steps."""
    states = run(where)[name].states
    for key in TENSORS:
        free = trains(name, key)
        for kind in ("main_param", *MOMENTS):
            for before, after in pairwise(states):
                same = before[key, kind] == after[key, kind]
                assert same[~free].all(), (key, kind)
                if not key.endswith("linear_qkv.bias"):  # the softmax does not see that of keys
                    moved = (~same[free]).mean() if free.any() else 1.0
                    assert moved > 0.5 or states[0] is before, (key, kind)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", ["one rank", "eight ranks"])
def test_the_norm_is_that_of_the_gradients_that_train(where: str, name: str) -> None:
    """In the first step, whose gradients are those of a run in which nothing is frozen."""
    plain, frozen = run(where)["plain"], run(where)[name]
    assert frozen.losses[0] == plain.losses[0]
    total = 0.0
    for key in TENSORS:
        before, after = (s[key, "exp_avg"].astype(np.float64) for s in plain.states[:2])
        gradient = (after - BETA1 * before) / (1 - BETA1)
        total += np.square(gradient[trains(name, key)]).sum()
    assert frozen.grad_norms[0] == pytest.approx(np.sqrt(total), rel=1e-5)
    assert frozen.grad_norms[0] < (1 - 1e-3) * plain.grad_norms[0]


@pytest.mark.parametrize("name", METHODS)
def test_all_others_follow_adam(name: str) -> None:
    states = run("one rank")[name].states
    for step, (before, after) in enumerate(pairwise(states), start=1):
        for key in TENSORS:
            free = trains(name, key)
            expected = adam(before, after, key, STEPS_BEFORE + step)
            assert after[key, "main_param"][free] == pytest.approx(expected[free], abs=1e-6), key


@pytest.mark.parametrize("name", METHODS)
def test_every_layout_trains_alike(name: str) -> None:
    one, eight = run("one rank")[name], run("eight ranks")[name]
    assert eight.losses == pytest.approx(one.losses, rel=1e-5)
    assert eight.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
    assert len(set(one.losses)) == len(one.losses)


def test_recomputed_activations_change_nothing() -> None:
    """megatron-core gives no gradient at all where an embedding that needs none is recomputed."""
    plain, recomputed = (run("one rank")[name] for name in ("new blocks alone", "recomputed"))
    assert recomputed.losses == plain.losses and recomputed.grad_norms == plain.grad_norms
    assert min(plain.grad_norms) > 0.0


def test_bf16() -> None:
    states = run("eight ranks")["bf16"].states
    for key in TENSORS:
        free = trains("old units", key)
        for kind in ("main_param", *MOMENTS):
            assert np.array_equal(states[0][key, kind][~free], states[-1][key, kind][~free])
        moved = states[0][key, "main_param"][free] != states[-1][key, "main_param"][free]
        assert moved.mean() > 0.5 or key.endswith("linear_qkv.bias"), key


@pytest.mark.parametrize("optimizer", OTHERS)
@pytest.mark.parametrize("name", METHODS)
def test_other_optimizers(name: str, optimizer: str) -> None:
    """Muon's update of a matrix is dense: only undoing it keeps part of one as it was."""
    states = run("one rank")[f"{name}, {optimizer}"].states
    for (key, kind), values in states[0].items():
        free = trains(name, key)
        assert np.array_equal(values[~free], states[-1][key, kind][~free]), (key, kind)
        if free.any() and kind == "main_param":
            assert not np.array_equal(values[free], states[-1][key, kind][free]), key


REFUSED = {
    "no such tensor": (
        {"tensors": ["embeding.*"]},
        "stages[1].methods[0].tensors=embeding.* is no tensor of the stage; ",
    ),
    "no such layer": (
        {"layers": [4]},
        "stages[1].methods[0].layers=[4] must be from 0 to 3",
    ),
    "no such key": (
        {"axes": ["hidden"]},
        "stages[1].methods[0].axes=hidden must be one of depth, width, heads, ffn, ",
    ),
    "no layer of these": (
        {"tensors": ["embedding.*"], "layers": "new"},
        "stages[1].methods[0] freezes nothing: ",
    ),
    "all": ({}, "stages[1].methods[0] freezes everything; something must train"),
    "another option": ({"layer": [1]}, "stages[1].methods[0].layer is not an option of frozen; "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes(name: str) -> None:
    options, message = REFUSED[name]
    config = grown([{"name": "frozen", **options}], ONE[1])
    with pytest.raises(UserError) as error:
        methods_of(config.resolve(1)[1], config, plan_of(config, 1, 1))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_run_that_begins_with_nothing_has_no_old_layers() -> None:
    config = grown([{"name": "frozen", "layers": "old"}], ONE[1])
    stage = config.resolve(1)[1]
    fresh = initialisation(MODEL, MODEL.num_layers, seed=1)
    with pytest.raises(UserError, match="freezes nothing"):
        methods_of(stage, config, fresh)

"""What is new trains at its own rate, what was there before at the run's."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest

from megatron_grow.growth.plan import initialisation, resharding
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods import methods_of
from megatron_grow.model.architectures import logical_tensors
from tests.methods.run import (
    EIGHT,
    LR,
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

ITERS = 3
RAMP = (1 / 3, 2 / 3, 1.0, 1.0)
"""Share of the rate in the stage's steps."""
SGD = {"optimizer": "sgd", "sgd_momentum": 0.5}
TENSORS = logical_tensors(MODEL)


METHOD = [{"name": "warm_up_new", "iters": ITERS}]
CASES: dict[str, dict[str, Case]] = {
    "one rank": {
        "plain": ([], {}),
        "one step": ([{"name": "warm_up_new", "iters": 1}], {}),
        "adam": (METHOD, {}),
        "sgd": (METHOD, {"optimizer": SGD}),
    },
    "eight ranks": {
        "adam": (METHOD, {}),
        "sgd": (METHOD, {"optimizer": SGD}),
        "bf16": (METHOD, {"precision": "bf16"}),
    },
}


@functools.cache
def run(where: str) -> dict[str, Run]:
    return runs({"one rank": ONE, "eight ranks": EIGHT}[where], CASES[where])


def is_new(key: str) -> np.ndarray:
    """By entry of a tensor: layers 1 and 3, and the last feed-forward units."""
    tensor = TENSORS[key]
    found = np.zeros(tensor.shape, bool)
    if tensor.stacked:
        found[list(NEW_LAYERS)] = True
    for place, axis in enumerate(tensor.axes):
        if axis.name == "ffn":
            np.moveaxis(found, place, 0)[OLD_FFN:] = True
    return found


def check_adam(run: Run, tolerance: float) -> None:
    for step, (before, after) in enumerate(pairwise(run.states), start=1):
        for key in TENSORS:
            weight = before[key, "main_param"].astype(np.float64)
            full = adam(before, after, key, STEPS_BEFORE + step)
            share = np.where(is_new(key), RAMP[step - 1], 1.0)
            expected = weight + share * (full - weight)
            assert after[key, "main_param"] == pytest.approx(expected, abs=tolerance), (key, step)


@pytest.mark.parametrize("where", ["one rank", "eight ranks"])
def test_adam(where: str) -> None:
    """Each step's update of new entries is a share of AdamW's."""
    check_adam(run(where)["adam"], tolerance=1e-6)
    before, after = run(where)["adam"].states[:2]
    key = "decoder.layers.mlp.linear_fc1.weight"
    moved = np.abs(after[key, "main_param"] - before[key, "main_param"])
    # New units of an old layer: fresh moments, corrected for the 4 updates of those that are not.
    ratio = (0.1 / (1 - 0.9**4)) / np.sqrt(0.05 / (1 - 0.95**4))
    assert moved[0, OLD_FFN:].max() == pytest.approx(ratio * LR / 3, rel=0.02)


def test_bf16() -> None:
    check_adam(run("eight ranks")["bf16"], tolerance=1e-6)


def test_sgd() -> None:
    """Decay is a part of its gradient, and so of the share."""
    for step, (before, after) in enumerate(pairwise(run("one rank")["sgd"].states), start=1):
        for key in TENSORS:
            weight, buffer = before[key, "main_param"], after[key, "momentum_buffer"]
            share = np.where(is_new(key), RAMP[step - 1], 1.0)
            expected = weight - share * LR * buffer
            assert after[key, "main_param"] == pytest.approx(expected, abs=1e-7), (key, step)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_layout_trains_alike(optimizer: str) -> None:
    one, eight = (run(where)[optimizer] for where in ("one rank", "eight ranks"))
    assert eight.losses == pytest.approx(one.losses, rel=1e-5)
    assert eight.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
    assert len(set(one.losses)) == len(one.losses)


def test_a_stage_of_one_step_of_ramp_is_a_plain_one() -> None:
    found = {name: run.losses for name, run in run("one rank").items()}
    assert found["one step"] == found["plain"] != found["adam"]


def test_mistakes() -> None:
    config = grown([{"name": "warm_up_new", "iters": 2}], ONE[1])
    stage = config.resolve(1)[1]
    with pytest.raises(UserError, match=r"stages\[1\]\.methods\[0\] .* has nothing that is"):
        methods_of(stage, config, resharding(MODEL))
    with pytest.raises(UserError, match="all is new in this stage"):
        methods_of(stage, config, initialisation(MODEL, 4, seed=1))
    config = grown([{"name": "warm_up_new", "iters": 0}], ONE[1])
    with pytest.raises(UserError, match=r"methods\[0\]\.iters=0 must be at least 1"):
        methods_of(config.resolve(1)[1], config, resharding(MODEL))

"""Methods in a stage whose layers share their parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.plan import initialisation
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods import methods_of
from tests.methods.run import OLD_FFN, STEPS_BEFORE, Run, watched
from tests.toy import MODEL, layout, run_config

SHARED = replace(MODEL, layer_sharing="2x2")
FC1 = "decoder.layers.mlp.linear_fc1.weight"
CASES: dict[str, dict[str, Any]] = {
    "frozen units": {"methods": [{"name": "frozen", "axes": ["ffn"]}]},
    "frozen layers": {"methods": [{"name": "frozen", "layers": [0, 2]}]},
    "new units warm up": {"methods": [{"name": "warm_up_new", "iters": 3}]},
    "new units fade in": {"mask_iters": 3},
}


def run(parallel: dict[str, Any], methods: list[Any] = [], **grow: Any) -> RunConfig:  # noqa: B006
    """Feed-forward units grow; layers stay shared."""
    return run_config(
        StageSection(until=STEPS_BEFORE, model={"ffn_hidden_size": OLD_FFN}, parallel=layout()),
        StageSection(parallel=parallel, grow=GrowSection(ffn="random", **grow), methods=methods),
        model=SHARED,
        optimizer=OptimizerSection(lr=1e-2, weight_decay=0.1, clip_grad=0.5),
        micro_batch_size=2,
    )


@pytest.fixture(scope="module")
def one() -> dict[str, Run]:
    return watched(1, {name: run(layout(), **case) for name, case in CASES.items()})


@pytest.fixture(scope="module")
def ranks() -> dict[str, Run]:
    """On PP2 DP2; replicas of all layers agree to the bit."""
    parallel = layout(pp=2, overlap_grad_reduce=True, overlap_param_gather=True)
    return watched(4, {name: run(parallel, **case) for name, case in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_as_on_one_rank(one: dict[str, Run], ranks: dict[str, Run], name: str) -> None:
    assert ranks[name].losses == pytest.approx(one[name].losses, rel=1e-5)
    assert ranks[name].grad_norms == pytest.approx(one[name].grad_norms, rel=1e-4)
    assert len({case.losses[-1] for case in one.values()}) == len(CASES)


def test_what_is_frozen(ranks: dict[str, Run]) -> None:
    """Of two unique layers the first, which is layers 0 and 2; of units the old ones of both."""
    (first, *_, last) = (state[FC1, "main_param"] for state in ranks["frozen layers"].states)
    assert np.array_equal(first[0], last[0]) and not np.array_equal(first[1], last[1])
    (first, *_, last) = (state[FC1, "main_param"] for state in ranks["frozen units"].states)
    assert first.shape[:2] == (2, MODEL.ffn_size)
    assert np.array_equal(first[:, :OLD_FFN], last[:, :OLD_FFN])
    assert (first[:, OLD_FFN:] != last[:, OLD_FFN:]).any(axis=(1, 2)).all()


def test_layers_that_are_one_are_frozen_together() -> None:
    stage = StageSection(methods=[{"name": "frozen", "layers": [0, 1]}])
    config = run_config(stage, model=SHARED)
    plan = initialisation(SHARED, 4, 1)
    with pytest.raises(UserError) as caught:
        methods_of(config.resolve(1)[0], config, plan)
    assert str(caught.value) == (
        "stages[0].methods[0].layers=[0, 1]: layers 0 and 2 share their parameters; name all "
        "layers that do, or none of them"
    )

"""Methods by name and by import path, and what ``grow.mask_iters`` stands for."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods import METHODS, methods_of
from megatron_grow.methods.fade_in import FadeIn
from tests.methods.run import BETA1, ONE, STEPS_BEFORE, grown, runs
from tests.toy import MODEL, layout, plan_of, run_config


def second(grow: dict[str, Any], methods: list[Any], **more: Any) -> Any:
    config = run_config(
        StageSection(until=5, model={"num_layers": 2}, parallel=layout()),
        StageSection(grow=GrowSection(**grow), methods=methods),
        model=MODEL,
        **more,
    )
    return methods_of(config.resolve(1)[1], config, plan_of(config, 1, 1))


def test_mask_iters_is_short_for_the_method() -> None:
    short = second({"depth": "random", "mask_iters": 9}, [])
    long = second({"depth": "random"}, [{"name": "fade_in", "iters": 9}])
    assert short == {"grow.mask_iters": FadeIn(9)} and long == {"methods[0]": FadeIn(9)}
    assert second({"depth": "random"}, []) == {}


MISTAKES = {
    "unknown": (
        {"depth": "random"},
        ["frozn"],
        {},
        "stages[1].methods[0]='frozn' is not a training method; known are end_sharing, "
        "fade_in, frozen, split_sharing, "
        "warm_up_new, or an import path (package.module:Class)",
    ),
    "another class": (
        {"depth": "random"},
        [{"name": "tests.toy:Trace"}],
        {},
        "stages[1].methods[0].name=tests.toy:Trace is not a training method: a subclass of "
        "megatron_grow.methods.base.TrainingMethod",
    ),
    "nothing to mask": (
        {"depth": "copying_stack", "mask_iters": 5},
        [],
        {},
        "stages[1].grow.mask_iters masks random new units; no operator here makes any",
    ),
    "fused norms": (
        {"depth": "random", "mask_iters": 5},
        [],
        {"transformer_impl": "transformer_engine"},
        "stages[1].grow.mask_iters needs train.transformer_impl: local; Transformer Engine's fused "
        "norms cannot be masked",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    grow, methods, train, message = MISTAKES[name]
    with pytest.raises(UserError) as error:
        second(grow, methods, **train)
    assert str(error.value) == message


def test_every_name_of_the_table_is_a_method() -> None:
    assert all(METHODS.find(name, "") for name in METHODS.builtin)


def test_a_method_by_import_path() -> None:
    """The example's noise: of the variance that it says, and the same on every layout."""
    method = {"name": "extend.gradient_noise:GradientNoise", "eta": 0.5}
    plain, one = runs(ONE, {"plain": ([], {}), "noise": ([method], {})}).values()
    [two] = runs((2, layout()), {"noise": ([method], {})}).values()
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
    step = STEPS_BEFORE + 1
    changed = []
    for key, kind in one.states[1]:
        if kind == "exp_avg":
            moved = one.states[1][key, kind] - plain.states[1][key, kind]
            changed.append(moved.ravel().astype(np.float64) / (1 - BETA1))
    noise = np.concatenate(changed)
    assert noise.std() == pytest.approx((0.5 / (1 + step) ** 0.55) ** 0.5, rel=0.02)
    assert abs(noise.mean()) < 5 * noise.std() / len(noise) ** 0.5
    assert len(one.losses) == 4 and all(a != b for a, b in pairwise(one.losses))
    assert grown([method], ONE[1]).resolve(1)[1].methods == {"methods[0]": method}

"""Operators that are named by import path, from all places that name one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators import operator
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.operators.units.base import UnitOperator
from megatron_grow.state.axis_maps import Gather
from tests.growth.algebra import GPT2

HERE = "tests.operators.test_import_path"


@dataclass(frozen=True)
class Reversed(DepthOperator):
    """The source's layers from the top."""

    lowest: int = 0

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w2 -> w2 w1 w2 w1."""
        return Gather(tuple(self.lowest + (target - 1 - i) % source for i in range(target)))


class Unfinished(UnitOperator):
    """Does not say how units grow."""


def test_by_name_or_with_options() -> None:
    made = operator("depth", f"{HERE}:Reversed", "grow.depth")
    assert made.layer_map(2, 4) == Gather((1, 0, 1, 0))  # type: ignore[attr-defined]
    spec = {"operator": f"{HERE}:Reversed", "lowest": 1}
    made = operator("depth", spec, "grow.depth")
    assert made.layer_map(1, 2) == Gather((1, 1))  # type: ignore[attr-defined]


def test_in_a_plan() -> None:
    grow = GrowSection(depth=f"{HERE}:Reversed")
    plan = growth(GPT2, replace(GPT2, num_layers=3), grow, target_depth=3, seed=1)
    assert plan.summary == f"2 -> 3 layers by {HERE}:Reversed"
    term = plan.weights["decoder.layers.mlp.linear_fc1.weight"].terms[0]
    assert term.axes[0] == Gather((0, 1, 0))


@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        ("ffn", f"{HERE}:Reversed", f"w={HERE}:Reversed is an operator of depth, not of ffn"),
        ("ffn", f"{HERE}:Unfinished", f"w={HERE}:Unfinished does not say its expand"),
        (
            "ffn",
            "no_such:Thing",
            "w=no_such:Thing cannot be imported: No module named 'no_such'; install it or set "
            "PYTHONPATH",
        ),
        (
            "depth",
            "pathlib:Path",
            "w=pathlib:Path is not an operator: a subclass of "
            "megatron_grow.operators.base.Operator",
        ),
    ],
)
def test_mistakes(key: str, path: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        operator(key, path, "w")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"lowest": "high"}, "w.lowest=high must be int"),
        ({"highest": 1}, f"w.highest is not an option of {HERE}:Reversed; known are lowest"),
        ({"name": "x"}, f"w.name is not an option of {HERE}:Reversed; known are lowest"),
    ],
)
def test_mistakes_in_options(spec: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        operator("depth", {"operator": f"{HERE}:Reversed", **spec}, "w")
    assert str(error.value) == message

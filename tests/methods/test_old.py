"""Methods of what is old, where the source's weights decide where that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods import methods_of
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.questions import Question
from megatron_grow.state.tensors import LogicalTensor
from tests.toy import MODEL, layout, plan_of, run_config

ASKED = "decoder.layers.mlp.linear_fc2.weight"


@dataclass(frozen=True)
class SmallestTwice(DepthOperator):
    """A copy of the layer with the smallest weights after it: the next layers move, or do not."""

    def questions(
        self, tensors: Mapping[str, LogicalTensor], source: ModelConfig, target: ModelConfig
    ) -> list[Question]:
        return [Question(tensors[ASKED])]

    def layer_map(self, source: int, target: int) -> Gather:
        smallest = int(next(iter(self.answers.values())).argmin())
        return Gather(tuple(sorted([*range(source), *[smallest] * (target - source)])))


def check(methods: list[Any], depth: str = f"{__name__}:SmallestTwice", ffn: str = "") -> None:
    grow = GrowSection(depth=depth, ffn=ffn or None)
    model = {"num_layers": 3, **({"ffn_hidden_size": 48} if ffn else {})}
    config = run_config(
        StageSection(until=5, model=model, parallel=layout()),
        StageSection(grow=grow, methods=methods),
        model=MODEL,
    )
    methods_of(config.resolve(1)[1], config, plan_of(config, 1, 1))


@pytest.mark.parametrize(
    "method", [{"name": "frozen", "layers": "old"}, {"name": "warm_up_new", "iters": 3}]
)
def test_refused(method: dict[str, Any]) -> None:
    with pytest.raises(UserError) as error:
        check([method])
    assert str(error.value).startswith("stages[1].methods[0] acts on what is old or new; in this ")


def test_the_others_work() -> None:
    """Those of numbered layers; and old units that stay in front, whichever are copied."""
    check([{"name": "frozen", "layers": [0]}])
    old = {"name": "frozen", "axes": ["ffn"], "layers": "old"}
    check([old], depth="copying_stack", ffn="extend.importance:Importance")

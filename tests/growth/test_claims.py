"""What an operator gets wrong is told while the growth is planned, in one line that names it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import nan

import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.operators.expansion import Expansion
from megatron_grow.operators.indices import cyclic
from megatron_grow.operators.units.base import UnitOperator
from megatron_grow.state.axis_map import FRESH, Noise
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.mixes import Dense
from megatron_grow.state.questions import Question
from megatron_grow.state.tensors import LogicalTensor
from tests.growth.algebra import GPT2

FC1 = "decoder.layers.mlp.linear_fc1.weight"


@dataclass(frozen=True)
class Depth(DepthOperator):
    """Two layers become three, wrongly."""

    fault: str = ""

    def layer_map(self, source: int, target: int) -> Gather | Dense:
        return {
            "short": Gather((0, 1)),
            "beyond": Gather((0, 1, 2)),
            "below": Gather((0, 1, -2)),
            "mixed": Dense(torch.ones(3, 4)),
            "no map": (0, 1, 0),
        }[self.fault]  # type: ignore[return-value]


@dataclass(frozen=True)
class Units(UnitOperator):
    """12 units become 18, wrongly; what it knows of the weights comes in only where it says so."""

    fault: str = ""

    def questions(
        self, tensors: dict[str, LogicalTensor], source: ModelConfig, target: ModelConfig
    ) -> list[Question]:
        return [Question(tensors[FC1], ("ffn",))]

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        (known,) = self.answers.values()
        unlike = bool((known != known[0]).any())
        index, share = cyclic(source, target), (0.5,) * 6 + (1.0,) * 6 + (0.5,) * 6
        return {
            "few shares": Expansion(index, share=share[:12]),
            "no number": Expansion(index, share=(nan,) * 18),
            "no shares": Expansion(index),
            "few groups": Expansion(index, share=share, noise=Noise(tuple(range(12)), 0.1)),
            "beyond by weights": Expansion((*index[:17], 12 if unlike else 5), share=share),
            "fresh by weights": Expansion((*index[:17], FRESH if unlike else 5)),
        }[self.fault]

    def caveat_along(self, axis: str, source: int, target: int, model: ModelConfig) -> str | None:
        return "by design" if self.fault == "fresh by weights" else None


@pytest.mark.parametrize(
    ("key", "fault", "message"),
    [
        ("depth", "short", "its map is for 2 entries, not 3"),
        ("depth", "beyond", "its map copies entry 2 of 2 (0 to 1; -1 is fresh)"),
        ("depth", "below", "its map copies entry -2 of 2 (0 to 1; -1 is fresh)"),
        ("depth", "mixed", "its map mixes 4 entries, not 2"),
        ("depth", "no map", "it gives a tuple, not an AxisMap"),
        ("ffn", "few shares", "its map has 12 factors for 18 entries"),
        ("ffn", "no number", "its map has a factor that is not finite"),
        ("ffn", "few groups", "its map has groups for 12 of 18 entries"),
        ("ffn", "beyond by weights", "its map copies entry 12 of 12 (0 to 11; -1 is fresh)"),
        (
            "ffn",
            "no shares",
            "no caveat, as if it kept the function, but the shares of the copies of ffn 0, times "
            "their scales, add up to 2, not to 1",
        ),
        ("ffn", "fresh by weights", "which units are new depends on the source's weights"),
    ],
)
def test_faults(key: str, fault: str, message: str) -> None:
    path = f"tests.growth.test_claims:{'Depth' if key == 'depth' else 'Units'}"
    target = replace(GPT2, **({"num_layers": 3} if key == "depth" else {"ffn_hidden_size": 18}))
    grow = GrowSection(**{key: {"operator": path, "fault": fault}})
    with pytest.raises(UserError) as error:
        growth(GPT2, target, grow, target_depth=3, seed=1, where="stages[1].grow")
    assert message in str(error.value)
    assert str(error.value).startswith(f"stages[1].grow.{key}={path}")


def test_groups_of_noise_are_of_one_size() -> None:
    Noise((0, 0, 1, 2, 2), 1.0)
    with pytest.raises(ValueError, match=r"these are of \[2, 3\]"):
        Noise((0, 0, 1, 2, 2, 2), 1.0)

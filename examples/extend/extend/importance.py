"""An operator that looks at weights: ``grow: {ffn: "extend.importance:Importance"}``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.expansion import AxisOperator, Expansion
from megatron_grow.operators.indices import even_shares
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.questions import Question
from megatron_grow.state.tensors import LogicalTensor

FC2 = "decoder.layers.mlp.linear_fc2.weight"


@dataclass(frozen=True)
class Importance(AxisOperator):
    """Duplicate the feed-forward units that matter most: in each layer, those read by the largest
    weights. Function-preserving: copies share these weights evenly."""

    keys: ClassVar[tuple[str, ...]] = ("ffn",)

    def questions(
        self, tensors: Mapping[str, LogicalTensor], source: ModelConfig, target: ModelConfig
    ) -> list[Question]:
        """How large each column is, in each layer; of layers that share parameters, once."""
        return [Question(tensors[FC2], ("layer", "ffn"))]

    def expansions(self, source: ModelConfig, target: ModelConfig) -> list[dict[str, Expansion]]:
        """A draw for each layer, with the units of that layer."""
        (columns,) = self.answers.values()  # (unique layer, ffn)
        largest_first = columns.argsort(stable=True, descending=True).tolist()
        new, found = target.ffn_size - source.ffn_size, []
        for unique, units in enumerate(largest_first):
            copies = [units[i % len(units)] for i in range(new)]
            index = (*range(len(units)), *copies)
            layers = enumerate(source.unique_layer_of)
            only = tuple(layer if number == unique else FRESH for layer, number in layers)
            grown = Expansion(index, share=even_shares(index))
            found.append({"layer": Expansion(only), "ffn": grown})
        return found

    def caveat(self, source: ModelConfig, target: ModelConfig) -> None:
        """None."""

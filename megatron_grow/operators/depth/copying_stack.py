"""The operator ``copying_stack``."""

from dataclasses import dataclass
from typing import Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axis_maps import Gather


@dataclass(frozen=True)
class CopyingStack(DepthOperator):
    """Repeat the source's layers in order (StackBERT, Gong et al. 2019; G_stack, arXiv 2405.15319).

    Not function-preserving. As good as ``copying_inter`` and slightly better than ``random`` in
    arXiv 2511.04981.
    """

    whole_factor: bool = False
    """Refuse a target that is no multiple of the source, as G_stack has it."""
    remainder: Literal["bottom", "top"] = "bottom"
    """Which of the source's layers fill what no whole copy does; bert2BERT takes the top ones."""

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Besides: the factor."""
        super().check(source, target, where)
        before, after = source.num_layers, target.num_layers
        if self.whole_factor and after % before:
            raise UserError(
                f"{where}: G_stack stacks a whole number of times, not {before} -> {after} layers; "
                f"{after // before * before} or {(after // before + 1) * before} would be possible"
            )

    def layer_map(self, source: int, target: int) -> Gather:
        """w1 w2 -> w1 w2 w1 w2."""
        whole = target // source * source
        first = source - (target - whole) if self.remainder == "top" else 0
        rest = range(first, first + target - whole)
        return Gather((*(i % source for i in range(whole)), *rest))

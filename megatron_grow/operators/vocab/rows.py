"""The operators of ``vocab``: what a new token's embedding and head row begin as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.base import Draw, Operator
from megatron_grow.operators.indices import padded
from megatron_grow.state.axis_map import FRESH, AxisMap
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.mixes import Padded, mean
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class VocabRandom(Operator):
    """Keep the rows of known tokens and draw new ones.

    Tokens that the source knew keep their logits; the softmax now counts the others.
    """

    keys: ClassVar[tuple[str, ...]] = ("vocab",)

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """No token is lost."""
        if target.vocabulary < source.vocabulary:
            raise UserError(
                f"{where}: vocab_size goes from {source.vocabulary} to {target.vocabulary}; it "
                "only grows, unless a mapping names the rows to keep"
            )

    def rows(self, source: ModelConfig, target: ModelConfig) -> AxisMap:
        """Known tokens in place."""
        return Gather(padded(source.vocabulary, target.vocabulary))

    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Embedding and head alike."""
        return [
            {axis.name: self.rows(source, target) for axis in tensor.axes if axis.name == "vocab"}
        ]

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """Only of known tokens."""
        known = Gather(padded(source.vocabulary, target.vocabulary))
        return [{axis.name: known for axis in tensor.axes if axis.name == "vocab"}]

    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """New logits take part in the softmax."""
        return "new tokens take part in the softmax"


@dataclass(frozen=True)
class VocabMean(VocabRandom):
    """Keep the rows of known tokens; new ones begin as their mean (Hewitt 2021)."""

    def rows(self, source: ModelConfig, target: ModelConfig) -> AxisMap:
        """Known tokens in place, then their mean."""
        kept = Gather(tuple(range(source.vocabulary)))
        return Padded(kept, mean(source.vocabulary))


@dataclass(frozen=True)
class VocabMapping(VocabRandom):
    """Give every token of the target the row that a list names: for another tokenizer."""

    tokens: list[int] = field(default_factory=list)
    """For each token of the target, the source's token whose row it takes; -1: fresh."""

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """One known token for each."""
        if len(self.tokens) != target.vocabulary:
            raise UserError(
                f"{where}.tokens names {len(self.tokens)} tokens; the target has "
                f"vocab_size={target.vocabulary}"
            )
        for token in self.tokens:
            if not FRESH <= token < source.vocabulary:
                raise UserError(
                    f"{where}.tokens names token {token}; the source has 0 to "
                    f"{source.vocabulary - 1}, and -1 is fresh"
                )

    def rows(self, source: ModelConfig, target: ModelConfig) -> AxisMap:
        """As named."""
        return Gather(tuple(self.tokens))

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """As the rows."""
        return self.weights(tensor, source, target)

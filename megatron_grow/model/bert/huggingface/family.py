"""What families of BERTs say that no table holds: heads, token types, the first position."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import architecture_of
from megatron_grow.model.bert.huggingface.names import DECODER_BIAS
from megatron_grow.model.huggingface import Family, Rows

_TYPES, _PAD, _ORDER = "type_vocab_size", "pad_token_id", "sentence_head"
_SENTENCE_HEAD = "cls.seq_relationship.weight"


@dataclass(frozen=True, kw_only=True)
class BERTFamily(Family):
    """A family of BERTs."""

    norm_position: Literal["post", "pre"] = "post"
    with_sentence_head: str | None = None
    """The class in ``transformers`` of models with a sentence head; None: the family has none."""
    positions_follow_pad: bool = False
    """Whether the first position is the one behind the id of the token that pads."""

    @property
    def own_fields(self) -> frozenset[str]:
        """Those of token types, the first position, and what a sentence head was trained for."""
        return frozenset({_TYPES, _PAD, _ORDER})

    def own_model(self, said: Mapping[str, Any], stored: Collection[str]) -> dict[str, Any]:
        """The options of the architecture."""
        head = self.with_sentence_head is not None and _SENTENCE_HEAD in stored
        first = _whole(said, _PAD, least=0) + 1 if self.positions_follow_pad else 0
        return {
            "options": {
                "norm_position": self.norm_position,
                "token_types": _whole(said, _TYPES, least=1),
                "sentence_head": said.get(_ORDER, "next_sentence") if head else "none",
                "first_position": first,
            }
        }

    def own_config(self, model: ModelConfig, original: Mapping[str, Any]) -> dict[str, Any]:
        """Token types, the padding token where positions follow it, and sentence order."""
        bert = _bert(model)
        own: dict[str, Any] = {_TYPES: max(1, bert.token_types)}
        if bert.sentence_head == "sentence_order":
            own[_ORDER] = "sentence_order"
        if self.positions_follow_pad:
            own[_PAD] = bert.first_position - 1
            if original.get(_PAD, own[_PAD]) != own[_PAD]:
                raise UserError(
                    f"model.options.first_position={bert.first_position} with a tokenizer "
                    f"that pads with token {original[_PAD]} cannot be written as "
                    f"{self.model_type}, whose first position is that token's id + 1"
                )
        return own

    def class_of(self, model: ModelConfig) -> str:
        """Another with a sentence head than without."""
        return (
            _bert(model).has_sentence_head and self.with_sentence_head
        ) or self.transformers_class

    def written(self, model: ModelConfig) -> Rows:
        """Without the second name of the head's bias, which an untied head alone needs."""
        if not model.share_embeddings_and_output_weights:
            return self.rows
        return {name: row for name, row in self.rows.items() if not name.endswith(DECODER_BIAS)}

    def zeros(self, model: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        """Of a model that does not tell types apart, the row that all tokens are given."""
        if _bert(model).token_types:
            return {}
        name = f"{self.prefix}embeddings.token_type_embeddings.weight"
        return {name: (1, model.hidden_size)}

    def obstacle(self, model: ModelConfig) -> str | None:
        """Options that the family does not have."""
        bert = _bert(model)
        impossible = {
            "norm_position": bert.norm_position != self.norm_position,
            "sentence_head": bert.has_sentence_head and self.with_sentence_head is None,
            "first_position": (bert.first_position > 0) != self.positions_follow_pad,
            "pool_size": bert.pool_size != 1,
        }
        for name, is_so in impossible.items():
            if is_so:
                return f"model.options.{name}={getattr(bert, name)}"
        return super().obstacle(model)


def _bert(model: ModelConfig) -> Any:
    """``BERT`` with the options of ``model``; its module imports the families, so not the type."""
    return architecture_of(model)


def _whole(said: Mapping[str, Any], name: str, least: int) -> int:
    value = said[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name}={value!r} must be a whole number of at least {least}")
    return value

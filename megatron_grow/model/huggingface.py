"""The form in which an architecture says what it is called by Hugging Face."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_grow.config.model import ModelConfig

Rows = Mapping[str, tuple[str, str]]
"""By stored tensor: the logical tensor's key, and the axes that make each stored dimension.

``{layer}`` stands for each layer in turn. Axes are those of the logical tensor, outermost first,
and brackets put several into one dimension. :meth:`Family.parts` may name a
part of an axis.
"""

QUERIES = "(kv_group query head_dim)"
KEYS = "(kv_group key head_dim)"
VALUES = "(kv_group value head_dim)"
"""The dimension of each that is stored apart from the others, in rows."""

Parts = Mapping[str, tuple[str, tuple[int, int]]]
"""By the name of a part of an axis: the axis, and the part's range there."""


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` describes, names and stores what a ``ModelConfig`` says.

    An architecture whose families say something that no table holds overrides the methods.
    """

    model_type: str
    transformers_class: str
    """The class in ``transformers``, of models that :meth:`class_of` says nothing else of."""
    prefix: str
    """Of the names of all tensors but the head; left out in files of a base model."""
    rows: Rows
    """Of several with the same part of a tensor all but the first may be missing."""
    buffers: str
    """Pattern of stored names that hold no weights: old files keep masks and frequencies."""
    model: Mapping[str, Any]
    """What all models of the family have, in fields of ``ModelConfig``."""
    fields: Mapping[str, str]
    """By field of ``config.json``, the field of ``ModelConfig`` that means the same."""
    activation_field: str
    activations: Mapping[str, str]
    """By name in ``config.json``, that in ``ModelConfig``; the first of a kind is written."""
    defaults: Mapping[str, Any]
    """What ``transformers`` assumes where ``config.json`` says nothing."""
    only: Mapping[str, Any] = field(default_factory=dict)
    """The one value of a field of ``config.json`` that can be expressed here."""
    nullable: frozenset[str] = frozenset()
    """Fields of ``config.json`` whose null means what an absent field of ``ModelConfig`` does."""
    plain_heads: bool = False
    """Whether heads together are as wide as hidden_size, each with its own key and value."""
    harmless: frozenset[str] = frozenset()
    """Fields of ``config.json`` that change nothing in what a model of the family computes."""
    old_names: Mapping[str, str] = field(default_factory=dict)
    """By how stored names of old files end, how they end today."""
    unused: str = ""
    """Pattern of stored names of weights in which :attr:`transformers_class` has no part, and which
    are left out where the model has no tensor for them."""

    @property
    def own_fields(self) -> frozenset[str]:
        """Fields of ``config.json`` that the methods below read, and no table names."""
        return frozenset()

    def settle(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """What ``config.json`` says, without what has no effect on this very model.

        Raises:
            UserError: something that cannot be expressed here.
        """
        return dict(said)

    def own_model(self, said: Mapping[str, Any], stored: Collection[str]) -> dict[str, Any]:
        """Fields of ``ModelConfig`` that the files say in a way of the family's own.

        Args:
            said: what is in ``config.json``, and the defaults.
            stored: the names of all tensors.

        Raises:
            UserError: something that cannot be expressed here.
        """
        return {}

    def own_config(self, model: ModelConfig, original: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of ``config.json`` from which :meth:`own_model` makes ``model``'s again.

        Args:
            model: one that the family can express.
            original: the ``config.json`` that goes with the model's tokenizer; may be empty.

        Raises:
            UserError: a tokenizer with which ``transformers`` would compute something else.
        """
        return {}

    def class_of(self, model: ModelConfig) -> str:
        """The class in ``transformers`` that has all tensors of ``model``."""
        return self.transformers_class

    def written(self, model: ModelConfig) -> Rows:
        """The rows whose stored tensors ``transformers`` expects of ``model``.

        Those of tensors that the model does not have give nothing in any case.
        """
        return self.rows

    def zeros(self, model: ModelConfig) -> Mapping[str, tuple[int, ...]]:
        """By the names of stored tensors that ``model`` does not have and ``transformers`` needs,
        the shapes in which zeros stand for them."""
        return {}

    def obstacle(self, model: ModelConfig) -> str | None:
        """What in ``model``, besides the tables, the family cannot express; None: nothing."""
        if self.plain_heads:
            if model.query_groups != model.num_attention_heads:
                return f"model.num_query_groups={model.query_groups}"
            if model.head_dim * model.num_attention_heads != model.hidden_size:
                return f"model.kv_channels={model.head_dim}"
        return None

    def parts(self, model: ModelConfig) -> Parts:
        """The parts of axes that :attr:`rows` name: queries, key and value of a group, and the
        halves of a gated unit."""
        queries = model.num_attention_heads // model.query_groups
        return {
            "query": ("qkv_head", (0, queries)),
            "key": ("qkv_head", (queries, queries + 1)),
            "value": ("qkv_head", (queries + 1, queries + 2)),
            "gate": ("gate_up", (0, 1)),
            "up": ("gate_up", (1, 2)),
        }

"""The form in which an architecture says what it is called by Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_grow.config.model import ModelConfig

Rows = Mapping[str, tuple[str, str]]
"""By stored tensor: the logical tensor's key, and the axes that make each stored dimension.

``{layer}`` stands for each layer in turn. Axes are those of the logical tensor, outermost first,
and brackets put several into one dimension. :meth:`Family.parts` may name a part of an axis.
"""

Parts = Mapping[str, tuple[str, tuple[int, int]]]
"""By the name of a part of an axis: the axis, and the part's range there."""


@dataclass(frozen=True)
class Family:
    """How one ``model_type`` describes, names and stores what a ``ModelConfig`` says.

    An architecture whose families say something that no table holds overrides the methods.
    """

    model_type: str
    transformers_class: str
    """The class in ``transformers``."""
    prefix: str
    """Of the names of all tensors but the head; left out in files of a base model."""
    rows: Rows
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
    harmless: frozenset[str] = frozenset()
    """Fields of ``config.json`` that change nothing in what a model of the family computes."""

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

    def own_model(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of ``ModelConfig`` that ``config.json`` says in a way of the family's own.

        Raises:
            UserError: something that cannot be expressed here.
        """
        return {}

    def own_config(self, model: ModelConfig) -> dict[str, Any]:
        """The fields of ``config.json`` from which :meth:`own_model` makes ``model``'s again."""
        return {}

    def obstacle(self, model: ModelConfig) -> str | None:
        """What in ``model``, besides the tables, the family cannot express; None: nothing."""
        return None

    def parts(self, model: ModelConfig) -> Parts:
        """The parts of axes that :attr:`rows` name."""
        return {}

"""How a stage grows out of the one before: what a run file says, and what may differ."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.recipes import expand
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import CountOrZero, check_fields, shown
from megatron_grow.state.axes import AXES, GROW_KEYS

OperatorSpec = str | dict[str, Any]
"""A name, or ``{operator: NAME, ...its options}``."""

# A field for each key of the axis table: a new axis needs no other line.
_Operators: Any = make_dataclass(
    "_Operators", [(key, OperatorSpec | None, field(default=None)) for key in GROW_KEYS]
)


@dataclass
class GrowSection(_Operators):
    """How a stage begins from the one before: an operator for each axis, and a state policy."""

    recipe: str | None = None
    """A published combination; it fills in the operators that are absent."""
    optimizer_state: Literal["carry", "carry_old", "reset"] | None = None
    """``carry``, the default, maps moments as gradients; ``carry_old`` keeps those of original
    entries and starts duplicates at zero; ``reset`` starts all at zero."""

    mask_iters: CountOrZero | None = None
    """Steps over which random new units fade in (MSG); 0, the default: they take part at once."""

    def __post_init__(self) -> None:
        for key, value in expand(self.recipe).items():
            if getattr(self, key) is None:
                setattr(self, key, value)
        check_fields(self, "grow.")

    @property
    def operators(self) -> dict[str, OperatorSpec]:
        """What was asked for, by key."""
        return {key: getattr(self, key) for key in GROW_KEYS if getattr(self, key) is not None}


_GROWING = {name for rule in AXES if not rule.may_shrink for name in rule.fields}
_CHANGING = {
    *(name for rule in AXES for name in rule.fields),
    "layer_sharing",
    "make_vocab_size_divisible_by",
    "rotary_base",
    "rotary_seq_len_interpolation_factor",
    "use_rope_scaling",
    "rope_scaling_factor",
    "softmax_scale",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "layernorm_epsilon",
    "init_method_std",
    "hidden_dropout",
    "attention_dropout",
}
"""Fields in which a stage may differ from the one before."""


def check_growth(
    before: ModelConfig, after: ModelConfig, grow: GrowSection | None, where: str
) -> None:
    """Raise :class:`UserError` if no growth leads from ``before`` to ``after``."""
    for field_ in fields(ModelConfig):
        was, is_ = getattr(before.resolved, field_.name), getattr(after.resolved, field_.name)
        if field_.name in _GROWING and is_ < was:
            raise UserError(
                f"{where}.model.{field_.name}={is_} is less than the {was} before; a model only "
                "grows"
            )
    for field_ in fields(ModelConfig):
        was, is_ = getattr(before, field_.name), getattr(after, field_.name)
        untied = field_.name == "share_embeddings_and_output_weights" and was
        if field_.name not in (*_CHANGING, "options") and was != is_ and not untied:
            raise UserError(
                f"{where}.model.{field_.name}={is_} differs from the {was} before; no "
                "growth changes that"
            )
    if after.num_layers > before.num_layers and (grow is None or grow.depth is None):
        raise UserError(
            f"{where}.grow.depth is missing: say how {before.num_layers} layers become "
            f"{after.num_layers}, for example grow: {{depth: random}}"
        )
    if after.sharing != before.sharing and (grow is None or grow.depth is None):
        raise UserError(
            f"{where}.grow.depth is missing: model.layer_sharing goes from "
            f"{shown(before.layer_sharing)} to {shown(after.layer_sharing)}, for example by "
            "grow: {depth: unshare}"
        )

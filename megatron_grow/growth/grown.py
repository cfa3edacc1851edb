"""Which axes grow between two models, and which operators grow them."""

from __future__ import annotations

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators import operator
from megatron_grow.operators.base import Operator, Sizes
from megatron_grow.state.axes import AXES, GROW_KEYS, LAYER, AxisRule
from megatron_grow.state.tensors import LogicalTensor


def grown_axes(
    source: dict[str, LogicalTensor], target: dict[str, LogicalTensor]
) -> dict[AxisRule, tuple[int, int]]:
    """Size before and after of the axes, but for layers, that both have and whose size changes."""
    before = _sizes(source)
    return {
        rule: (before[rule], size)
        for rule, size in _sizes(target).items()
        if rule in before and before[rule] != size
    }


def working_operators(
    grow: GrowSection,
    grown: Sizes,
    source: ModelConfig,
    target: ModelConfig,
    where: str,
    *,
    post_norm: bool,
) -> dict[str, Operator]:
    """The operators of ``grow`` that have something to do, by key.

    Args:
        grow: what a run file says.
        grown: size before and after of each axis that grows.
        source: the shape before.
        target: the shape after.
        where: begins the message of an error, for example ``stages[1].grow``.
        post_norm: whether layers of the target normalise the residual stream itself.

    Raises:
        UserError: an unknown operator or option; one that has nothing to do; or what grows is not
            the affair of exactly one.
    """
    working = {}
    for key, spec in grow.operators.items():
        chosen = operator(key, spec, f"{where}.{key}", _of_key(key, grown), post_norm)
        if chosen.axes(source, target) & {rule.name for rule in grown}:
            chosen.check(source, target, f"{where}.{key}")
            working[key] = chosen
        elif grow.recipe is None and not (source.num_layers == 0 and key in ("heads", "ffn")):
            raise UserError(
                f"{where}.{key}={spec} has nothing to do: the stage before has the same sizes; "
                "change the model or leave it out"
            )
    _check_all_grow(grown, working, source, target, where)
    return working


def summary(
    operators: dict[str, Operator], grown: Sizes, source: ModelConfig, target: ModelConfig
) -> str:
    """What grows and by which operator, for people."""
    names = {key: chosen.name for key, chosen in operators.items()}
    parts = []
    for rule in (*AXES, *(rule for rule in grown if rule not in AXES)):
        if rule not in grown or rule.follows:
            continue
        before, after = grown[rule]
        what = "layers" if rule == LAYER else rule.sized_by
        if rule == LAYER and source.sharing != target.sharing:
            what += f" ({source.num_unique_layers} -> {target.num_unique_layers} unique)"
        by = names.get(rule.grown_by or "") or names.get("width")
        parts.append(f"{before} -> {after} {what} by {by}")
    return ", ".join(parts) or "the same model"


def _sizes(tensors: dict[str, LogicalTensor]) -> dict[AxisRule, int]:
    """Of all axes but layers, of which tensors may have some."""
    sizes: dict[AxisRule, int] = {}
    for tensor in tensors.values():
        for axis in tensor.axes:
            if axis.rule != LAYER and sizes.setdefault(axis.rule, axis.size) != axis.size:
                raise ValueError(
                    f"{tensor.key} has {axis.size} entries along {axis.name}, another tensor "
                    f"{sizes[axis.rule]}: axes of two sizes need two names"
                )
    return sizes


def _of_key(key: str, grown: Sizes) -> Sizes:
    return {rule: sizes for rule, sizes in grown.items() if rule.grown_by == key}


def _check_all_grow(
    grown: Sizes,
    operators: dict[str, Operator],
    source: ModelConfig,
    target: ModelConfig,
    where: str,
) -> None:
    covered: dict[str, Operator] = {}
    for key, chosen in operators.items():
        for rule in grown:
            if rule.name not in chosen.axes(source, target):
                continue
            if rule.name in covered:
                raise UserError(
                    f"{where}.{key}={chosen.name} grows what {covered[rule.name].name} grows by "
                    f"itself ({rule.sized_by}); leave it out"
                )
            covered[rule.name] = chosen
    for rule, (before, after) in grown.items():
        if rule.name not in covered and rule.grown_by not in GROW_KEYS:
            raise UserError(
                f"{where}: {rule.sized_by} goes from {before} to {after}; no operator grows that"
            )
        if rule.name not in covered:
            raise UserError(
                f"{where}.{rule.grown_by} is missing: {rule.sized_by} goes from {before} to "
                f"{after}; say how it grows, or keep it"
            )

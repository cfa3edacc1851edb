"""From what operators draw along single axes to the map of a whole tensor."""

from __future__ import annotations

from itertools import product

from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.base import Draw
from megatron_grow.state.axes import LAYER
from megatron_grow.state.axis_map import AxisMap
from megatron_grow.state.axis_maps import Identity
from megatron_grow.state.maps import TensorMap, Term, all_fresh
from megatron_grow.state.tensors import LogicalTensor

UniqueLayers = tuple[tuple[int, ...], tuple[int, ...]]
"""Of the source and of the target, the unique layer that each layer is."""


def compose(
    tensor: LogicalTensor,
    source: LogicalTensor | None,
    choices: list[list[Draw]],
    layers: UniqueLayers,
    *,
    summed: bool,
    where: str,
) -> TensorMap:
    """One term for each combination of what the operators draw; all fresh without a source.

    Args:
        tensor: of the target.
        source: what it is drawn from.
        choices: of each operator, how it draws the tensor.
        layers: of the source and of the target.
        summed: whether what is drawn is summed over layers that are one, as gradients are.
        where: begins the message of an error, for example ``stages[1].grow``.

    Raises:
        UserError: layers that would be one are drawn in different ways.
    """
    terms = []
    for draws in product(*choices):
        merged: Draw = {}
        for draw in draws:
            for name, how in draw.items():
                # Only layers are drawn twice: by depth, from layers that a wider model has.
                merged[name] = merged[name].after(how) if name in merged else how
        if source is None and LAYER.name not in merged:
            return all_fresh(tensor)
        if LAYER.name in merged and tensor.stacked:
            merged[LAYER.name] = _of_unique(merged[LAYER.name], layers, summed, where)
        if tensor.layers is not None or (source and source.layers is not None):
            merged[LAYER.name] = _between_layers(tensor, source, merged.get(LAYER.name), where)
        axes = tuple(merged.get(axis.name, Identity()) for axis in tensor.axes)
        terms.append(Term(source.key if source else tensor.key, axes))
    return TensorMap(tensor, tuple(terms), tensor.init)


def _of_unique(how: AxisMap, layers: UniqueLayers, summed: bool, where: str) -> AxisMap:
    """What operators say of layers, as a map between unique layers."""
    before, after = layers
    if len(before) == len({*before}) and len(after) == len({*after}):
        return how
    try:
        return how.shared(before, after, summed=summed)
    except ValueError as error:
        raise UserError(
            f"{where}: layers {error} share their parameters in the target (model.layer_sharing), "
            "but would be grown in different ways; let layers share no more than what the growth "
            "makes alike, or grow by an operator that makes these layers alike"
        ) from None


def _between_layers(
    tensor: LogicalTensor, source: LogicalTensor | None, layers: AxisMap | None, where: str
) -> AxisMap:
    """A map between the layers of two models, for those of them that have a tensor."""
    try:
        return (layers or Identity()).between(source.with_it if source else (), tensor.with_it)
    except ValueError as error:
        raise UserError(f"{where}.depth: {tensor.key} would be {error}") from None

"""What operators say, checked before anything is made of it: they may be of another package."""

from __future__ import annotations

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.base import Draw, NewUnits, Operator
from megatron_grow.state.axes import LAYER
from megatron_grow.state.axis_map import AxisMap
from megatron_grow.state.tensors import LogicalTensor


def check_draws(
    operator: Operator,
    draws: list[Draw],
    tensors: tuple[LogicalTensor, LogicalTensor],
    models: tuple[ModelConfig, ModelConfig],
    where: str,
) -> None:
    """Refuse maps that are not from the source's sizes to the target's.

    Args:
        operator: whose they are.
        draws: how it makes the second tensor of the first.
        tensors: of the source and of the target.
        models: the shapes before and after.
        where: begins the message of an error, for example ``stages[1].grow``.
    """
    before, after = ({axis.name: axis.size for axis in tensor.axes} for tensor in tensors)
    sizes = {name: (before.get(name, size), size) for name, size in after.items()}
    # Layers of the model, not of the tensor; and of what depth, if that grows too, draws on.
    deeper = LAYER.name in operator.axes(*models)
    sizes[LAYER.name] = (models[0].num_layers, models[deeper].num_layers)
    for draw in draws:
        for name, how in draw.items():
            told = f"{where}.{operator.key}={operator.name}: along {name} of {tensors[1].key}"
            if not isinstance(how, AxisMap):
                raise UserError(f"{told} it gives a {type(how).__name__}, not an AxisMap")
            try:
                how.check(*sizes[name])
            except ValueError as error:
                raise UserError(f"{told} its map {error}") from None


def check_function(
    operator: Operator, source: ModelConfig, target: ModelConfig, where: str
) -> None:
    """Refuse one that says that it keeps the function, where its own numbers say otherwise."""
    if operator.caveat(source, target) is None and (why := operator.loses(source, target)):
        raise UserError(
            f"{where}.{operator.key}={operator.name} has no caveat, as if it kept the function, "
            f"but {why}"
        )


def check_new_units(operator: Operator, found: NewUnits, planned: NewUnits, where: str) -> None:
    """Refuse one whose new units are others once it knows of the source's weights."""
    if found != planned:
        raise UserError(
            f"{where}.{operator.key}={operator.name}: which units are new depends on the source's "
            "weights, which no plan knows before the growth; only which are copied may"
        )

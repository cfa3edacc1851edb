"""Which layers of a model are one, as a run file says it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from megatron_grow.inputs.errors import UserError


def unique_layers(
    written: str | list[int] | None, num_layers: int, where: str = "model.layer_sharing"
) -> tuple[int, ...] | None:
    """The unique layer that each of ``num_layers`` layers is; None: each is one of its own.

    Args:
        written: ``AxB``, a unit of A layers that is repeated B times (units of Yang et al. 2021,
            arXiv 2110.03848), or the unique layer of each layer.
        num_layers: of the model.
        where: begins the message of an error.

    Raises:
        UserError: neither of them, or not of so many layers.
    """
    if written is None:
        return None
    shown = f"{where}={written}"
    if isinstance(written, list):
        _check(written, num_layers, shown)
        found = tuple(written)
    else:
        unit = re.fullmatch(r"([1-9]\d{0,5}) ?x ?([1-9]\d{0,5})", written)
        if unit is None:
            raise UserError(
                f"{shown} must be AxB, a unit of A layers that is repeated B times, as in "
                f"1x{num_layers or 1}, or a list of the unique layer of each layer"
            )
        layers, times = map(int, unit.groups())
        if layers * times != num_layers:
            raise UserError(
                f"{shown} is of {layers * times} layers, but the model has "
                f"num_layers={num_layers}; A times B must be that"
            )
        found = tuple(layer % layers for layer in range(num_layers))
    return None if found == (*range(num_layers),) else found


def _check(written: list[int], num_layers: int, shown: str) -> None:
    if len(written) != num_layers:
        raise UserError(
            f"{shown} names {len(written)} layers; the model has num_layers={num_layers}"
        )
    known = 0
    for layer, unique in enumerate(written):
        if not 0 <= unique <= known:
            raise UserError(
                f"{shown}: layer {layer} is unique layer {unique}; unique layers are numbered from "
                f"0 in order of first use, so it can be at most {known}"
            )
        known = max(known, unique + 1)


def groups_of(unique: Sequence[int]) -> list[list[int]]:
    """The layers that are one, of the unique layer that each is; without those that are alone."""
    groups: dict[int, list[int]] = defaultdict(list)
    for layer, number in enumerate(unique):
        groups[number].append(layer)
    return [layers for layers in groups.values() if len(layers) > 1]

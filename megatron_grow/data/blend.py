"""Blends: the corpora that a run file names, and their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_grow.inputs.errors import UserError


@dataclass(frozen=True)
class Blend:
    """Corpora and the share of samples that comes from each."""

    prefixes: list[str]
    weights: list[float] | None
    """Absent: in proportion to the corpora's tokens."""


def parse_blend(paths: Sequence[str | float], where: str) -> Blend:
    """Read ``[a]``, ``[a, b]`` or ``[0.3, a, 0.7, b]``.

    Args:
        paths: The list as a run file has it.
        where: The field's name, for messages.

    Raises:
        UserError: weights and prefixes that do not alternate, or a weight that is not positive.
    """
    weights = [_as_number(path) for path in paths]
    if all(weight is None for weight in weights):
        return Blend([str(path) for path in paths], None)
    alternating = [weight is not None for weight in weights] == [True, False] * (len(paths) // 2)
    if not alternating:
        raise UserError(
            f"{where}={list(paths)} must be prefixes, [a, b], or weights and prefixes in turn, "
            "[0.3, a, 0.7, b]"
        )
    shares = [weight for weight in weights if weight is not None]
    for share in shares:
        if not (share > 0 and math.isfinite(share)):
            raise UserError(f"{where}={list(paths)}: the weight {share} must be a positive number")
    if not math.isfinite(sum(shares)):
        raise UserError(f"{where}={list(paths)}: the weights are too large to be added up")
    return Blend([str(path) for path in paths[1::2]], shares)


def _as_number(path: str | float) -> float | None:
    try:
        return float(path)
    except ValueError:
        return None

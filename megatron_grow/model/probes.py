"""Where a model can be measured while it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import torch


class Probe(NamedTuple):
    """A number of one module's forward pass."""

    quantity: Literal["activation", "entropy"]
    """Of an ``activation`` the root of the mean square is told, of entropies the mean."""
    name: str
    """Of the place, such as ``residual_stream``; the same in all layers."""
    layer: int | None
    """Of the model; None: of no layer."""
    module: torch.nn.Module
    values: Callable[[tuple, Any], torch.Tensor]
    """From the module's positional arguments and its output to what is averaged, of any shape."""

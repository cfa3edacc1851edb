"""Where units can be masked in a model: what training methods hook into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class MaskPoints:
    """Modules of one chunk. A unit that is masked at all points of its kind is not there."""

    streams: list[torch.nn.Module] = field(default_factory=list)
    """Their output, of hidden units, begins the residual stream, or what a head makes of it."""
    branches: list[tuple[torch.nn.Module, int]] = field(default_factory=list)
    """Their output, a tensor or a pair of one and its bias, is added to the residual stream by the
    layer of that number, from 0."""
    contexts: list[torch.nn.Module] = field(default_factory=list)
    """Their input is what attention heads give."""
    inner: list[torch.nn.Module] = field(default_factory=list)
    """Their input is what feed-forward units give."""
    norms: list[torch.nn.Module] = field(default_factory=list)
    """Norms over the residual stream, or over what is added to it."""
    sums: list[tuple[torch.nn.Module, int]] = field(default_factory=list)
    """Their output, called with a branch, the residual stream and a share to drop, is the stream
    behind the layer of that number, where that is more than the sum."""

    def add_branches(self, layer: Any) -> None:
        """Those of a layer of megatron-core's with modules of the local implementation."""
        attention, mlp = layer.self_attention.linear_proj, layer.mlp.linear_fc2
        self.branches += [(end, layer.layer_number - 1) for end in (attention, mlp)]
        self.contexts.append(attention)
        self.inner.append(mlp)

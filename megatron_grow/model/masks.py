"""Where units can be masked in a model: what training methods hook into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class MaskPoints:
    """Modules of one chunk. A unit that is masked at all points of its kind is not there."""

    streams: list[torch.nn.Module] = field(default_factory=list)
    """Their output begins the residual stream."""
    branches: list[tuple[torch.nn.Module, int]] = field(default_factory=list)
    """Their output, a tensor or a pair of one and its bias, is added to the residual stream by the
    layer of that number, from 0."""
    contexts: list[torch.nn.Module] = field(default_factory=list)
    """Their input is what attention heads give."""
    inner: list[torch.nn.Module] = field(default_factory=list)
    """Their input is what feed-forward units give."""
    norms: list[torch.nn.Module] = field(default_factory=list)
    """Norms over the residual stream, or over what is added to it."""

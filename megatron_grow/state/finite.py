"""Whether values are numbers: neither NaN nor infinite."""

from __future__ import annotations

import torch


def is_finite(values: torch.Tensor) -> bool:
    """Whether no entry of ``values`` is NaN or infinite.

    One pass over memory and no mask of the values' size, so it costs a fraction of reading a file.
    """
    if not values.numel():
        return True
    smallest, largest = torch.aminmax(values)  # passes NaN on
    return bool(torch.isfinite(smallest) and torch.isfinite(largest))

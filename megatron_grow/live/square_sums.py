"""How large tensors are that ranks hold parts of: sums of squares, by tensor and layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from megatron_grow.live.layer_means import Entry, Sum

_RUN = 1 << 18
"""Values whose squares are added up in fp32. The kernel of a CPU is off by 2e-6 then, and by 6e-4
for 16 million."""


@torch.no_grad()
def square_sums(parts: Iterable[tuple[Entry, torch.Tensor]]) -> dict[Entry, Sum]:
    """Of tensors of any shape and type; those of one entry are added up.

    Args:
        parts: on one device, which is waited for once.
    """
    entries: list[Entry] = []
    runs: list[torch.Tensor] = []
    for entry, values in parts:
        cut = values.reshape(-1).split(_RUN)
        entries += [entry] * len(cut)
        runs += cut
    if not runs:
        return {}
    norms = torch.stack(torch._foreach_norm(runs, dtype=torch.float32))
    sums: dict[Entry, Sum] = {}
    for entry, run, norm in zip(entries, runs, norms.tolist(), strict=True):
        total, number = sums.get(entry, (0.0, 0))
        sums[entry] = Sum(total + norm**2, number + run.numel())
    return sums


@torch.no_grad()
def square_sum(values: torch.Tensor) -> torch.Tensor:
    """Of one tensor; a scalar, in fp64, that nobody waits for."""
    norms = torch._foreach_norm(values.reshape(-1).split(_RUN), dtype=torch.float32)
    return torch.stack(norms).double().square().sum()

"""What layers compute, measured in the forward passes of a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from megatron_grow.live.layer_means import Entry, Sum
from megatron_grow.live.square_sums import square_sum
from megatron_grow.model.probes import Probe


class Activations:
    """Measures at the probes of this rank's chunks, of all micro-batches from start to stop.

    Hooks only look: what the model computes stays the same to the bit. A layer that is recomputed
    is measured twice, which leaves its means as they are.
    """

    def __init__(self, probes: Iterable[Probe]) -> None:
        self._probes = {_entry(probe): probe for probe in probes}
        self._handles: list[RemovableHandle] = []
        self._sums: dict[Entry, list[torch.Tensor]] = defaultdict(list)
        self._counts: dict[Entry, int] = defaultdict(int)

    @property
    def entries(self) -> Iterable[Entry]:
        """What it measures."""
        return self._probes

    def start(self) -> None:
        """Measure from now on."""
        for entry, probe in self._probes.items():
            hook = partial(self._measure, entry, probe.values)
            self._handles.append(probe.module.register_forward_hook(hook))

    def stop(self) -> dict[Entry, Sum]:
        """Measure no more; what this rank has found, of activations sums of squares."""
        for handle in self._handles:
            handle.remove()
        entries = list(self._sums)
        totals = [torch.stack(self._sums[entry]).sum() for entry in entries]
        found = torch.stack(totals).tolist() if totals else []
        sums = {
            entry: Sum(total, self._counts[entry])
            for entry, total in zip(entries, found, strict=True)
        }
        self._handles.clear()
        self._sums.clear()
        self._counts.clear()
        return sums

    @torch.no_grad()
    def _measure(
        self,
        entry: Entry,
        values_of: Callable[[tuple, Any], torch.Tensor],
        module: torch.nn.Module,
        inputs: tuple,
        output: Any,
    ) -> None:
        values = values_of(inputs, output)
        squares = entry.quantity == "activation"
        self._sums[entry].append(square_sum(values) if squares else values.double().sum())
        self._counts[entry] += values.numel()


def _entry(probe: Probe) -> Entry:
    return Entry(probe.quantity, probe.name, probe.layer)

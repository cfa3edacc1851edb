"""Layers that hold the same parameters: they are trained as one, on whatever ranks they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from megatron_grow.live.layers import Layers
from megatron_grow.live.pieces import Shard
from megatron_grow.parallel import process_groups

Memory = Callable[[Shard], list[torch.Tensor]]
"""What is meant of a shard."""


@dataclass(frozen=True)
class _Group:
    """Layers that are one."""

    source: int
    """Who of its ranks has the model's first of them."""
    layers: list[list[Shard]]
    """What this rank updates of each that it has; the same parts in one order, on every rank."""

    def memory(self, of: Memory) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
        """That of the first layer here, and that of each other one."""
        first, *others = [[each for shard in layer for each in of(shard)] for layer in self.layers]
        return first, others


class SharedLayers:
    """Groups of layers of which each is trained as one layer.

    Its layers hold the same values and optimizer state, and a data-parallel rank updates the same
    part of each (:func:`.wrap_data_parallel`). They stay the same, to the bit, as long as an
    elementwise rule updates each by the sum of all their gradients.
    """

    def __init__(self, layers: Layers, groups: Sequence[Sequence[int]]) -> None:
        """Every rank takes part.

        From here on, only the first layer of a group counts in the norm of all gradients.

        Args:
            layers: of the stage.
            groups: of layers, by number, in order.
        """
        rank_of = layers.rank_of
        counted_already = {layer for _, *others in groups for layer in others}
        for layer in rank_of:
            for shard in layers[layer]:
                # What megatron-core leaves out of the norm.
                shard.main.shared = layer in counted_already  # type: ignore[attr-defined]
        by_ranks: dict[tuple[int, ...], list[_Group]] = defaultdict(list)
        for first, *others in groups:
            holders = tuple(sorted({rank_of[layer] for layer in (first, *others)}))
            here = [layers[layer] for layer in (first, *others) if layers[layer]]
            by_ranks[holders].append(_Group(holders.index(rank_of[first]), here))
        self._groups = [
            (process_groups.among_stages(holders), [group for group in found if group.layers])
            for holders, found in sorted(by_ranks.items())
        ]

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Give each layer the sum of its group's gradients; every rank takes part.

        They are in fp32, and reduced over data-parallel ranks already.
        """
        for ranks, groups in self._groups:
            gradients = [group.memory(_gradient) for group in groups]
            for first, others in gradients:
                for other in others:
                    torch._foreach_add_(first, other)
            sums = [each for first, _ in gradients for each in first]
            if ranks is not None and sums:
                _exchange(sums, partial(dist.all_reduce, group=ranks))
            for first, others in gradients:
                for other in others:
                    torch._foreach_copy_(other, first)

    @torch.no_grad()
    def copy_first(self, *, state: bool) -> None:
        """Give each layer what its group's first has; every rank takes part.

        Args:
            state: that of the optimizer too, beside the main parameters.
        """
        for ranks, groups in self._groups:
            for group in groups:
                first, others = group.memory(_main_and_state if state else _main)
                if ranks is not None:
                    _exchange(first, partial(dist.broadcast, group=ranks, group_src=group.source))
                for other in others:
                    torch._foreach_copy_(other, first)


def _gradient(shard: Shard) -> list[torch.Tensor]:
    return [shard.gradient]


def _main(shard: Shard) -> list[torch.Tensor]:
    return [shard.main]


def _main_and_state(shard: Shard) -> list[torch.Tensor]:
    return [shard.main, *(shard.state[kind] for kind in sorted(shard.state))]


def _exchange(values: list[torch.Tensor], collective: Callable[[torch.Tensor], object]) -> None:
    """One message for all of them."""
    message = torch.cat([each.view(-1) for each in values])
    collective(message)
    parts = message.split([each.numel() for each in values])
    torch._foreach_copy_([each.view(-1) for each in values], list(parts))

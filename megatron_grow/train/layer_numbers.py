"""How large the layers of a stage are, and what they compute and learn, in chosen steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from math import sqrt

import torch

from megatron_grow.live.activations import Activations
from megatron_grow.live.layer_means import Entry, LayerMeans
from megatron_grow.live.square_sums import square_sums
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.model.architectures import architecture_of

QUANTITIES = ("weight", "gain", "update", "gradient", "activation", "entropy")
Number = float | list[float | None]
"""Of the model's layers in their order, None for those that have it not; or of no layer."""
Numbers = dict[str, dict[str, Number]]
"""By quantity, then by tensor or by place in the model; see :class:`LayerNumbers`."""


class LayerNumbers(TrainingMethod):
    """Measures a step, and changes nothing of it.

    Quantities are root mean squares, of a tensor by its key: ``weight`` after the update, ``gain``
    the same of a norm's gains, ``update`` what the update changed, ``gradient`` before clipping;
    and of the places that :meth:`.Architecture.probes` names: ``activation`` over all tokens of
    the global batch. ``entropy`` is a mean, in nats.
    """

    def __init__(
        self, due: Callable[[Context], bool], tell: Callable[[Context, Numbers], None]
    ) -> None:
        """Measure the steps that are ``due``, on every rank, and ``tell`` of those with an
        update."""
        self._due, self._tell = due, tell

    def on_stage_start(self, ctx: Context) -> None:
        """Find what this rank has of which layer; every rank takes part."""
        live = ctx.live
        architecture = architecture_of(ctx.stage.model)
        self._activations = Activations(chain.from_iterable(map(architecture.probes, live.chunks)))
        self._shards = [shard for shard in live.shards() if shard.counts]
        gains = {key for key, tensor in live.tensors.items() if tensor.norm == "gain"}
        self._weights = [
            Entry("gain" if shard.key in gains else "weight", shard.key, shard.layer)
            for shard in self._shards
        ]
        self._means = LayerMeans(
            [
                *self._weights,
                *self._entries("update"),
                *self._entries("gradient"),
                *self._activations.entries,
            ]
        )
        self._measuring = False

    def before_step(self, ctx: Context) -> None:
        """Begin, where the step is due."""
        self._measuring = self._due(ctx)
        if self._measuring:
            self._activations.start()

    def after_backward(self, ctx: Context) -> None:
        """Those of activations and of gradients; what is frozen has none."""
        if self._measuring:
            gradients = (
                (entry, shard.values(shard.main.grad))
                for entry, shard in zip(self._entries("gradient"), self._shards, strict=True)
                if shard.main.grad is not None
            )
            self._sums = self._activations.stop() | square_sums(gradients)

    def before_update(self, ctx: Context, seen: bool) -> None:
        """Remember the weights."""
        if self._measuring:
            self._before = [shard.values(shard.main).clone() for shard in self._shards]

    @torch.no_grad()
    def after_update(self, ctx: Context) -> None:
        """What has become of them."""
        if self._measuring:
            weights = [shard.values(shard.main) for shard in self._shards]
            for before, weight in zip(self._before, weights, strict=True):
                before.sub_(weight)
            self._sums |= square_sums(zip(self._entries("update"), self._before, strict=True))
            self._sums |= square_sums(zip(self._weights, weights, strict=True))

    def after_step(self, ctx: Context) -> None:
        """Tell of it."""
        if self._measuring:
            self._before = []
            if ctx.updated:
                means = self._means.over_ranks(self._sums)
                self._tell(ctx, _numbers(means, ctx.stage.model.num_layers))

    def on_stage_end(self, ctx: Context) -> None:
        """Let go of the stage's memory."""
        self._shards, self._activations = [], Activations(())

    def _entries(self, quantity: str) -> list[Entry]:
        return [Entry(quantity, shard.key, shard.layer) for shard in self._shards]


def _numbers(means: Mapping[Entry, float], num_layers: int) -> Numbers:
    numbers: Numbers = {quantity: {} for quantity in QUANTITIES}
    for (quantity, name, layer), mean in means.items():
        value = mean if quantity == "entropy" else sqrt(mean)
        named = numbers[quantity]
        if layer is None:
            named[name] = value
        else:
            of_layers: list[float | None] = [None] * num_layers
            named.setdefault(name, of_layers)[layer] = value  # type: ignore[index]
    return numbers

"""The layers of a stage, as its ranks have them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.live.pieces import Shard


class Layers:
    """What this rank updates of each layer, and who has which.

    Where a data-parallel rank updates the same part of every layer (``align_layers`` of
    :func:`.wrap_data_parallel`), the shards of layers with the same tensors correspond.
    """

    def __init__(self, shards: Sequence[Shard], parallel: ParallelConfig, num_layers: int) -> None:
        """Sort the ``shards`` of this rank, in a model of ``num_layers`` layers."""
        self._mine: dict[int | None, list[Shard]] = defaultdict(list)
        for shard in sorted(shards, key=lambda shard: (shard.key, shard.box[1:])):
            self._mine[shard.layer].append(shard)
        self.rank_of = {
            layer: rank
            for rank, chunks in enumerate(chunk_layers(parallel, num_layers, "parallel"))
            for chunk in chunks
            for layer in chunk
        }
        """The pipeline rank of each layer of the model."""

    def __getitem__(self, layer: int) -> list[Shard]:
        """What this rank updates of a layer, in an order that is the same for all layers."""
        return self._mine.get(layer, [])

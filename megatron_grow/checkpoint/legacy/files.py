"""Which file of a legacy checkpoint holds which part of a model, and under which name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_grow.checkpoint.legacy.names import LEGACY
from megatron_grow.checkpoint.regions import Region
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.pipeline import chunk_layers
from megatron_grow.state.axes import MeshDim
from megatron_grow.state.boxes import shape_of
from megatron_grow.state.sharding import held, shape_on_rank
from megatron_grow.state.tensors import LogicalTensor, layer_key


@dataclass(frozen=True)
class ModelChunk:
    """A part of the model that one file holds: all of a rank's, or a virtual pipeline stage."""

    rank: tuple[int, int]
    """Tensor- and pipeline-parallel."""
    path: Path
    """Of the file, in the checkpoint."""
    entry: str
    """Of the file's content: ``model``, or ``model0``, ``model1`` and so on."""
    layers: range
    first: bool
    """Whether it begins with the embeddings."""
    last: bool
    """Whether it ends with the head."""

    def region_name(self, name: str) -> str:
        """What the tensor ``name`` of this chunk is called among all."""
        return f"{self.path.parent}/{self.entry}/{name}"

    def name_within(self, region: Region) -> str:
        """The name in this chunk of a region of it."""
        return region.name.removeprefix(self.region_name(""))

    def extra_states(self, tensors: dict[str, LogicalTensor]) -> list[str]:
        """Names of the entries for FP8: projections in layers have one, and the head."""
        projections = [tensor for tensor in tensors.values() if tensor.stacked and tensor.is_matrix]
        weights = [
            layer_key(tensor.key, place)
            for place, layer in enumerate(self.layers)
            for tensor in projections
            if layer in tensor.with_it
        ]
        if self.last:
            head = [tensor for tensor in tensors.values() if tensor.part == "head"]
            weights += [t.key for t in head if t.is_matrix and t.is_partitioned]
            weights += [tensor.tied_as for tensor in tensors.values() if tensor.tied_as]
        return [f"{weight.removesuffix('weight')}_extra_state" for weight in weights]


def model_chunks(parallel: ParallelConfig, num_layers: int, where: str) -> list[ModelChunk]:
    """All chunks of a model of ``num_layers`` layers.

    Raises:
        UserError: it cannot be cut this way; the message begins with ``where``.
    """
    found = []
    by_rank = chunk_layers(parallel, num_layers, where)
    for tensor_rank in range(parallel.tensor_model_parallel_size):
        for rank, chunks in enumerate(by_rank):
            suffix = f"_{rank:03d}" if len(by_rank) > 1 else ""
            path = Path(f"mp_rank_{tensor_rank:02d}{suffix}", LEGACY)
            for number, layers in enumerate(chunks):
                found.append(
                    ModelChunk(
                        rank=(tensor_rank, rank),
                        path=path,
                        entry=f"model{number}" if len(chunks) > 1 else "model",
                        layers=layers,
                        first=rank == number == 0,
                        last=(rank, number) == (len(by_rank) - 1, len(chunks) - 1),
                    )
                )
    return found


def regions(
    chunk: ModelChunk, tensors: dict[str, LogicalTensor], tensor_parallel: int, *, fused: bool
) -> Iterator[Region]:
    """All tensors of one chunk.

    Args:
        chunk: the part of the model.
        tensors: of the whole model.
        tensor_parallel: ranks that share each tensor.
        fused: norms are named as by Transformer Engine, else as by the local layers.
    """
    mesh, here = {MeshDim.TENSOR: tensor_parallel}, {MeshDim.TENSOR: chunk.rank[0]}

    def region(name: str, tensor: LogicalTensor, *entry: int) -> Region:
        first, *others = tensor.groups
        if tensor.stacked:  # each layer is a tensor of its own
            first, *others = first + others[0], *others[1:]
        box = held(tensor.axes, entry, here, mesh)
        order = tuple(range(len(tensor.axes)))
        padding = shape_on_rank(tensor.axes, mesh)[0] - shape_of(box)[0]
        name = chunk.region_name(name)
        return Region(name, tensor.key, box, order, (first, *others), padding)

    for key, tensor in tensors.items():
        if tensor.stacked:
            name = key if fused else tensor.unfused_key or key
            for place, layer in enumerate(chunk.layers):
                if layer in tensor.with_it:
                    yield region(layer_key(name, place), tensor, tensor.entry_of(layer))
        elif chunk.first if tensor.on_first_stage else chunk.last:
            yield region(key, tensor)
    if chunk.last and not chunk.first:
        for tensor in tensors.values():
            if tensor.tied_as:
                yield region(tensor.tied_as, tensor)


def originals(found: Iterable[Region]) -> Iterator[Region]:
    """Those of ``found`` that hold something for the first time: not what other ranks hold too."""
    seen = set()
    for region in found:
        if (region.key, region.box) not in seen:
            seen.add((region.key, region.box))
            yield region

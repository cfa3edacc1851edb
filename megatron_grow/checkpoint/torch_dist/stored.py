"""Under which names, and in which shapes, a logical tensor is stored.

Mostly under one. Where layers are not all alike, megatron-core stores each layer's share by itself,
under a key with the layer's number; *the name* of such a tensor stands for those of its layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from megatron_grow.state.boxes import Box, fold
from megatron_grow.state.tensors import LogicalTensor, layer_key


def stored_shapes(name: str, tensor: LogicalTensor) -> dict[str, tuple[int, ...]]:
    """Everything that is stored of ``tensor`` under ``name``, and the shape of each."""
    if tensor.layers is None:
        return {name: tensor.checkpoint_shape}
    return {layer_key(name, layer): tensor.checkpoint_shape[1:] for layer in tensor.layers}


def stored_parts(name: str, tensor: LogicalTensor, box: Box) -> Iterator[tuple[str, Box, Box]]:
    """Where ``box`` of ``tensor`` is stored under ``name``.

    Yields:
        The stored name; a part of ``box``, in fine axes; where it lies in the stored shape.
    """
    for fine, stored in fold(tensor.shape, box, tensor.groups):
        if tensor.layers is None:
            yield name, fine, stored
            continue
        for entry in range(*stored[0]):
            yield layer_key(name, tensor.layers[entry]), ((entry, entry + 1), *fine[1:]), stored[1:]


def stored_modules(tensor: LogicalTensor) -> Iterator[tuple[str, str]]:
    """Key of each module's weight in a tensor of layers, and its place as megatron-core writes it:
    ``2_4``, the third of four."""
    sizes = [axis.size for axis in tensor.axes if axis.rule.stacks]
    for entry in product(*map(range, sizes)):
        key, place, of = tensor.key, entry, tuple(sizes)
        if tensor.layers is not None:
            key = layer_key(key, tensor.layers[entry[0]])
            place, of = entry[1:] or (0,), of[1:] or (1,)
        yield key, f"{'.'.join(map(str, place))}_{'.'.join(map(str, of))}"

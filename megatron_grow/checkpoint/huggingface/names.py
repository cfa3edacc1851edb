"""Where the tensors of a family's models are stored."""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_grow.checkpoint.regions import Region
from megatron_grow.config.model import ModelConfig
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.model.huggingface import Family, Parts
from megatron_grow.state.boxes import full
from megatron_grow.state.tensors import LogicalTensor


def regions(family: Family, model: ModelConfig) -> Iterator[Region]:
    """Where the tensors of a model are stored: those it has once, then layer by layer.

    Rows of tensors that the model does not have (the head of a tied one) give nothing.
    """
    tensors, parts = logical_tensors(model), family.parts(model)
    rows = {name: row for name, row in family.written(model).items() if row[0] in tensors}
    for name, (key, pattern) in rows.items():
        if not tensors[key].stacked:
            yield _region(name, tensors[key], pattern, parts)
    for layer in range(model.num_layers):
        for name, (key, pattern) in rows.items():
            if tensors[key].stacked and tensors[key].is_in(layer):
                entry = tensors[key].entry_of(layer)
                yield _region(name.format(layer=layer), tensors[key], pattern, parts, entry)


def copies(family: Family, model: ModelConfig) -> dict[str, str]:
    """Names under which files may hold again what they hold under another, which is given.

    A tied head is one; and of rows with the same part of a tensor all but the first.
    """
    ties = {tensor.tied_as: key for key, tensor in logical_tensors(model).items()}
    first: dict[tuple[str, str], str] = {}
    for name, (key, pattern) in family.rows.items():
        first.setdefault((ties.get(key, key), pattern), name)
    originals = {name: first[ties.get(key, key), p] for name, (key, p) in family.rows.items()}
    return {name: original for name, original in originals.items() if name != original}


def _region(
    name: str, tensor: LogicalTensor, pattern: str, parts: Parts, entry: int | None = None
) -> Region:
    box, order, groups = list(full(tensor.shape)), [], []
    for dimension in re.findall(r"\([^)]*\)|\w+", pattern):
        labels = re.findall(r"\w+", dimension)
        for label in labels:
            axis = tensor.axis(parts[label][0] if label in parts else label)
            if label in parts:
                box[axis] = parts[label][1]
            order.append(axis)
        groups.append(len(labels))
    if entry is not None:
        box[0] = (entry, entry + 1)
        order.insert(0, 0)
        groups[0] += 1
    return Region(name, tensor.key, tuple(box), tuple(order), tuple(groups))

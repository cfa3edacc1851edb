"""Noise that breaks the symmetry of copies, the same bits in whatever slices it is asked for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from math import sqrt

import torch

from megatron_grow.state.axis_map import Noise
from megatron_grow.state.boxes import Box, shape_of
from megatron_grow.state.fresh import fresh
from megatron_grow.state.maps import TensorMap
from megatron_grow.state.tensors import Normal


def noise(tensor_map: TensorMap, box: Box, seed: int) -> torch.Tensor:
    """What is added to the target of ``tensor_map`` in ``box``, all of which it draws.

    All of its terms have the same noise.

    Returns:
        fp64, of the shape of ``box``.
    """
    found = tensor_map.terms[0].noise
    assert found is not None
    axis, how = found
    members = _members(how, *box[axis])
    first, last = int(members.min()), int(members.max())
    span = (*box[:axis], (first, last + 1), *box[axis + 1 :])
    # The size is part of the name, so that each of several growths draws its own.
    name = f"{tensor_map.target.key}/noise/{len(how.group)}"
    of_noise = replace(tensor_map.target, key=name)
    drawn = fresh(of_noise, span, Normal(1.0), seed)
    total = torch.zeros(shape_of(box), dtype=torch.float64)
    for column in (members - first).unbind(1):
        total += drawn.index_select(axis, column)
    own = torch.arange(*box[axis])
    apart = drawn.index_select(axis, own - first) - total / members.shape[1]
    in_groups = torch.tensor([len(set(row)) > 1 for row in members.tolist()])
    for place, deviations in enumerate(_deviations(tensor_map, how, box)):
        if place == axis:
            deviations = deviations * how.level * in_groups
        apart *= deviations.view([-1 if i == place else 1 for i in range(len(box))])
    return apart


def _members(how: Noise, start: int, stop: int) -> torch.Tensor:
    """(entries, size of a group): the group of each; an entry that is alone is repeated."""
    groups: dict[int, list[int]] = defaultdict(list)
    for entry, group in enumerate(how.group):
        groups[group].append(entry)
    size = max(map(len, groups.values()))
    rows = (groups[how.group[i]] for i in range(start, stop))
    return torch.tensor([row if len(row) == size else row * size for row in rows])


def _deviations(tensor_map: TensorMap, how: Noise, box: Box) -> list[torch.Tensor]:
    """Standard deviation at a level of 1: the product of these, one for each axis."""
    if how.rms is None:
        assert isinstance(tensor_map.target.init, Normal)
        whole = [torch.ones(stop - start, dtype=torch.float64) for start, stop in box]
        whole[0] *= tensor_map.target.init.std
        return whole
    of_terms = [term.axes[0].powers(how.rms[term.source], *box[0]) for term in tensor_map.terms]
    # Of terms that draw on several layers each target layer has the power of the first that it has.
    powers = [next(p for p in layer if p is not None) for layer in zip(*of_terms, strict=True)]
    first = tensor_map.terms[0]
    others = zip(first.axes[1:], box[1:], strict=True)
    found = [
        torch.tensor([sqrt(power) for power in powers], dtype=torch.float64),
        *(axis.factors(*extent) for axis, extent in others),
    ]
    return [each * first.factors(axis, *box[axis]) for axis, each in enumerate(found)]

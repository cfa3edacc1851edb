"""What each rank of a mesh holds of a tensor, and who are replicas; by counting."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest

from megatron_grow.operators import OPERATORS
from megatron_grow.state.axes import AXES, FFN, GROW_KEYS, HIDDEN, LAYER, VOCAB, Axis, MeshDim, Role
from megatron_grow.state.boxes import slices
from megatron_grow.state.sharding import Mesh, Place, held, shape_on_rank, shards, undivided
from tests.architectures.moe import EXPERT, EXPERT_FFN, ROUTED

ROW, COLUMN = Role.PRODUCES, Role.CONSUMES
MATRIX = (Axis(LAYER, 3, Role.INDEX), Axis(FFN, 8, ROW), Axis(HIDDEN, 6, COLUMN))
EXPERTS = (
    Axis(LAYER, 3, Role.INDEX),
    Axis(EXPERT, 4, Role.INDEX),
    Axis(EXPERT_FFN, 8, ROW),
    Axis(HIDDEN, 6, COLUMN),
)
ROUTER = (Axis(LAYER, 3, Role.INDEX), Axis(ROUTED, 4, Role.INDEX), Axis(HIDDEN, 6, COLUMN))
MESH: Mesh = {MeshDim.TENSOR: 4, MeshDim.EXPERT: 2, MeshDim.EXPERT_TENSOR: 4}


def places(mesh: Mesh) -> list[Place]:
    """One for each combination of coordinates."""
    return [dict(zip(mesh, at, strict=True)) for at in product(*map(range, mesh.values()))]


@pytest.mark.parametrize(
    ("axes", "sharers"), [(MATRIX, 4), (EXPERTS, 2 * 4), (ROUTER, 1)], ids=["4", "2 x 4", "1"]
)
def test_shards_tile_a_tensor_and_replicas_are_the_complement(
    axes: tuple[Axis, ...], sharers: int
) -> None:
    """Of 32 places, as many hold the same as do not take part in sharing."""
    everywhere = places(MESH)
    boxes = Counter(held(axes, (1,), place, MESH) for place in everywhere)
    assert len(boxes) == sharers
    assert set(boxes.values()) == {len(everywhere) // sharers}
    count = np.zeros([axis.size for axis in axes], int)
    for box in boxes:
        count[slices(box)] += 1
    assert (count[1] == 1).all() and count.sum() == count[1].size
    (shape,) = {np.empty(count.shape)[slices(box)].shape for box in boxes}
    assert shape == shape_on_rank(axes, MESH)
    whole = np.zeros_like(count)
    for box in shards(axes, MESH):
        whole[slices(box)] += 1
    assert (whole == 1).all() and len(shards(axes, MESH)) == sharers


def test_one_expert_of_a_layer() -> None:
    """A parameter is one expert's; the ranks that share it have its rows."""
    box = held(EXPERTS, (2, 3), {MeshDim.EXPERT: 1, MeshDim.EXPERT_TENSOR: 3}, MESH)
    assert box == ((2, 3), (3, 4), (6, 8), (0, 6))


def test_the_last_ranks_hold_padding() -> None:
    """Of 10 rows in runs of a multiple of 4 on 4 ranks: 4, 4, 2 and none."""
    rows = (Axis(VOCAB, 10, Role.INDEX, multiple=4), Axis(HIDDEN, 6, ROW))
    ends = [held(rows, (), {MeshDim.TENSOR: rank}, MESH)[0] for rank in range(4)]
    assert ends == [(0, 4), (4, 8), (8, 10), (10, 10)]
    assert shape_on_rank(rows, MESH) == (4, 6)


def test_what_ranks_do_not_divide() -> None:
    """Padding makes up for what is missing of a vocabulary, and of nothing else."""
    axes = (Axis(VOCAB, 10, Role.INDEX), Axis(FFN, 6, ROW), Axis(EXPERT, 3, Role.INDEX))
    assert [axis.name for axis in undivided(axes, MESH)] == ["ffn", "expert"]
    assert not list(undivided(axes, {MeshDim.TENSOR: 2, MeshDim.EXPERT: 3}))


def test_the_keys_of_the_table_are_those_of_operators_and_of_the_contract() -> None:
    assert GROW_KEYS == ("depth", "width", "heads", "ffn", "vocab", "positions")
    assert set(OPERATORS) == set(GROW_KEYS)
    assert len({rule.name for rule in AXES}) == len(AXES)

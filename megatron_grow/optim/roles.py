"""What a tensor is to an optimizer: its role, its fan-in and its fan-out."""

from __future__ import annotations

from math import prod
from typing import Literal, get_args

from megatron_grow.state.axes import Axis, Role
from megatron_grow.state.tensors import LogicalTensor

TensorRole = Literal["matrix", "vector", "embedding", "head"]
"""``matrix``: of hidden units on both sides, in a head too; ``head``: from those to an output;
``vector``: biases, gains of norms."""
ROLES: tuple[TensorRole, ...] = get_args(TensorRole)


def role(tensor: LogicalTensor) -> TensorRole:
    """The role of a tensor; a head that is tied is the embedding."""
    if not tensor.is_matrix:
        return "vector"
    if tensor.part in ("embedding", "positions"):
        return "embedding"
    classifies = any(axis.role is Role.INDEX for axis in tensor.axes)
    return "head" if tensor.part == "head" and classifies else "matrix"


def roles(tensor: LogicalTensor) -> set[TensorRole]:
    """All roles of a tensor: an embedding to which the head is tied is the head as well."""
    return {role(tensor), *(("head",) if tensor.tied_as else ())}


def fan_in(tensor: LogicalTensor) -> int:
    """Inputs of each output of a tensor; 1 for vectors, and for embeddings, which look up."""
    return _units(tensor, Role.CONSUMES) if tensor.is_matrix else 1


def fan_out(tensor: LogicalTensor) -> int:
    """Outputs of each of the matrices that a tensor is made of.

    Layers, experts, a gate and what it gates are matrices of their own; so are queries, keys and
    values, of which those with the most outputs count.
    """
    return _units(tensor, Role.PRODUCES)


def _units(tensor: LogicalTensor, does: Role) -> int:
    return prod(_entries(axis) for axis in tensor.axes if axis.role is does)


def _entries(axis: Axis) -> int:
    return max(axis.fuses, default=axis.size)

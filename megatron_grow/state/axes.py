"""The axis table: what each labelled axis of a tensor is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a tensor does along an axis; decides how a duplicate is made."""

    INDEX = "index"
    """Selects among independent entries (layer, token, position)."""
    PRODUCES = "produces"
    """Rows: a duplicate entry is copied."""
    CONSUMES = "consumes"
    """Columns: duplicates of an input share its weight."""


@dataclass(frozen=True)
class Axis:
    """A labelled axis."""

    name: str
    size: int
    role: Role
    multiple: int | None = None
    """Tensor-parallel ranks have room for a multiple of this each: what lies behind ``size`` is
    padding, and no part of the tensor. None: they share the entries evenly."""

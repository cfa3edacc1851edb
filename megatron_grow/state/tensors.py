"""Logical tensors: those of the whole model, whatever the layout."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Literal

from megatron_grow.state.axes import LAYER, VOCAB, Axis, MeshDim

Part = Literal["embedding", "positions", "blocks", "final_norm", "head"]


@dataclass(frozen=True)
class Normal:
    """Fresh entries are drawn from N(0, std^2)."""

    std: float
    parts: tuple[float, ...] = ()
    """Of matrices that are fused along an axis, what is multiplied by in each; empty: 1."""


@dataclass(frozen=True)
class Constant:
    """Fresh entries have one value."""

    value: float


Init = Normal | Constant
ZERO = Constant(0.0)


@dataclass(frozen=True)
class LogicalTensor:
    """A tensor of the whole model, whatever the layout."""

    key: str
    """Megatron's checkpoint key."""
    axes: tuple[Axis, ...]
    """Fine axes: those that a growth, or a cut over ranks, may treat apart."""
    groups: tuple[int, ...]
    """How many fine axes make each dimension that Megatron's checkpoint has."""
    init: Init
    """How fresh entries are made."""
    norm: Literal["gain", "bias"] | None = None
    """Which parameter of a norm it is, if it is one."""
    ends_branch: bool = False
    """Whether it is the last of a residual branch: zero here, and the branch adds nothing."""
    stream_norm: Literal["inside", "last"] | None = None
    """Whether it is of a norm that the residual stream itself passes through (post-norm): the last
    of a layer, or one inside it. None: it is of none, or of one of what a branch reads or gives."""
    part: Part = "blocks"
    """Of the model; ``blocks`` are the layers."""
    unfused_key: str | None = None
    """Its key where it is a norm's and layers do not fuse it with the projection behind it."""
    tied_as: str | None = None
    """Key of a tied head: a copy of this tensor, which the last pipeline stage has."""
    begins_as: str | None = None
    """Key of the tensor that it begins as where a model that it grows from has none of its own."""
    layers: tuple[int, ...] | None = None
    """Which of the model's layers have it: entry i of its axis 0 is that of layer ``layers[i]``.
    None: all of them, where axis 0 is the layer."""
    sharing: tuple[int, ...] | None = None
    """The unique layer that each of the model's layers is, where some share their parameters; what
    axis 0 and ``layers`` count are then unique layers."""

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if len({*names}) < len(names):
            raise ValueError(
                f"{self.key} has two axes of one name ({', '.join(names)}), which would be drawn "
                "alike; give one a row of its own that follows the other"
            )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the fine axes."""
        return tuple(axis.size for axis in self.axes)

    @cached_property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """The shape under which Megatron's checkpoint stores the tensor."""
        return self.grouped(self.shape)

    def grouped(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``shape``, of fine axes, in the dimensions that Megatron's checkpoint has."""
        ends = list(accumulate(self.groups))
        return tuple(prod(shape[end - n : end]) for n, end in zip(self.groups, ends, strict=True))

    def pads_to(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` is the checkpoint's, or adds rows that pad a vocabulary."""
        expected = self.checkpoint_shape
        if self.axes[0].rule != VOCAB:
            return shape == expected
        return shape[:1] >= expected[:1] and shape[1:] == expected[1:]

    @property
    def is_partitioned(self) -> bool:
        """Whether ranks share each layer's, or the whole if it has no layers."""
        return any(axis.rule.partitioned_by not in (None, MeshDim.PIPELINE) for axis in self.axes)

    @property
    def of_experts(self) -> bool:
        """Whether the ranks that share experts share it: its replicas are then theirs."""
        dims = {axis.rule.partitioned_by for axis in self.axes}
        return bool(dims & {MeshDim.EXPERT, MeshDim.EXPERT_TENSOR})

    @property
    def stacked(self) -> bool:
        """Whether axis 0 is the layer."""
        return self.axes[0].rule == LAYER

    @property
    def on_first_stage(self) -> bool:
        """Whether it is of the first pipeline stage; what is not, nor in a layer, of the last."""
        return self.part in ("embedding", "positions")

    @property
    def is_matrix(self) -> bool:
        """Whether each layer's, or each expert's of it, or the whole, is a matrix."""
        return len(self.groups) - sum(axis.rule.stacks for axis in self.axes) == 2

    @property
    def with_it(self) -> Sequence[int]:
        """The model's unique layers that have it, in the order of its entries."""
        return range(self.shape[0]) if self.layers is None else self.layers

    def unique(self, layer: int) -> int:
        """Which unique layer a layer of the model is."""
        return layer if self.sharing is None else self.sharing[layer]

    def is_in(self, layer: int) -> bool:
        """Whether a layer of the model has it."""
        return self.unique(layer) in self.with_it

    def entry_of(self, layer: int) -> int:
        """Which entry of axis 0 a layer of the model is, of those that have the tensor."""
        return self.with_it.index(self.unique(layer))

    def is_first(self, layer: int) -> bool:
        """Whether no layer of the model before this one has the same parameters."""
        return self.sharing is None or self.sharing.index(self.sharing[layer]) == layer

    def shared(self, sharing: tuple[int, ...]) -> LogicalTensor:
        """The same of a model whose layers share their parameters.

        Args:
            sharing: the unique layer that each layer is.

        Raises:
            ValueError: of layers that are one, some have it and some do not.
        """
        if not self.stacked:
            return self
        for layer, number in enumerate(sharing):
            first = sharing.index(number)
            if (layer in self.with_it) != (first in self.with_it):
                raise ValueError(f"of layers {first} and {layer} only one has {self.key}")
        unique = sorted({sharing[layer] for layer in self.with_it})
        return replace(
            self,
            axes=(replace(self.axes[0], size=len(unique)), *self.axes[1:]),
            layers=None if self.layers is None else tuple(unique),
            sharing=sharing,
        )

    def axis(self, name: str) -> int:
        """Position of the axis called ``name``."""
        return next(i for i, axis in enumerate(self.axes) if axis.name == name)

    def drawn_from(self, tensors: Container[str]) -> str:
        """Which of ``tensors``, those of a model that is grown, it is drawn from."""
        return self.begins_as if self.begins_as and self.key not in tensors else self.key


def layer_key(key: str, layer: int) -> str:
    """What Megatron calls one layer's share of the stacked tensor ``key``."""
    return key.replace(".layers.", f".layers.{layer}.", 1)


def stacked_key(key: str) -> tuple[str, int | None]:
    """The stacked tensor of which ``key`` is one layer's share, and which; else ``key``, None."""
    found = re.search(r"\.layers\.(\d+)\.", key)
    if found is None:
        return key, None
    return key.replace(found[0], ".layers.", 1), int(found[1])

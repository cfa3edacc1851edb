"""What does not train in a stage: LLaMA-Pro's old blocks, an embedding, the units of a sub-model.

All of it stays in the model and in the optimizer, whose updates pass it by. So a checkpoint holds
its weights and moments as ever, pipeline stages that share a tensor need no word of each other, and
recomputation of activations sees nothing of it. What this does not save is the arithmetic and the
memory of its gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.names import nearest
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.methods.selection import Flags, Selected, check_old, in_box, select
from megatron_grow.state.axes import GROW_KEYS
from megatron_grow.state.tensors import LogicalTensor


class _Kept(NamedTuple):
    """Values that an update must leave as they are, among others that it changes."""

    data: torch.Tensor
    mask: torch.Tensor
    values: torch.Tensor


@dataclass
class Frozen(TrainingMethod):
    """Freeze the entries that all given options name.

    They are neither updated nor decayed, their moments stay, and they have no share in the gradient
    norm.
    """

    tensors: list[str] = field(default_factory=lambda: ["*"])
    """Checkpoint keys, or patterns of them (``embedding.*``)."""
    layers: Literal["old", "new"] | list[int] | None = None
    """Of transformer layers alone: those that the stage before had, or had not, or these numbers,
    from 0."""
    axes: list[str] = field(default_factory=list)
    """Keys of ``grow``: of the tensors with such units alone, what the stage before had of them."""

    def __post_init__(self) -> None:
        self._selected: list[Selected] = []
        self._kept: list[_Kept] = []

    def check(self, stage: Stage, run: RunConfig, plan: Plan, where: str) -> None:
        """Refuse names of nothing, and to freeze nothing or everything."""
        for pattern in self.tensors:
            if not any(fnmatchcase(key, pattern) for key in plan.tensors):
                raise UserError(
                    f"{where}.tensors={pattern} is no tensor of the stage; "
                    f"{nearest(pattern, plan.tensors)}"
                )
        for key in self.axes:
            if key not in GROW_KEYS:
                raise UserError(f"{where}.axes={key} must be one of {', '.join(GROW_KEYS)}")
        layers = range(stage.model.num_layers)
        if isinstance(self.layers, list) and not set(self.layers) <= set(layers):
            raise UserError(f"{where}.layers={self.layers} must be from 0 to {len(layers) - 1}")
        sharing = stage.model.sharing or ()
        for layer, unique in enumerate(sharing):
            first = sharing.index(unique)
            if isinstance(self.layers, list) and (layer in self.layers) != (first in self.layers):
                raise UserError(
                    f"{where}.layers={self.layers}: layers {first} and {layer} share their "
                    "parameters; name all layers that do, or none of them"
                )
        if isinstance(self.layers, str) or self.axes:
            check_old(plan, where)
        found = [self._flags(plan, tensor) for tensor in plan.tensors.values()]
        if not any(all(bool(some.any()) for some in flags.values()) for flags in found):
            raise UserError(f"{where} freezes nothing: the stage has no part that it names")
        if all(bool(each.all()) for flags in found for each in flags.values()):
            raise UserError(f"{where} freezes everything; something must train")

    def on_stage_start(self, ctx: Context) -> None:
        """Find it in what this rank updates."""
        flags = {key: self._flags(ctx.plan, tensor) for key, tensor in ctx.plan.tensors.items()}
        self._selected = list(select(ctx.live.shards(), lambda key, box: in_box(flags[key], box)))
        self._kept = [
            _Kept(data, mask, data[mask])
            for selected in self._selected
            if not selected.is_all
            for storage in (selected.shard.main, *selected.shard.state.values())
            for data, mask in selected.places(storage)
        ]

    def after_backward(self, ctx: Context) -> None:
        """Take its gradients away; what has none at all is passed by in the update."""
        for selected in self._selected:
            if selected.is_all:
                selected.shard.main.grad = None
            else:
                for gradient, mask in selected.places(selected.shard.gradient):
                    gradient.masked_fill_(mask, 0.0)

    def after_update(self, ctx: Context) -> None:
        """Undo decay and momentum, where it lies among what trains."""
        for kept in self._kept:
            kept.data.masked_scatter_(kept.mask, kept.values)

    def on_stage_end(self, ctx: Context) -> None:
        """Let go of the stage's memory."""
        self._selected, self._kept = [], []

    def _flags(self, plan: Plan, tensor: LogicalTensor) -> Flags:
        """What is frozen of a tensor."""
        nothing: Flags = {0: torch.zeros(tensor.shape[0], dtype=torch.bool)}
        if not any(fnmatchcase(tensor.key, pattern) for pattern in self.tensors):
            return nothing
        had = plan.weights[tensor.key].old
        flags: Flags = {}
        if self.layers is not None:
            if not tensor.stacked:
                return nothing
            if isinstance(self.layers, list):
                frozen = {tensor.unique(layer) for layer in self.layers}
                flags[0] = torch.tensor([layer in frozen for layer in tensor.with_it])
            else:
                flags[0] = had(0) if self.layers == "old" else ~had(0)
        along = [i for i, axis in enumerate(tensor.axes) if axis.rule.grown_by in self.axes]
        if self.axes and not along:
            return nothing
        for axis in along:
            flags[axis] = flags.get(axis, torch.tensor(True)) & had(axis)
        return flags or {0: torch.ones(tensor.shape[0], dtype=torch.bool)}

"""What every optimizer says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from megatron_grow.inputs.ranges import Positive, check_fields
from megatron_grow.optim.roles import fan_in
from megatron_grow.state.tensors import LogicalTensor

if TYPE_CHECKING:  # asked of their state alone, optimizers need not torch's
    import torch


@dataclass(frozen=True)
class Optimizer(ABC):
    """An update rule, or several that share the tensors of a model.

    Its fields are its options. Those that :class:`~megatron_grow.config.sections.OptimizerSection`
    has too are set there, all others under ``optimizer.options``. Importing one of ours must not
    import megatron-core.
    """

    states: ClassVar[Mapping[str, int]] = {}
    """What it keeps of a tensor, each of the tensor's shape and zero at first: by its name in the
    state of a torch optimizer, the power of the gradient that it carries. 1: it scales as gradients
    do, like a momentum; 2: as their squares."""
    counts_updates: ClassVar[bool] = False
    """Whether it keeps count of its updates beside them, as ``step``, like torch's Adam."""
    shards: ClassVar[bool] = False
    """Whether the rule is elementwise, so that it can work on any part of a tensor."""

    lr: Positive
    """Peak learning rate."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def peak(self) -> float:
        """The peak learning rate of tensors that are under this rule."""
        return self.lr

    @property
    def epsilon(self) -> float | None:
        """What keeps its update finite where gradients vanish, the field ``eps`` of its groups;
        None: it has none that may differ between groups."""
        return None

    def response(self, tensor: LogicalTensor, gradient: float) -> float:
        """How far an update at a rate of 1 changes what a tensor makes of its inputs.

        Up to a factor that is the same for all sizes of the model: only ratios are asked for.
        Entries of inputs and outputs are of order 1, and updates of a few steps line up with the
        inputs. Unless it says otherwise, each entry moves by the rate whatever its gradient is, as
        Adam's do.

        Args:
            tensor: that is under this rule; of those that look up, what an entry moves by.
            gradient: order of the entries of its gradient.
        """
        return fan_in(tensor)

    def rule(self, tensor: LogicalTensor) -> Optimizer:
        """Which rule ``tensor`` is under: this one, or another that it is left to."""
        return self

    def may_be_sharded(self, model: Iterable[LogicalTensor]) -> bool:
        """Whether data-parallel ranks may share the state of a ``model``: one rule alone has all of
        it, as megatron-core's distributed optimizer demands, and works on any part."""
        return self.shards and all(self.rule(tensor) == self for tensor in model)

    @abstractmethod
    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        """The torch optimizer of this rule, under the process groups of the current stage.

        Its state is made for it, before the first step. Its step must write to it in place, keep
        nothing else of a tensor (groups are not stored), and leave alone a parameter whose ``grad``
        is None.

        Args:
            groups: this rank's parameters by group, each group with its ``lr`` and its
                ``weight_decay``; a group may be empty. Main parameters take the place of the
                model's before the first step; see :func:`.builder.build_optimizer`.
            dtype: of the model's weights.
        """

    def megatron_lm_group(self, step: int) -> dict[str, Any] | None:
        """What Megatron-LM stores with each parameter group after ``step`` updates.

        None where Megatron-LM does not have this optimizer.
        """
        return None
